"""Evaluates a model on a split: NELBO and importance-weighted bound (Burda et al. 2016)."""

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from nvae_jax import files, outputs, paths, processes, progress, reporting, sharding, steps
from nvae_jax.data import pipeline, splits
from nvae_jax.experiment import Experiment
from nvae_jax.interrupt import Interrupt, Interrupted
from nvae_jax.likelihoods import ImageDistribution, Likelihood, bits_per_dim
from nvae_jax.models.nvae import NVAE
from nvae_jax.ops import compiler
from nvae_jax.programs import shared
from nvae_jax.state import Snapshot


def evaluate(
    model: NVAE,
    likelihood: Likelihood,
    variables: VariableDict,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mesh: jax.sharding.Mesh | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Computes bounds on -log p(x), averaged over all examples; see `Evaluator`."""
    return Evaluator(model, likelihood, mesh)(variables, batches, **options)


class Evaluator:
    """Computes bounds on -log p(x), averaged over all examples. Compiled at the first call.

    The encoder runs once per batch. Posterior draws are processed one after the other, so memory
    does not grow with their number.

    Args:
      model: an `NVAE`.
      likelihood: maps logits to an image distribution.
      mesh: devices that share each batch; None uses one device.
    """

    def __init__(self, model: NVAE, likelihood: Likelihood, mesh: jax.sharding.Mesh | None = None):
        self._mesh = mesh or sharding.make_mesh(sharding.MeshSettings(), jax.local_devices()[:1])
        self._encode, self._bound, self._gather = _programs(model, likelihood, self._mesh)
        self._images = image_distribution(model, likelihood)

    def __call__(
        self,
        variables: VariableDict,
        batches: Iterable[Mapping[str, np.ndarray]],
        *,
        num_iw_samples: int = 1,
        seed: int = 0,
        progress: Callable[[float], Any] | None = None,
        stopped: Callable[[], Any] | None = None,
    ) -> dict[str, Any] | None:
        """Evaluates the model on all batches.

        Args:
          variables: the model's variables; batch norm uses the running statistics.
          batches: this host's shard of each batch: {"image": (B, H, W, C) in [0, 1],
            "mask": (B,)}.
          num_iw_samples: K, posterior draws per image. The NELBO averages over the same draws.
          seed: seed of the draws.
          progress: called after every draw with the number of examples done so far; examples of the
            current batch count in proportion to their finished draws.
          stopped: called before every draw; a true result ends the evaluation. It must return the
            same on every host.

        Returns:
          a dict in nats per image: `nelbo`, `reconstruction`, `kl`, `kl_group` (a list) and
          `neg_log_p` = -log mean_k p(x, z_k) / q(z_k | x); and in bits per image value
          `nelbo_bits_per_dim` and `bits_per_dim` (of `neg_log_p`), which are called
          `nelbo_density_bits_per_dim` and `density_bits_per_dim` if the likelihood is a density on
          [-1, 1]. None if the evaluation was stopped.

        Raises:
          ValueError: if K is less than 1, or there is no example.
        """
        if num_iw_samples < 1:
            raise ValueError(f"num_iw_samples must be at least 1, not {num_iw_samples}")
        key, sums, count = jax.random.key(seed), {}, 0
        first = 0
        for batch in batches:
            mask = np.asarray(self._gather(sharding.to_devices(self._mesh, batch["mask"])))
            part, indices = int(mask.sum()), np.arange(first, first + len(mask))
            first += len(mask)
            draws = self._draws(variables, batch["image"], key, indices, num_iw_samples)
            if progress:
                draws = _with_progress(draws, progress, count, part / num_iw_samples)
            terms = _average(draws, num_iw_samples, stopped or (lambda: False))
            if terms is None:
                return None
            for name, value in terms.items():
                # Sums over a split are computed in float64, because float32 would lose digits.
                sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)[mask].sum(0)
            count += part
            if progress:
                progress(count)
        if not count:
            raise ValueError("there is no example to evaluate")
        return _summary(sums, count, num_iw_samples, self._images)

    def _draws(self, variables, images, key, indices, num_samples):
        """Yields the terms (B, ...) of each posterior draw."""
        images = sharding.to_devices(self._mesh, images)
        features = self._encode(variables, images)
        for k in range(num_samples):
            yield self._bound(variables, features, images, jax.random.fold_in(key, k), indices)


@shared
def _programs(model, likelihood, mesh):
    """Returns the jitted functions (encode, bound, gather)."""
    everywhere = sharding.replicated(mesh)
    options = compiler.options(mesh.devices.flat[0].platform)
    encode, bound = steps.make_encode_step(model), steps.make_bound_step(model, likelihood)
    return (
        jax.jit(encode, compiler_options=options),
        jax.jit(bound, out_shardings=everywhere, compiler_options=options),
        jax.jit(lambda mask: mask, out_shardings=everywhere),
    )


def _with_progress(draws, progress, done, examples):
    """Iterates over `draws` and reports progress: each adds `examples` to the number `done`."""
    for k, terms in enumerate(draws):
        progress(int(done + k * examples))
        yield terms


def _average(draws, num_samples, stopped):
    """Averages the terms (B, ...) of one batch over posterior draws; returns None if stopped."""
    log_weights, total = [], None
    for terms in draws:
        # At most two draws are queued on the device, so that stopping need not wait for many.
        jax.block_until_ready(log_weights[-1:])
        if stopped():
            return None
        log_weights.append(terms.pop("log_weight"))
        total = terms if total is None else jax.tree.map(jnp.add, total, terms)
    mean = jax.tree.map(lambda t: t / num_samples, total)
    log_mean_weight = jax.nn.logsumexp(jnp.stack(log_weights), axis=0) - np.log(num_samples)
    return {**mean, "neg_log_p": -log_mean_weight}


def image_distribution(model: NVAE, likelihood: Likelihood) -> ImageDistribution:
    """The model's distribution of images without values, for its number of dimensions."""
    size = model.hierarchy.image_size
    logits: Any = jax.ShapeDtypeStruct((1, size, size, model.output_channels), jnp.float32)
    return likelihood(logits)


def _summary(sums, count, num_iw_samples, images):
    mean = {name: value / count for name, value in sums.items()}
    kl = float(mean["kl"].sum())
    nelbo = float(mean["reconstruction"]) + kl
    neg_log_p = float(mean["neg_log_p"])
    return {
        "num_examples": count,
        "num_iw_samples": num_iw_samples,
        "nelbo": nelbo,
        "reconstruction": float(mean["reconstruction"]),
        "kl": kl,
        "kl_group": mean["kl"].tolist(),
        "neg_log_p": neg_log_p,
        f"nelbo_{images.bits_key}": float(bits_per_dim(nelbo, images.num_dims)),
        images.bits_key: float(bits_per_dim(neg_log_p, images.num_dims)),
        "num_dims": images.num_dims,
    }


class HeldOutEvaluator:
    """Evaluates the NELBO of held-out images during training.

    The images and the draws are the same every time, so that results of different steps are
    comparable. They come from the validation split, or from the test split if there is none.

    Args:
      experiment: an `Experiment`.
      max_examples: number of images to use, from the first; None uses all.
    """

    def __init__(self, experiment: Experiment, max_examples: int | None = None):
        self._experiment, self._max_examples = experiment, max_examples
        self._evaluator = Evaluator(experiment.model, experiment.likelihood, experiment.mesh)
        has_validation = "validation" in splits.names(experiment.data)
        self.split = "validation" if has_validation else "test"

    def __call__(
        self, variables: VariableDict, stopped: Callable[[], Any] | None = None
    ) -> dict[str, float] | None:
        """Evaluates a model.

        Args:
          variables: the model's variables.
          stopped: as for `Evaluator`.

        Returns:
          {"nelbo", "reconstruction", "kl"} in nats and the NELBO in bits per image value, or None
          if the evaluation was stopped.
        """
        batches = _batches(self._experiment, self.split, None, 0, self._max_examples)
        result = self._evaluator(variables, batches, stopped=stopped)
        if result is None:
            return None
        rates = ("nelbo_bits_per_dim", "nelbo_density_bits_per_dim")
        names = ("nelbo", "reconstruction", "kl", *rates)
        return {name: result[name] for name in names if name in result}


def _batches(experiment, split, batch_size, seed, max_examples):
    """Iterates over this host's shards of all batches of a split."""
    batch_size = batch_size or experiment.evaluation.batch_size
    batch_size = pipeline.eval_batch_size(batch_size, max_examples)
    return pipeline.eval_batches(
        experiment.data,
        split=split,
        batch_size=sharding.round_up(experiment.mesh, batch_size),
        seed=seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        max_examples=max_examples,
    )


def evaluate_run(
    workdir: str | Path,
    experiment: Experiment,
    state: Snapshot,
    *,
    split: str,
    num_iw_samples: int,
    max_examples: int | None,
    batch_size: int | None,
    seed: int,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluates a loaded run, prints the result and writes it to `workdir/eval/`.

    If the result cannot be written, a warning is printed on stderr.

    Args:
      workdir: the run directory.
      experiment: an `Experiment`.
      state: a `state.Snapshot`, from `loading.load_run`.
      split: split of the data set. If there is no "test" split, "validation" is evaluated and a
        message says so.
      num_iw_samples: K, posterior draws per image.
      max_examples: number of images to use, from the first; None uses all.
      batch_size: None uses the config's.
      seed: seed of posterior draws and of binarisation.
      overwrite: whether to replace a result of other settings.

    Returns:
      the result, as printed and written.

    Raises:
      ValueError: if the data are missing, or a result of other settings exists.
      Interrupted: after SIGINT or SIGTERM to any host; nothing is written.
    """
    with processes.raise_together():
        used = pipeline.resolve_split(experiment.data, split)
        batches = _batches(experiment, used, batch_size, seed, max_examples)
        total = pipeline.num_examples(experiment.data, used)
        settings = {
            "step": state.step,
            "weights": state.fingerprint,
            "split": used,
            "seed": seed,
            "num_iw_samples": num_iw_samples,
            "max_examples": max_examples or "all",
            "batch_size": batch_size or experiment.evaluation.batch_size,
        }
        path = _result_path(workdir, settings)
    processes.check_same("settings", {**settings, "num_examples": total})
    processes.on_primary(lambda: outputs.check_settings([path], settings, overwrite=overwrite))
    if used != split:
        reporting.log(f"{experiment.data.name} has no split {split!r}: evaluating {used!r}")
    total = min(total, max_examples or total)
    result = settings | _evaluate_interruptibly(experiment, state, batches, total, settings)
    reporting.log(_report(result))
    processes.on_primary(lambda: _write(path, result))
    return result


def _evaluate_interruptibly(experiment, state, batches, total, settings):
    """Evaluates `total` images with a progress bar; raises Interrupted after a signal."""
    with (
        Interrupt("stopping") as interrupt,
        progress.bar("evaluating", unit="image", total=total) as bar,
    ):
        result = evaluate(
            experiment.model,
            experiment.likelihood,
            state.variables,
            batches,
            num_iw_samples=settings["num_iw_samples"],
            seed=settings["seed"],
            mesh=experiment.mesh,
            progress=lambda done: bar.update(done - bar.n),
            stopped=interrupt.stop,
        )
        if result is None:
            raise Interrupted("stopped before the end: nothing was written", interrupt.stop())
    return result


def _result_path(workdir, settings):
    name = "{split}_step_{step:08d}_k{num_iw_samples}".format(**settings)
    name += "" if settings["max_examples"] == "all" else f"_first{settings['max_examples']}"
    name += f"_seed{settings['seed']}" if settings["seed"] else ""
    return paths.parse(workdir) / "eval" / f"{name}.json"


def _write(path, result):
    """Writes the result, or warns that it cannot be written: the run may be another user's."""
    try:
        files.write_json(path, result)
    except OSError as error:
        print(f"warning: the result is not saved: {error}", file=sys.stderr)
    else:
        reporting.log(f"written to {path}")


def _report(result):
    return "\n".join(
        (
            f"{result['split']}: {result['num_examples']} images, step {result['step']}",
            f"  NELBO {result['nelbo']:.4f} nats ({_rate(result, 'nelbo_')}) = "
            f"reconstruction {result['reconstruction']:.4f} + KL {result['kl']:.4f}",
            f"  importance-weighted -log p, K = {result['num_iw_samples']}: "
            f"{result['neg_log_p']:.4f} nats ({_rate(result)})",
        )
    )


def _rate(result, prefix=""):
    """Formats a result in bits per image value."""
    if (key := f"{prefix}bits_per_dim") in result:
        return f"{result[key]:.4f} bits/dim"
    value = result[f"{prefix}density_bits_per_dim"]
    return f"{value:.4f} bits/dim of a density on [-1, 1]: not comparable with bits/dim of pixels"
