"""How good are samples? Their distances from images: FID (Heusel et al. 2017), KID (Bińkowski et
al. 2018), precision and recall (Kynkäänniemi et al. 2019), and one that needs no weights.

Features of every thousand images are kept in files as soon as they are there, so that a call that
was stopped goes on where it was.
"""

import hashlib
import resource
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nvae_jax import (
    capacity,
    distributed,
    files,
    inputs,
    outputs,
    paths,
    pictures,
    reporting,
    sample,
)
from nvae_jax.build import Experiment
from nvae_jax.data import transforms
from nvae_jax.data.spec import DataSpec
from nvae_jax.image_sets import ImageSet, open_set
from nvae_jax.metrics import statistics
from nvae_jax.metrics.features import Features, Inception, PrincipalComponents
from nvae_jax.metrics.parts import PART, Parts, regroup
from nvae_jax.metrics.report import report
from nvae_jax.prior_samples import PriorSamples
from nvae_jax.state import Snapshot

LEAST = 5  # images: precision and recall look at the third nearest of the others


@dataclass(frozen=True)
class Protocol:
    """What makes numbers comparable.

    Attributes:
      pixels: "uint8", as of image files, or "float": not rounded.
      temperature: the only one allowed; None: any.
      num_reference: images of the reference, at most; None: all.
    """

    pixels: str
    temperature: float | None = None
    num_reference: int | None = None

    def prepare(self, images: np.ndarray, spec: DataSpec) -> np.ndarray:
        """Images as they are read (B, H, W, C), with the bits of the model, as uint8 or float."""
        checked = inputs.check(images, spec) if len(images) else []
        if not len(checked):
            return self.rounded(np.zeros(images.shape, np.float32))
        return self.rounded(np.stack([transforms.quantize(i, spec.num_bits) for i in checked]))

    def rounded(self, images: np.ndarray) -> np.ndarray:
        """Images in [0, 1] as uint8, or as they are."""
        return pictures.to_uint8(images) if self.pixels == "uint8" else images


PROTOCOLS = {
    "standard": Protocol("uint8"),
    "published": Protocol("float", temperature=1.0, num_reference=50_000),
}


def fid_run(
    workdir: str | Path,
    experiment: Experiment,
    state: Snapshot,
    *,
    out: str | Path,
    features: str = "inception",
    weights: str | None = None,
    weights_sha256: str | None = None,
    components: int = 64,
    reference: str = "train",
    protocol: str = "standard",
    num: int = 50_000,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Compares samples with a reference, and writes `fid.json` and `reference.npz` (the reference's
    statistics and features, to be used again). A call that was stopped goes on where it was.

    Args:
      workdir: the run directory.
      experiment: from `build.build`.
      state: a `state.Snapshot`, from `checkpoint.load_run`.
      out: a folder.
      features: "inception" or "pca".
      weights: file of the Inception network.
      weights_sha256: of that file, where it is not the published one.
      components: of "pca", fitted to training images.
      reference: what `image_sets.open_set` takes, or an `.npz` file of statistics.
      protocol: a name in `PROTOCOLS`.
      num: samples.
      overwrite: whether to replace a result of other settings.
      **options: of `PriorSamples`.

    Returns:
      the result, as written to `fid.json`; see docs/metrics.md.

    Raises:
      ValueError: the weights or the reference are none, a number is out of range, or the files may
        not be written.
    """
    samples, out, spec = PriorSamples(num, **options), paths.parse(out), experiment.data
    with distributed.raise_together():
        chosen = _check(experiment, protocol, samples)
        compute = _features(spec, chosen, features, weights, weights_sha256, components)
        made_by = {**compute.about, "feature_size": compute.size, "pixels": chosen.pixels}
        stored = statistics.load(reference, made_by)
        images = None if stored else open_set(spec, reference)
        num_reference = _count(images, chosen) if images else stored and stored.num
        metadata = {
            "model": sample.describe_model(experiment),
            "step": state.step,
            "weights": state.fingerprint,
            "protocol": protocol,
            **made_by,
            "channels": "grey repeated to 3" if spec.channels == 1 else "as they are",
            "bits": spec.num_bits,
            "reference": images.name if images else Path(reference).name,
            "num_reference": num_reference,
            **samples.metadata(experiment),
        }
        written = [out / "fid.json", *([out / "reference.npz"] if images else [])]
        outputs.check(written, metadata, inputs=[reference], overwrite=overwrite)
        # Features once as they are computed, and the reference's again to be kept.
        capacity.check_disk(out, num=(num + 2 * (num_reference or 0), 4 * compute.size))
    notes = _warnings(num, num_reference, compute.size)
    unfinished = out / f"unfinished-{_digest(metadata)}"
    if images:
        parts = Parts(unfinished / "reference", num_reference or 0)
        stored = _reference_statistics(parts, images, spec, chosen, compute)
    assert stored is not None
    draw = partial(samples.batches, workdir, experiment, state, rounded=False)
    drawn = _sample_statistics(Parts(unfinished / "samples", num), draw, chosen, compute)
    found = statistics.compare(drawn, stored, inception=features == "inception")
    result = {**metadata, **found, "notes": notes, **peak_memory()}
    distributed.barrier("all have read the features")
    if distributed.is_primary():
        if images:
            statistics.save(written[1], stored, metadata)
        files.write_json(written[0], result)
        files.remove_tree(unfinished)
        report(result, written)
    return result


def _reference_statistics(parts, images, spec, protocol, compute):
    batches = images.batches(PART, parts.num, parts.first_missing())
    prepared = (protocol.prepare(batch, spec) for _, batch in batches)
    parts.add(prepared, compute, f"features of {images.name}")
    return parts.statistics()


def _sample_statistics(parts, draw, protocol, compute):
    """`draw(first=number)` gives batches of samples from that number on."""
    first = parts.first_missing()
    if 0 < first < parts.num:
        reporting.log(f"going on with sample {first}")
    if first < parts.num:
        batches = regroup(draw(first=first))
        parts.add(map(protocol.rounded, batches), compute, "features of samples")
    return parts.statistics()


def _check(experiment, protocol, samples):
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    chosen = PROTOCOLS[protocol]
    samples.check(experiment)
    only = chosen.temperature
    if only is not None and (np.asarray(samples.temperature) != only).any():
        raise ValueError(f"the protocol {protocol} is of temperature {only:g} alone")
    if chosen.pixels == "float" and samples.decoder != "mean":
        raise ValueError(f"the protocol {protocol} is of the decoder's mean")
    _check_num(samples.num, "num")
    return chosen


def _check_num(num, what):
    if num < LEAST:
        raise ValueError(f"{what}: there must be at least {LEAST} images, not {num}")


def _count(images: ImageSet, protocol):
    num = min(len(images.images), protocol.num_reference or len(images.images))
    _check_num(num, f"the reference {images.name}")
    return num


def _features(spec, protocol, name, weights, sha256, components) -> Features:
    if name == "inception":
        return Inception(weights, sha256)
    if name != "pca":
        raise ValueError(f"unknown features {name!r}; known: inception, pca")
    training = open_set(spec, "train").batches(PART)
    return PrincipalComponents((protocol.prepare(batch, spec) for _, batch in training), components)


def _warnings(num, num_reference, size):
    """What of the counts makes numbers mean nothing; printed, too."""
    counts = {"samples": num, "images of the reference": num_reference}
    found = [
        f"{count} {what} for {size} features: the number means nothing"
        for what, count in counts.items()
        if count is not None and count <= size
    ]
    for warning in found if distributed.is_primary() else ():
        print(f"warning: {warning}", file=sys.stderr)
    return found


def _digest(metadata):
    return hashlib.sha256(files.to_json(metadata, sort_keys=True).encode()).hexdigest()[:12]


def peak_memory() -> dict[str, float | None]:
    """The most memory that this process, and its first device, have had, in GB; None of a device
    that does not tell."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size *= 1 if sys.platform == "darwin" else 1024
    device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "peak_memory_gb": round(size / 1e9, 2),
        "peak_device_memory_gb": device and round(device / 1e9, 2),
    }
