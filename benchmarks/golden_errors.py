"""Errors of the published numbers on a device, in float32 with the highest precision."""

import pathlib
import sys

import jax
import numpy as np
from side_by_side import Program

from nvae_jax.interop import torch_checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[1]


def programs(run):
    """`Program`s that compute the numbers of the golden files in float32."""
    sys.path.insert(1, str(ROOT))  # before any installed package named tests
    from tests.published import GOLDEN_NAMES, Golden, Model

    def program(name):
        model = Model(Golden(name))

        def everything(variables):
            kinds = {kind: model.forward(variables, kind == "train") for kind in ("eval", "train")}
            return kinds, model.sample(variables), model.training_pass(variables["params"])

        def measure(compiled):
            return errors(model, *compiled(model.variables))

        row = {"what": "golden", "name": name}
        return Program(row, lambda: jax.jit(everything).lower(model.variables), measure)

    return [program(name) for name in (GOLDEN_NAMES[:1] if run.small else GOLDEN_NAMES)]


def errors(model, kinds, logits, training):
    """The largest errors, each relative to the largest published number of its array."""
    published, (value, _), grads = model.golden, *training
    found = {"loss": _error(value, published["train/loss"])}
    found["sample"] = _error(logits, published.images("sample/logits_t0.7"))
    for kind, out in kinds.items():
        found[f"{kind}_logits"] = _error(out.logits, published.images(f"{kind}/logits"))
        found[f"{kind}_kl"] = _error(out.kl, published[f"{kind}/kl"])
    found["gradient"] = _gradient_error(model, grads)
    return {name: float(f"{error:.2e}") for name, error in found.items()}


def _gradient_error(model, grads):
    """Error of gradients (or of their norms if only these exist) relative to the largest."""
    whole, norms = model.golden.group("grad"), model.golden.group("gradnorm")
    errors, largest = [], 0.0
    for name, ours, layout in model.published_names({"params": grads}):
        if name in whole:
            published = torch_checkpoint.LAYOUTS[layout](whole[name])
        else:
            ours, published = np.linalg.norm(ours), norms[name]
        errors.append(np.abs(np.asarray(ours) - published).max())
        largest = max(largest, np.abs(published).max())
    return float(max(errors) / largest)


def _error(ours, published):
    return float(np.abs(np.asarray(ours) - published).max() / np.abs(published).max())
