"""Distances of samples from reference images: FID (Heusel et al. 2017), KID (Bińkowski et al.
2018), precision and recall (Kynkäänniemi et al. 2019), and a Fréchet distance without weights.

Features are saved for every thousand images, so that an interrupted call can be resumed.
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
    checks,
    files,
    inputs,
    outputs,
    paths,
    pictures,
    processes,
    reporting,
)
from nvae_jax.data import transforms
from nvae_jax.data.spec import DataSpec
from nvae_jax.experiment import Experiment
from nvae_jax.image_sets import ImageSet, open_set
from nvae_jax.metrics import statistics
from nvae_jax.metrics.features import Features, Inception, PrincipalComponents
from nvae_jax.metrics.parts import PART, Parts, regroup
from nvae_jax.metrics.report import report
from nvae_jax.prior_samples import PriorSamples
from nvae_jax.state import Snapshot

MIN_IMAGES = 5  # precision and recall use the third nearest of the other images


@dataclass(frozen=True)
class Protocol:
    """A protocol of evaluation; only numbers of the same protocol are comparable.

    Attributes:
      pixels: "uint8" for rounded values, as in image files, or "float".
      temperature: the only allowed temperature; None allows any.
      num_reference: largest number of reference images; None uses all.
    """

    pixels: str
    temperature: float | None = None
    num_reference: int | None = None

    def prepare(self, images: np.ndarray, spec: DataSpec, source: str) -> np.ndarray:
        """Reduces images (B, H, W, C) of the set `source` to the model's bits and rounds them if
        the protocol does. Raises ValueError, naming the set, for images outside [0, 1]."""
        if not len(images):
            return self.round(np.zeros(images.shape, np.float32))
        with checks.naming(source):
            checked = inputs.check(images, spec)
        return self.round(np.stack([transforms.quantize(i, spec.num_bits) for i in checked]))

    def round(self, images: np.ndarray) -> np.ndarray:
        """Rounds images in [0, 1] to uint8, or leaves them as they are."""
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
    """Compares samples with a reference set.

    Writes `fid.json` and `reference.npz` (statistics and features of the reference, for later
    calls) to the folder `out`. An interrupted call is resumed by the same call.

    Args:
      workdir: the run directory.
      experiment: an `Experiment`.
      state: a `state.Snapshot`, from `loading.load_run`.
      out: output folder.
      features: "inception" or "pca".
      weights: file of the Inception network's weights.
      weights_sha256: hash of that file, if it is not the published one.
      components: number of principal components, which are fitted to training images.
      reference: a set for `image_sets.open_set`, or an `.npz` file of statistics.
      protocol: a key of `PROTOCOLS`.
      num: number of samples.
      overwrite: whether to replace a result of other settings.
      **options: settings of `PriorSamples`.

    Returns:
      the result, as written to `fid.json`; see docs/metrics.md.

    Raises:
      ValueError: if the weights or the reference are not valid, a number is out of range, or the
        files must not be written.
    """
    samples, out, spec = PriorSamples(num, **options), paths.parse(out), experiment.data
    with processes.raise_together():
        chosen = _check(experiment, protocol, samples)
        compute = _features(spec, chosen, features, weights, weights_sha256, components)
        made_by = {**compute.about, "feature_size": compute.size, "pixels": chosen.pixels}
        stored = statistics.load(reference, made_by)
        images = None if stored else open_set(spec, reference)
        num_reference = _count(images, chosen) if images else stored and stored.num
        metadata = {
            **experiment.metadata(state),
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
        # Features of both sets are saved once, and those of the reference again in reference.npz.
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
    processes.barrier("all have read the features")
    if processes.is_primary():
        if images:
            statistics.save(written[1], stored, metadata)
        files.write_json(written[0], result)
        files.remove_tree(unfinished)
        report(result, written)
    return result


def _reference_statistics(parts, images, spec, protocol, compute):
    batches = images.batches(PART, parts.num, parts.first_missing())
    prepared = (protocol.prepare(batch, spec, images.name) for _, batch in batches)
    parts.add(prepared, compute, f"features of {images.name}")
    return parts.statistics()


def _sample_statistics(parts, draw, protocol, compute):
    """Statistics of samples; `draw(first=number)` draws batches from that number on."""
    first = parts.first_missing()
    if 0 < first < parts.num:
        reporting.log(f"resuming at sample {first}")
    if first < parts.num:
        batches = regroup(draw(first=first))
        parts.add(map(protocol.round, batches), compute, "features of samples")
    return parts.statistics()


def _check(experiment, protocol, samples):
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    chosen = PROTOCOLS[protocol]
    samples.check(experiment)
    only = chosen.temperature
    if only is not None and (np.asarray(samples.temperature) != only).any():
        raise ValueError(f"the protocol {protocol} requires temperature {only:g}")
    if chosen.pixels == "float" and samples.decoder != "mean":
        raise ValueError(f"the protocol {protocol} requires decoder=mean")
    _check_num(samples.num, "num")
    return chosen


def _check_num(num, what):
    if num < MIN_IMAGES:
        raise ValueError(f"{what}: there must be at least {MIN_IMAGES} images, not {num}")


def _count(images: ImageSet, protocol):
    num = min(len(images.images), protocol.num_reference or len(images.images))
    _check_num(num, f"the reference {images.name}")
    return num


def _features(spec, protocol, name, weights, sha256, components) -> Features:
    if name == "inception":
        return Inception(weights, sha256)
    if name != "pca":
        raise ValueError(f"unknown features {name!r}; known: inception, pca")
    training = open_set(spec, "train")
    batches = (protocol.prepare(batch, spec, training.name) for _, batch in training.batches(PART))
    return PrincipalComponents(batches, components)


def _warnings(num, num_reference, size):
    """Prints and returns warnings of too few images for meaningful numbers."""
    counts = {"samples": num, "reference images": num_reference}
    found = [
        f"{count} {what} for {size} features: the result is meaningless"
        for what, count in counts.items()
        if count is not None and count <= size
    ]
    for warning in found if processes.is_primary() else ():
        print(f"warning: {warning}", file=sys.stderr)
    return found


def _digest(metadata):
    return hashlib.sha256(files.to_json(metadata, sort_keys=True).encode()).hexdigest()[:12]


def peak_memory() -> dict[str, float | None]:
    """The peak memory of this process and of its first device, in GB; None if the device does not
    report it."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size *= 1 if sys.platform == "darwin" else 1024
    device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "peak_memory_gb": round(size / 1e9, 2),
        "peak_device_memory_gb": device and round(device / 1e9, 2),
    }
