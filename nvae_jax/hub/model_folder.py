"""A trained model as files that contain only data: `push` writes them and `pull` reads them.

config.json        the run's config, without paths of the machine that trained it
model.safetensors  the variables, with their step and their fingerprint; the parameters can be
                   rounded to 16 bits
README.md          the model card
metrics.jsonl      metrics of training (optional)
eval/NAME.json     results of evaluation (optional)
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nvae_jax import build, extras, files, run_directory, schema
from nvae_jax.state import Snapshot
from nvae_jax.trees import by_name

CONFIG, WEIGHTS, CARD = run_directory.CONFIG, "model.safetensors", "README.md"
METRICS, RESULTS = run_directory.METRICS, "eval"
PATTERNS = (CONFIG, WEIGHTS, CARD, METRICS, f"{RESULTS}/*.json")
STEP, FINGERPRINT = "nvae_jax.step", "nvae_jax.weights"
# {name in safetensors: name in --dtype}
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
PATHS = {"data.dir": "", "train.init_from": "", "train.init_optimizer": False}


@dataclass(frozen=True, eq=False)
class Model:
    """The content of a model folder.

    Attributes:
      config: the run's config.
      snapshot: the variables.
      metrics: the text of metrics.jsonl.
      results: {file name: result} of evaluations.
    """

    config: ConfigDict
    snapshot: Snapshot
    metrics: str = ""
    results: Mapping[str, dict[str, Any]] | None = None


def safetensors(purpose: str = "a model's file") -> Any:
    """Imports the package safetensors, from the extra `hub`."""
    library = extras.load("safetensors", "hub", purpose)
    extras.load("safetensors.numpy", "hub", purpose)
    return library


def shareable(config: ConfigDict) -> ConfigDict:
    """Removes paths of this machine from a config."""
    return schema.changed(config, PATHS)


def rounded(snapshot: Snapshot, dtype: str) -> Snapshot:
    """Rounds parameters to `dtype` and returns the snapshot as float32 NumPy arrays.

    Raises:
      ValueError: if a parameter exceeds the range of `dtype`.
    """
    variables = jax.tree.map(np.asarray, snapshot.variables)
    with np.errstate(over="ignore"):  # checked below
        params = jax.tree.map(
            lambda a: a.astype(jnp.dtype(dtype)).astype(a.dtype), variables["params"]
        )
    result = Snapshot(snapshot.step, {**variables, "params": params})
    if broken := result.nonfinite():
        raise ValueError(
            f"--dtype={dtype}: {broken[0]} exceeds its range: name bfloat16 or float32"
        )
    return result


def write(folder: Path, model: Model, card: str, dtype: str = "float32") -> None:
    """Writes a model and its card to an existing folder.

    Args:
      folder: the folder.
      model: the model.
      card: text of the model card.
      dtype: type of the stored parameters, which must be representable exactly (see `rounded`).
    """
    metadata = {STEP: str(model.snapshot.step), FINGERPRINT: model.snapshot.fingerprint}
    kinds = {"params": jnp.dtype(dtype)}
    arrays = {
        name: np.asarray(a, kinds.get(name.partition("/")[0], a.dtype))
        for name, a in by_name(model.snapshot.collections).items()
    }
    with files.atomic_write(folder / WEIGHTS) as temporary:
        safetensors().numpy.save_file(arrays, temporary, metadata)
    run_directory.save_config(folder, model.config)
    run_directory.write_text(folder / CARD, card)
    if model.metrics:
        run_directory.write_text(folder / METRICS, model.metrics)
    for name, result in (model.results or {}).items():
        files.write_json(folder / RESULTS / name, result)


def read(folder: Path) -> Model:
    """Reads and checks the model in `folder`, without executing any code of it.

    Raises:
      ValueError: if a file is missing, damaged, or belongs to another program or model; one line.
      OSError: if a file cannot be read.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no model: it has no {name}")
    config = run_directory.load_config(folder)
    metrics, results = _read_metrics(folder / METRICS), read_results(folder)
    with _open(folder / WEIGHTS) as file:
        _read_step(file, folder / WEIGHTS)
    try:
        build.check(config)
        wanted = build.build_for_inference(config).abstract_variables()
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} cannot be used: {error}") from error
    return Model(config, _read_weights(folder / WEIGHTS, wanted), metrics, results)


def read_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of a weights file; {} if it cannot be read."""
    try:
        with _open(path) as file:
            return file.metadata() or {}
    except (ValueError, OSError):
        return {}


def _open(path):
    library = safetensors()
    files.check_regular(path)
    try:
        return library.safe_open(path, framework="numpy")
    except (library.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file, or damaged: {error}") from None


def _read_weights(path, wanted):
    with _open(path) as file:
        step, metadata = _read_step(file, path), file.metadata()
        found = {name: file.get_slice(name) for name in file.keys()}
        _check_arrays(path, found, by_name(wanted))
        arrays = [file.get_tensor(name).astype(np.float32) for name in by_name(wanted)]
    snapshot = Snapshot(step, jax.tree.unflatten(jax.tree.structure(wanted), arrays))
    if broken := snapshot.nonfinite():
        raise ValueError(f"{path} has NaN or infinity in {len(broken)} array(s), first {broken[0]}")
    if snapshot.fingerprint != metadata.get(FINGERPRINT):
        raise ValueError(
            f"{path} is damaged or was changed: its arrays do not match their fingerprint"
        )
    return snapshot


def _read_step(file, path):
    step = (file.metadata() or {}).get(STEP, "")
    if not re.fullmatch(r"\d{1,10}", step) or int(step) > schema.LARGEST_INT:
        raise ValueError(f"{path} was not written by nvae_jax: its metadata have no {STEP}")
    return int(step)


def _check_arrays(path, found, wanted):
    """Raises ValueError, before any array is read, if they do not fit the config's model."""
    if found.keys() != wanted.keys():
        lacking, unknown = wanted.keys() - found.keys(), found.keys() - wanted.keys()
        problem = f"lacks {min(lacking)}" if lacking else f"also has {min(unknown)}"
        raise ValueError(f"{path} does not fit the model in its {CONFIG}: it {problem}")
    for name, array in found.items():
        kind, shape = array.get_dtype(), tuple(array.get_shape())
        if shape != wanted[name].shape or kind not in DTYPES:
            raise ValueError(
                f"{path} does not fit the model in its {CONFIG}: {name} is {kind} {shape}, not "
                f"F32 {wanted[name].shape}"
            )


def _read_metrics(path):
    """Reads the rows, each a JSON object with a step, as text."""
    if not path.is_file():
        return ""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        row = _json(line)
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ValueError(f"{path}, line {number}: it is not a row of metrics with a step")
    return "".join(f"{line}\n" for line in lines)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads the results of evaluations in a folder as {file name: result}.

    Raises:
      ValueError: if a file does not contain a JSON object.
    """
    results = {}
    for path in sorted((folder / RESULTS).glob("*.json")):
        files.check_regular(path)
        results[path.name] = _json(path.read_text())
        if not isinstance(results[path.name], dict):
            raise ValueError(f"{path} is not the result of an evaluation: it is not a JSON object")
    return results


def _json(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
