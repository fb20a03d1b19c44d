"""Prints the results of `fid` with everything that they depend on."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def report(result: Mapping[str, Any], written: Iterable[Path]) -> None:
    """Prints a result of `fid.fid_run` and the paths of the written files."""
    if "fid" in result:
        print(f"FID {result['fid']:.4f}")
    else:
        print(f"Frechet distance {result['frechet_distance']:.4f}")
    if "kid" in result:
        print(
            f"KID {result['kid']:.6f} ± {result['kid_std']:.6f} "
            f"(subsets of {result['kid_subset_size']})"
        )
        print(f"precision {result['precision']:.4f}, recall {result['recall']:.4f}")
    elif "fid" in result:
        print(f"no KID, precision and recall: {result['reference']} has no features")
    known = result["num_reference"]
    recalibrated = result["recalibration"]
    if recalibrated != "none":
        recalibrated += f", {result['recalibration_passes']} passes of "
        recalibrated += f"{result['recalibration_batch_size']}"
    print(
        f"protocol {result['protocol']}: N = {result['num']} samples, seed {result['seed']}, "
        f"temperature {result['temperature']}, decoder {result['decoder']}, "
        f"pixels {result['pixels']}, batch norm recalibrated: {recalibrated}"
    )
    print(f"reference: {result['reference']}, {known or 'an unknown number of'} images")
    weights = result.get("weights_sha256")
    note = "" if result.get("weights_published", True) else ", NOT the published weights"
    print(
        f"features: {result['features']} ({result['library']}"
        + (f", weights {weights[:16]}{note}" if weights else "")
        + f"), resize {result['resize']}, channels {result['channels']}, {result['bits']} bits"
    )
    device = result["peak_device_memory_gb"]
    on_device = f", {device} GB on a device" if device is not None else ""
    print(f"peak memory {result['peak_memory_gb']} GB{on_device}")
    print(f"written: {', '.join(map(str, written))}")
