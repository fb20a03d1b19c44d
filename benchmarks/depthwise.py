"""Times the depthwise convolution: implementation x size x (forward, forward + backward).

    python benchmarks/depthwise.py [--out=PATH] [--reps=N] [--keep_memory]

Needs only JAX; if PyTorch is installed, its convolution is timed too, in both memory formats. The
samples of all implementations at a size are interleaved, so that other load on the machine affects
all of them; only compare rows of the same table. Prints medians with minimum and maximum, and
writes them as JSON.

`--keep_memory` (glibc) keeps freed memory instead of returning it to the system, as the commands of
this project do. Without it each call first has page faults for its temporary and output arrays; for
small operations on large arrays these take longer than the operation itself.
"""

import argparse
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import machine
import numpy as np
import record

from nvae_jax import allocator
from nvae_jax.ops.cpu import Cpu, Native
from nvae_jax.ops.gpu import Gpu
from nvae_jax.ops.portable import Portable

KERNEL = 5
# (operation, (B, H, W, C) of its input). Batch 32: the published MNIST model's two scales.
CASES = (
    ("stride 1", (32, 8, 8, 768)),
    ("stride 1", (32, 16, 16, 384)),
    ("stride 1", (8, 8, 8, 768)),
    ("stride 1", (8, 16, 16, 384)),
    ("stride 1", (8, 32, 32, 48)),
    ("stride 1", (8, 32, 32, 192)),
    ("stride 2", (32, 16, 16, 384)),
    ("upsample", (32, 8, 8, 768)),
    ("upsample", (8, 8, 8, 768)),
)


def imported_torch():
    """PyTorch, or None. It is imported late, because it may load its own CUDA libraries."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def repeat(x):
    """Upsamples (B, H, W, C) to (B, 2 H, 2 W, C) by repeating each pixel."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def jax_operations(operation):
    """{name: function of (x, kernel)} for every implementation of `operation`."""
    on_cpu = jax.default_backend() == "cpu"
    kinds = {"portable": Portable()} | (
        {"cpu": Cpu(), "native": Native()} if on_cpu else {"pallas": Gpu()}
    )

    def conv(ops):
        def run(x, kernel):
            if operation == "upsample":
                x = repeat(x)
            return ops.depthwise_conv(x, kernel, stride=2 if operation == "stride 2" else 1)

        return run

    operations = {name: conv(ops) for name, ops in kinds.items()}
    if operation == "upsample":
        operations |= {f"{n}, fused": ops.upsample_depthwise_conv for n, ops in kinds.items()}
    return operations


def jax_samples(operation, x, kernel):
    """{name: {"forward": callable, "both": callable, "compile": seconds}}."""

    def both(function):
        def run(x, kernel, g):
            y, pullback = jax.vjp(function, x, kernel)
            return y, pullback(g)

        return run

    samples = {}
    for name, function in jax_operations(operation).items():
        x, kernel = jnp.asarray(x), jnp.asarray(kernel)
        forward = jax.jit(function).lower(x, kernel).compile()
        g = jnp.ones_like(forward(x, kernel))
        start = time.perf_counter()
        pair = jax.jit(both(function)).lower(x, kernel, g).compile()
        samples[name] = {
            "compile": time.perf_counter() - start,
            "forward": lambda f=forward, a=(x, kernel): jax.block_until_ready(f(*a)),
            "both": lambda f=pair, a=(x, kernel, g): jax.block_until_ready(f(*a)),
        }
    return samples


def torch_samples(torch, operation, x, kernel):
    """Like `jax_samples`, for PyTorch in its two memory formats."""
    formats = {"torch": torch.contiguous_format, "torch, channels last": torch.channels_last}
    stride = 2 if operation == "stride 2" else 1

    def samples(memory_format):
        image = torch.tensor(x.transpose(0, 3, 1, 2)).contiguous(memory_format=memory_format)
        weight = torch.tensor(kernel.transpose(3, 2, 0, 1)).contiguous()
        image.requires_grad_(), weight.requires_grad_()

        def forward():
            z = image
            if operation == "upsample":
                z = torch.nn.functional.interpolate(z, scale_factor=2, mode="nearest")
            return torch.nn.functional.conv2d(
                z, weight, stride=stride, padding=KERNEL // 2, groups=weight.shape[0]
            )

        g = torch.ones_like(forward())

        def both():
            image.grad = weight.grad = None
            forward().backward(g)

        return {"forward": forward, "both": both}

    return {name: samples(memory_format) for name, memory_format in formats.items()}


def measure(functions, reps, budget=2.0):
    """Interleaved samples in ms; a function gets fewer once its total exceeds `budget` seconds."""
    times = {key: [] for key in functions}
    for function in functions.values():
        function()
    for _ in range(reps):
        for key, function in functions.items():
            if len(times[key]) >= 3 and sum(times[key]) > 1e3 * budget:
                continue
            time.sleep(0.003)  # PyTorch's threads spin for a while after each operation.
            start = time.perf_counter()
            function()
            times[key].append(1e3 * (time.perf_counter() - start))
    return {key: machine.spread(t) for key, t in times.items()}


def run_case(operation, size, reps):
    """One row of results per implementation."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=size).astype(np.float32)
    kernel = rng.normal(size=(KERNEL, KERNEL, 1, size[-1])).astype(np.float32)
    samples = jax_samples(operation, x, kernel)
    if torch := imported_torch():
        samples |= torch_samples(torch, operation, x, kernel)
    functions = {(n, what): s[what] for n, s in samples.items() for what in ("forward", "both")}
    times = measure(functions, reps)
    return [
        {
            "operation": operation,
            "size": list(size),
            "implementation": name,
            "forward_ms": times[name, "forward"],
            "both_ms": times[name, "both"],
            "compile_ms": 1e3 * sample["compile"] if "compile" in sample else None,
        }
        for name, sample in samples.items()
    ]


def print_rows(rows):
    for row in rows:
        cells = [f"{row['operation']:9}", f"{'x'.join(map(str, row['size'])):13}"]
        cells.append(f"{row['implementation']:20}")
        for what in ("forward_ms", "both_ms"):
            t = row[what]
            cells.append(f"{t['median']:7.1f} ({t['min']:.1f} to {t['max']:.1f})".ljust(27))
        if row["compile_ms"] is not None:
            cells.append(f"{row['compile_ms']:7.0f}")
        print(" ".join(cells), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--out", type=pathlib.Path, default=here / "results" / "depthwise.json")
    parser.add_argument("--reps", type=int, default=25)
    parser.add_argument("--keep_memory", action="store_true")
    args = parser.parse_args()
    if args.keep_memory:
        allocator.keep_freed_memory()
    versions = {"jax": jax.__version__, "torch": getattr(imported_torch(), "__version__", None)}
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {versions}, float32, 5 x 5")
    print(f"{'':45}{'forward, ms':28}{'forward + backward, ms':28}compile, ms")
    results = []
    for operation, size in CASES:
        rows = run_case(operation, size, args.reps)
        print_rows(rows)
        results += rows
    settings = dict(keep_memory=args.keep_memory, kernel=KERNEL, torch=versions["torch"])
    record.write(args.out, results, **settings)


if __name__ == "__main__":
    main()
