"""Writes the model card, a description of a model with the run's results."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from nvae_jax import __version__, extras
from nvae_jax.experiment import Experiment
from nvae_jax.hub.model_folder import Model
from nvae_jax.trees import by_name

TEXT = """\
---
{metadata}
---

# {name}

{description}.
{note}
| | |
|---|---|
| data | `{data}`, {shape}{binarized} |
| parameters | {parameters:,}, in {dtype}{averaged} |
| latents | {latents} |
| training | step {step:,} of {num_steps:,}, {batch_size} images per step{training} |
| weights | {fingerprint} |

## Numbers

{numbers}

## Use

```bash
pip install 'nvae_jax[hub]'
nvae-jax pull {source} --workdir=runs/{name}
nvae-jax sample --workdir=runs/{name} --num=64 --temperature=0.7 --out=runs/{name}/samples
nvae-jax evaluate --workdir=runs/{name}
```

`config.json` is the run's config and `model.safetensors` contains its variables; loading them
executes no code. Written by nvae_jax {version} with jax {jax}.
"""
NONE = "The run has no evaluation of these weights (`nvae-jax evaluate`)."
HEADER = """\
| split | images | NELBO, nats | −log p, importance-weighted, nats | bits per dimension |
|---|---|---|---|---|"""


def write(
    experiment: Experiment,
    model: Model,
    *,
    name: str,
    source: str,
    dtype: str = "float32",
    license: str = "",
    note: str = "",
) -> str:
    """Writes the card of a model.

    Args:
      experiment: the `Experiment` of its config.
      model: the model, with the results of its evaluations.
      name: name of the model.
      source: the name to pass to `pull`.
      dtype: type of the parameters in the file.
      license: identifier of a licence on the Hub, such as "apache-2.0", or "".
      note: a paragraph by the person who pushes the model, or "".

    Returns:
      YAML metadata for the Hub, followed by Markdown.
    """
    config, snapshot = model.config, model.snapshot
    results = list((model.results or {}).values())
    height, width, channels = experiment.image_shape
    return TEXT.format(
        metadata=_metadata(config.data.name, name, results, license),
        name=name,
        description=experiment.describe(),
        note=f"\n{note.strip()}\n" if note.strip() else "",
        data=config.data.name,
        shape=f"{height}×{width}×{channels}",
        binarized=", binarised" if config.data.binarize else f", {config.data.num_bits} bits",
        parameters=sum(a.size for a in by_name(snapshot.collections["params"]).values()),
        dtype=dtype,
        averaged=f" (an EMA, {config.train.ema_decay})" if config.train.ema_decay else "",
        latents=latents(experiment),
        step=snapshot.step,
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        training=_last_row(model.metrics, snapshot.step),
        fingerprint=f"`{snapshot.fingerprint}`",
        numbers="\n".join([HEADER, *map(_row, results)]) if results else NONE,
        source=source,
        version=__version__,
        jax=jax.__version__,
    )


def latents(experiment: Experiment) -> str:
    """Describes the number of groups of each shape, coarsest first."""
    shapes = Counter(experiment.model.latent_shapes())
    sizes = [f"{count} of {h}×{w}×{z}" for (h, w, z), count in shapes.items()]
    return f"groups: {', '.join(sizes)}"


def _last_row(metrics, step):
    """Describes the training NELBO in the last row up to a step."""
    rows = [json.loads(line) for line in metrics.splitlines()]
    bounds = [row["train/nelbo"] for row in rows if "train/nelbo" in row and row["step"] <= step]
    return f"; NELBO of the last row {bounds[-1]:.2f} nats" if bounds and bounds[-1] else ""


def _row(result):
    rate = result.get("bits_per_dim", result.get("density_bits_per_dim"))
    density = " (of a density on [−1, 1])" if "density_bits_per_dim" in result else ""
    return (
        f"| {result['split']} | {result['num_examples']:,} | {result['nelbo']:.2f} "
        f"| {result['neg_log_p']:.2f} (K = {result['num_iw_samples']}) | {rate:.4f}{density} |"
    )


def usable_results(
    results: Mapping[str, dict[str, Any]], fingerprint: str
) -> dict[str, dict[str, Any]]:
    """Selects results of these weights that have all numbers shown in the card."""
    wanted = {"split", "num_examples", "nelbo", "neg_log_p", "num_iw_samples"}
    return {
        name: result
        for name, result in results.items()
        if result.get("weights") == fingerprint and wanted <= result.keys()
    }


def _metadata(data: str, name: str, results: Iterable[Mapping[str, Any]], license: str) -> str:
    """The card's YAML metadata, made by the Hub's own library."""
    hub: Any = extras.load("huggingface_hub", "hub", "a model card")
    about: dict[str, Any] = {"license": license} if license else {}
    if measured := [_measured(hub, data, result) for result in results]:
        about |= {"model_name": name, "eval_results": [m for pair in measured for m in pair]}
    return hub.ModelCardData(
        library_name="nvae_jax",
        pipeline_tag="unconditional-image-generation",
        tags=["nvae", "vae", "jax", "flax"],
        **about,
    ).to_yaml()


def _measured(hub, data, result):
    numbers = {"NELBO, nats": result["nelbo"], "-log p, nats": result["neg_log_p"]}
    return [
        hub.EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=data,
            dataset_name=data,
            dataset_split=result["split"],
            metric_type=name.partition(",")[0].lower(),
            metric_name=name,
            metric_value=round(float(value), 4),
            metric_args={"num_iw_samples": result["num_iw_samples"]},
        )
        for name, value in numbers.items()
    ]
