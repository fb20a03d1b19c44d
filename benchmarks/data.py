"""Measures how fast batches are read, and the share of decoding.

  python benchmarks/data.py [--seconds=5] [--threads=2] [--workers=0] [--out=PATH]

Builds small data sets of photograph-like images in a temporary folder and reads them as in
training. Prints for each: images per second; images per second and core (from processor time, which
is valid on a shared machine, too); microseconds per image for reading and decoding only; and the
rate at which the paper's training consumed images: epochs x images / hours in its table. Writes the
same numbers as JSON.
"""

import pathlib
import tempfile
import time

import numpy as np
import record
from absl import app, flags
from PIL import Image

from nvae_jax.data import pipeline, record_writer, splits
from nvae_jax.data.spec import DataSpec

_SECONDS = flags.DEFINE_float("seconds", 5, "How long to measure each.", lower_bound=0.1)
_THREADS = flags.DEFINE_integer("threads", 2, "Reading threads.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 0, "Worker processes, instead.", lower_bound=0)
_OUT = flags.DEFINE_string("out", "benchmarks/results/data_cpu.json", "JSON file; '': none.")

# Images per second in the published training: epochs * images / (hours * 3600).
_CIFAR_RATE = 400 * 50_000 / (55 * 3600)
_FFHQ_RATE = 200 * 63_000 / (160 * 3600)


def photographs(count: int, size: int) -> np.ndarray:
    """Images with structure on all scales, which compress about as photographs do: uint8 NHWC."""
    random = np.random.default_rng(0)
    total = np.zeros((count, size, size, 3), np.float32)
    for octave in range(2, size.bit_length()):
        side = 2**octave
        for i, small in enumerate(random.normal(size=(count, side, side, 3)) * 60 / octave**1.5):
            for c in range(3):
                layer = Image.fromarray(small[..., c].astype(np.float32))
                total[i, ..., c] += np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC))
    return np.clip(total + 128, 0, 255).astype(np.uint8)


def build(root: pathlib.Path) -> list[tuple[str, DataSpec, int, float]]:
    """(label, spec, batch size, the paper's images per second) of each measurement."""
    common = {"channels": 3, "horizontal_flip": True}
    common |= {"threads": _THREADS.value, "workers": _WORKERS.value}
    small, large = photographs(512, 32), photographs(48, 256)
    np.savez(root / "train.npz", images=small)
    for name, images in (("small", small), ("large", large)):
        record_writer.write(root / name, {"train": images}, name="folder")
    (root / "jpeg" / "train").mkdir(parents=True)
    (root / "jpeg" / "test").mkdir()
    for i, image in enumerate(large):
        big = Image.fromarray(image).resize((512, 512), Image.Resampling.BICUBIC)
        big.save(root / "jpeg" / "train" / f"{i}.jpg", quality=90)
    return [
        ("CIFAR size, in memory", DataSpec("cifar10", dir=str(root), **common), 256, _CIFAR_RATE),
        (
            "CIFAR size, prepared (PNG)",
            DataSpec("folder", dir=str(root / "small"), **common),
            256,
            _CIFAR_RATE,
        ),
        (
            "256x256, prepared (PNG), 5 bits",
            DataSpec("folder", dir=str(root / "large"), image_size=256, num_bits=5, **common),
            32,
            _FFHQ_RATE,
        ),
        (
            "256x256 from a folder of 512x512 JPEG",
            DataSpec("folder", dir=str(root / "jpeg"), image_size=256, num_bits=5, **common),
            32,
            _FFHQ_RATE,
        ),
    ]


def measure_pipeline(spec: DataSpec, batch_size: int) -> tuple[float, float]:
    """Images per second, and per second of processor time (0 if other processes read them)."""
    iterator = pipeline.train_iterator(spec, batch_size=batch_size, seed=0)
    next(iterator)
    count, wall, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < _SECONDS.value:
        count += len(next(iterator)["image"])
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    iterator.close()
    return count / wall, 0 if spec.workers else count / processor


def measure_decoding(spec: DataSpec) -> float:
    """Microseconds of processor time to read, decode and resize an image."""
    images = splits.open_images(spec, "train")
    count, start = 0, time.process_time()
    while time.process_time() - start < _SECONDS.value / 2:
        images[count % len(images)]
        count += 1
    return 1e6 * (time.process_time() - start) / count


def main(argv):
    del argv
    rows = []
    with tempfile.TemporaryDirectory() as root:
        print(f"{'':40}{'images/s':>10}{'a core':>10}{'decoding':>12}{'paper':>12}")
        for label, spec, batch_size, paper in build(pathlib.Path(root)):
            rate, core_rate = measure_pipeline(spec, batch_size)
            decoding = measure_decoding(spec)
            print(f"{label:40}{rate:10.0f}{core_rate:10.0f}{decoding:9.0f} us{paper:10.0f}/s")
            rows.append(
                {
                    "data": label,
                    "images_per_second": round(rate, 1),
                    "images_per_second_and_core": round(core_rate, 1),
                    "decoding_microseconds": round(decoding, 1),
                    "paper_images_per_second": round(paper, 1),
                }
            )
    record.write(
        _OUT.value,
        rows,
        seconds=_SECONDS.value,
        threads=_THREADS.value,
        workers=_WORKERS.value,
    )


if __name__ == "__main__":
    app.run(main)
