"""Compiles a config's training step for GPUs or TPUs that need not exist, and reports on it."""

import re
import time
from dataclasses import dataclass

from ml_collections import ConfigDict

from nvae_jax import build, sharding
from nvae_jax.planning import estimate, hlo
from nvae_jax.planning.collectives import SMALL, Collectives, count_collectives
from nvae_jax.planning.estimate import GB
from nvae_jax.planning.kernels import KernelCounts, count_kernels
from nvae_jax.planning.topology import Topology


@dataclass(frozen=True)
class Compiled:
    """One device's share of a compiled step.

    Attributes:
      arguments: bytes of state and images.
      outputs: bytes of the new state and the metrics.
      aliased: bytes of outputs that take the place of arguments.
      temporaries: bytes in between.
      collectives: `Collectives`.
      kernels: `KernelCounts`; of meaning on GPUs only.
      seconds: that it took to compile.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    collectives: Collectives
    kernels: KernelCounts
    seconds: float

    @property
    def total(self) -> int:
        """Bytes of memory that a device needs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


class OutOfMemory(Exception):
    """The compiler could not place the program in a device's memory; the message is its own."""


def compile_step(config: ConfigDict, topology: Topology) -> Compiled:
    """Compiles a config's training step for a topology and returns what a device needs for it.

    Raises:
      ValueError: a bad config, no compiler, or one that fails.
      OutOfMemory: the compiler found no room.
    """
    lowered = _lower_step(config, topology)
    start = time.monotonic()
    try:
        compiled = lowered.compile(topology.compiler_options)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error)) from error
        raise ValueError(f"the compiler for {topology.name} fails: {error}") from error
    seconds = time.monotonic() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory and text  # which not every backend gives, but those of GPUs and TPUs do
    program = hlo.parse(text)
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=count_collectives(program),
        kernels=count_kernels(program),
        seconds=seconds,
    )


def _lower_step(config, topology):
    config = estimate.planning_config(config)
    experiment = build.build(config, topology.devices())
    size, parts = experiment.loop.batch_size, experiment.loop.accumulation_steps
    sharding.check_batch_size(experiment.mesh, size, "train.batch_size", parts)
    step = experiment.train_step()
    traced = step.trace(experiment.abstract_state(), experiment.abstract_images())
    return traced.lower(lowering_platforms=(topology.platform,))


def report(config: ConfigDict, topology: Topology) -> tuple[list[str], bool]:
    """What the compiler of a topology says of a config's training step.

    Returns:
      (lines of text, whether a device has room).

    Raises:
      ValueError: a bad config, a batch that the devices cannot share, or no compiler that succeeds.
    """
    images = config.train.batch_size / topology.num_devices
    lines = [
        f"{topology.name}: {topology.num_devices} devices of {topology.hbm / GB:.1f} GB, "
        f"{images:g} images a device, {config.model.dtype}, remat {config.model.remat}"
    ]
    try:
        step = compile_step(config, topology)
    except OutOfMemory as error:
        return [*lines, f"cannot fit: {_first_line(error)}"], False
    fits = step.total <= topology.hbm  # the GPUs' compiler does not refuse
    lines += [
        f"GB a device: arguments {step.arguments / GB:.2f}, temporaries "
        f"{step.temporaries / GB:.2f}, outputs beside the arguments "
        f"{(step.outputs - step.aliased) / GB:.2f}; in all {step.total / GB:.2f}: "
        f"{'there is room' if fits else 'cannot fit'}",
        *_collective_lines(step.collectives),
        *_kernel_lines(step.kernels, topology),
        f"compiled in {step.seconds:.0f} s",
    ]
    return lines, fits


def _first_line(error):
    found = re.search(r"Used \S+ of \S+ hbm.*", str(error))
    return found[0] if found else str(error).splitlines()[0]


def _collective_lines(collectives):
    lines = ["collectives a step:" + ("" if collectives.count else " none")]
    lines += [
        f"  {kind}: {collectives.count[kind]:,}, {collectives.bytes[kind] / 1e6:,.1f} MB; of them "
        f"{collectives.small[kind]:,} below {SMALL // 1024} KiB"
        for kind in sorted(collectives.count)
    ]
    if collectives.uncounted_loops:
        lines.append(f"  and more in {collectives.uncounted_loops} loop(s) of unknown length")
    return lines


def _kernel_lines(kernels, topology):
    """Of GPUs: a TPU's compiler says no more than what its cores do, one after the other."""
    if topology.platform != "cuda":
        return []
    moving, launching = topology.seconds(kernels)
    lines = [
        f"kernels a step: {kernels.count:,}, which read and write {kernels.bytes / GB:.1f} GB: "
        f"{1e3 * moving:.1f} ms for the bytes and {1e3 * launching:.1f} ms for launching"
    ]
    if kernels.uncounted_loops:
        lines.append(f"  and more in {kernels.uncounted_loops} loop(s) of unknown length")
    return lines
