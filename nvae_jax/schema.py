"""Checks configs: keys and types, which configs/base.py defines, and the range of each number.

All configs are checked here, whether they come from a file, flags, config.json or Python. Names (of
cells, likelihoods, ...) are checked in `build`, by the tables of what they name.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from nvae_jax.configs import base

LARGEST_INT = 2**31 - 1  # steps and seeds are int32 on the devices
MANY = 10**6
# Far above any real model: the published ones have up to 0.33e9 parameters and 0.2 GB per batch.
MAX_PARAMETERS = 10**11
MAX_BATCH_BYTES = 10**12
# {key: (lowest, highest value)} of every number; combinations of keys are checked in `build`.
RANGES = {
    "version": (0, base.VERSION),
    "seed": (0, LARGEST_INT),
    "data.image_size": (0, 8192),
    "data.channels": (0, 3),
    "data.padding": (0, 4096),
    "data.max_value": (0, 2**32 - 1),
    "data.num_bits": (1, 16),
    "data.workers": (0, 256),
    "model.num_scales": (1, 12),
    "model.num_groups": (1, 1000),
    "model.min_groups": (1, 1000),
    "model.latent_channels": (1, 10_000),
    "model.encoder_width": (1, 10_000),
    "model.decoder_width": (1, 10_000),
    "model.process_blocks": (0, 12),
    "model.preprocess_cells": (1, 100),
    "model.postprocess_cells": (1, 100),
    "model.encoder_cells_per_group": (1, 100),
    "model.decoder_cells_per_group": (1, 100),
    "model.num_flows": (0, 100),
    "model.num_mixtures": (1, 1000),
    "model.unroll": (0, LARGEST_INT),
    "model.norm_groups": (1, MANY),
    "objective.schedule_steps": (0, LARGEST_INT),
    "objective.kl_constant": (0, 1),
    "objective.kl_anneal": (0, 1),
    "objective.kl_min": (0, 1),
    "objective.spectral": (0, 1e6),
    "objective.spectral_init": (0, 1e6),
    "optimizer.learning_rate": (1e-30, 1e3),
    "optimizer.min_learning_rate": (0, 1e3),
    "optimizer.warmup_steps": (0, LARGEST_INT),
    "optimizer.weight_decay": (0, 1e3),
    "optimizer.epsilon": (1e-30, 1e3),
    "optimizer.gradient_clip": (0, 1e12),
    "train.num_steps": (1, LARGEST_INT),
    "train.batch_size": (1, MANY),
    "train.accumulation_steps": (1, MANY),
    "train.ema_decay": (0, 1 - 2**-24),  # the largest float32 below 1
    "train.max_nonfinite_steps": (1, LARGEST_INT),
    "eval.batch_size": (1, MANY),
    "eval.every_steps": (0, LARGEST_INT),
    "eval.max_examples": (0, LARGEST_INT),
    "eval.recalibration_passes": (1, MANY),
    "eval.recalibration_batch_size": (1, MANY),
    "mesh.data": (-1, MANY),
    "mesh.fsdp": (-1, MANY),
    "distributed.timeout": (5, MANY),
    "distributed.start_timeout": (5, MANY),
    "log.every_steps": (1, LARGEST_INT),
    "log.images_every_steps": (0, LARGEST_INT),
    "log.num_images": (1, 10_000),
    "checkpoint.every_steps": (0, LARGEST_INT),
    "checkpoint.keep": (1, LARGEST_INT),
    "checkpoint.keep_best": (0, LARGEST_INT),
}
_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


def _plain(tree):
    return tree.to_dict() if isinstance(tree, ConfigDict) else tree


def flatten(tree: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Converts a nested dict or ConfigDict to {"section.key": value}."""
    flat = traverse_util.flatten_dict(_plain(tree))
    return {".".join(map(str, path)): value for path, value in flat.items()}


DEFAULTS = flatten(base.get_config())


def checked(tree: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Checks a complete config, given as a nested dict or ConfigDict, and returns it as a locked
    ConfigDict.

    Raises:
      ValueError: see `check`.
    """
    check(tree)
    config = base.get_config()
    config.update(_plain(tree))
    return config


def changed(config: ConfigDict, changes: Mapping[str, Any] | None) -> ConfigDict:
    """Returns a locked copy of `config` with some values changed.

    Args:
      config: a ConfigDict.
      changes: {"section.key": value}.

    Raises:
      ValueError: for an unknown key or an invalid value.
    """
    tree = traverse_util.unflatten_dict({**flatten(config), **(changes or {})}, sep=".")
    return checked(tree)


def check(tree: Mapping[str, Any] | ConfigDict) -> None:
    """Checks that a nested dict or ConfigDict is a complete and valid config.

    Raises:
      ValueError: if keys are unknown or missing, a value has another type than in configs/base.py
        or is out of range, or model or batches are larger than any computer could hold.
    """
    if not isinstance(tree, Mapping | ConfigDict):
        raise ValueError(f"a config must be a ConfigDict, not {_short(tree)}")
    flat = flatten(tree)
    _check_keys(flat)
    for key, value in flat.items():
        _check_value(key, value)
    _check_size(flat)


def missing_keys(flat: Mapping[str, Any]) -> list[str]:
    """The keys that a flat config lacks, except "version": without it the version is 0."""
    return [key for key in DEFAULTS if key not in flat and key != "version"]


def _check_keys(flat):
    unknown = [key for key in flat if key not in DEFAULTS]
    if unknown:
        raise ValueError(f"unknown keys: {join_first(unknown)} (see configs/base.py)")
    if lacking := missing_keys(flat):
        raise ValueError(
            f"the config lacks {join_first(lacking)}: start from get_config() of configs/base.py, "
            "which has every key"
        )


def _check_value(key, value):
    kind = type(DEFAULTS[key])
    fits = isinstance(value, (int, float) if kind is float else kind)
    if kind is not bool and isinstance(value, bool):
        fits = False
    low, high = RANGES.get(key, (None, None))
    if not fits or (low is not None and not low <= value <= high):
        within = "" if low is None else f" from {_number(low)} to {_number(high)}"
        raise ValueError(f"{key} must be {_KINDS[kind]}{within}, not {_short(value)}")


def _check_size(flat):
    count = _min_parameters(flat)
    if count > MAX_PARAMETERS:
        raise ValueError(
            f"a model of model.encoder_width={flat['model.encoder_width']}, "
            f"model.decoder_width={flat['model.decoder_width']} and "
            f"model.num_groups={flat['model.num_groups']} has more than {count:.1e} parameters: at "
            f"most {MAX_PARAMETERS:.0e} are possible"
        )
    image_bytes = 4 * max(flat["data.image_size"], 1) ** 2 * max(flat["data.channels"], 1)
    for key in ("train.batch_size", "eval.batch_size", "eval.recalibration_batch_size"):
        if flat[key] * image_bytes > MAX_BATCH_BYTES:
            raise ValueError(
                f"{key}={flat[key]} images of data.image_size={flat['data.image_size']} are "
                f"{flat[key] * image_bytes / 1e9:,.0f} GB: at most {MAX_BATCH_BYTES / 1e9:,.0f} "
                "are possible"
            )


def _min_parameters(flat):
    """A lower bound on the number of parameters: a cell of width w has at least 6·w² parameters,
    and the width doubles whenever the resolution is halved."""
    cells = 2 ** (flat["model.process_blocks"] + flat["model.num_scales"] - 1)
    count = 0
    for tower in ("encoder", "decoder"):
        widest = flat[f"model.{tower}_width"] * cells
        count += 6 * widest**2 * flat[f"model.{tower}_cells_per_group"]
    groups = 1 if flat["model.adaptive_groups"] else flat["model.num_groups"]
    return count * groups


def _number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.9g}"


def _short(value):
    """A value's repr on one line, shortened if it is long."""
    if isinstance(value, int) and abs(value) > 10**12:
        return f"{'-' if value < 0 else ''}10^{math.log10(abs(value)):.3g}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def join_first(names: Sequence[str], limit: int = 5) -> str:
    """Joins the first names of a list with commas and says how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
