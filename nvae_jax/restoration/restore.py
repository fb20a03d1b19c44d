"""Restores images with a trained model as the prior, without further training."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.noise import by_group
from nvae_jax.restoration import baselines
from nvae_jax.restoration.degradation import observe

if TYPE_CHECKING:  # which imports this file
    from nvae_jax.api import Run

MAX_STEPS = 100_000
FAINT = 0.03  # difference of neighbouring pixels below which smooth fill is better than a model
# The default settings of each method.
METHODS: dict[str, dict[str, Any]] = {
    "mix": {"steps": 10, "alpha": 0.1, "temperature": 1.0, "trust": 0.3},
    "optimize": {"steps": 200, "learning_rate": 0.05, "temperature": 1.0},
}


class Restored(NamedTuple):
    """Images in [0, 1], float32.

    Attributes:
      best: (N, H, W, C), estimates with a small error: drawn at temperature 0 and, without noise,
        blended with the plain restoration, the more the less contrast an image has.
      samples: (N, num_samples, H, W, C), possible originals.
    """

    best: np.ndarray
    samples: np.ndarray


def restore(
    run: "Run",
    images: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    scale: int = 1,
    noise: float = 0.0,
    method: str | None = None,
    num_samples: int = 8,
    seed: int = 0,
    **settings: Any,
) -> Restored:
    """Samples possible originals of images of which only a part is known.

    Args:
      run: an `api.Run`.
      images: the known values (N, H, W, C) in [0, 1], of the run's size or, with `scale`, of
        1 / scale of it; with `noise`, float values may lie outside [0, 1]. Values of unknown pixels
        are ignored, and can be NaN.
      mask: (H, W) or (N, H, W), as large as `images`: 1 or True for known pixels. None: all are.
      scale: each known pixel is the mean of a block of `scale` x `scale` pixels.
      noise: standard deviation of Gaussian noise on the known values, in units of [0, 1].
      method: "mix" or "optimize"; see `methods.Restorer`. None takes the better one for
        photographs: "optimize" with noise, otherwise "mix".
      num_samples: samples per image.
      seed: seed of the draws.
      **settings: settings of the method; the defaults are in `METHODS`. Both have `steps` and
        `temperature`, which multiplies the spread of the draws: one number or, for "mix", one per
        scale, coarsest first. "mix" also has `alpha`, the weight of the prior in the latents of
        each group, one number or one per scale, and `trust`, the standard deviation of its guesses
        as a fraction of the noise's. "optimize" also has `learning_rate`.

    Returns:
      `Restored`.

    Raises:
      ValueError: if images, mask or settings do not fit each other or the model.
    """
    method = method or default_method(noise)
    settings = check_settings(method, settings, run.experiment.model.hierarchy, num_samples)
    spread = settings.pop("spread")
    observed = observe(images, run.experiment.data, mask=mask, scale=scale, noise=noise)
    run.check_memory(len(observed.values) * (num_samples + 1))
    step = partial(
        getattr(run.restorer, method),
        run.variables,
        jax.random.key(seed),
        spread=np.asarray([0.0, *[spread] * num_samples], np.float32),
        **settings,
    )
    index = np.arange(len(observed.values))
    start = baselines.first_guess(observed)
    found = run.map_batches(step, {"observed": observed, "start": start, "index": index})
    if not np.isfinite(found).all():
        raise ValueError("some restored values are not finite: are the settings extreme?")
    best = found[:, 0] if noise else lean(found[:, 0], start, baselines.contrast(observed))
    return Restored(best, found[:, 1:])


def default_method(noise: float) -> str:
    """The better method for photographs with this noise."""
    return "optimize" if noise else "mix"


def lean(images: np.ndarray, plain: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Blends the model's images with plain restorations (N, H, W, C): with hardly any `contrast`
    (N,) the plain ones are better, with more the model's are."""
    share = contrast / (contrast + FAINT**2)
    return plain + share[:, None, None, None] * (images - plain)


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not None; None stands for the default."""
    return {name: value for name, value in settings.items() if value is not None}


def check_settings(
    method: str, settings: Mapping[str, Any], hierarchy: Hierarchy, num_samples: int = 1
) -> dict[str, Any]:
    """The arguments of a method of `methods.Restorer`. Raises ValueError as `restore`."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(sorted(METHODS))}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    chosen = dict(METHODS[method])
    for name, value in given(settings).items():
        if name not in chosen:
            raise ValueError(f"method {method!r} has no {name}, only {', '.join(sorted(chosen))}")
        chosen[name] = value
    if not 1 <= chosen["steps"] <= MAX_STEPS:
        raise ValueError(f"steps must be from 1 to {MAX_STEPS}, not {chosen['steps']}")
    if method == "mix":
        temperature, alpha = chosen.pop("temperature"), chosen.pop("alpha")
        chosen["shares"] = 1 - by_group(hierarchy, "alpha", _numbers("alpha", alpha, 1))
        temperature = _numbers("temperature", temperature, np.inf)
        chosen["temperatures"] = by_group(hierarchy, "temperature", temperature)
        return {**chosen, "trust": _number("trust", chosen["trust"], 10), "spread": 1.0}
    chosen["learning_rate"] = _number("learning_rate", chosen["learning_rate"], 1)
    spread = _number("temperature", chosen.pop("temperature"), np.inf)
    return {**chosen, "spread": spread}


def _number(name, value, largest):
    """Checks that `value` is one number from 0 to `largest`."""
    values = _numbers(name, value, largest)
    if len(values) != 1:
        raise ValueError(f"{name} must be one number, not {value}")
    return values[0]


def _numbers(name, value, largest):
    """Checks that `value` is one or several numbers from 0 to `largest`; an array (K,)."""
    values = np.atleast_1d(np.asarray(value, np.float32))
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= largest).all()):
        upper = "be finite and not negative" if largest == np.inf else f"be from 0 to {largest:g}"
        raise ValueError(f"{name} must {upper}, not {value}")
    return values
