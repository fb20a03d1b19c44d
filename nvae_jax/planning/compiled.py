"""Compiles a config's training step for GPUs or TPUs that this machine need not have, and reports
memory, collectives and kernels."""

import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from ml_collections import ConfigDict

from nvae_jax import build, sharding
from nvae_jax.planning import estimate, hlo
from nvae_jax.planning.collectives import SMALL, Collectives, count_collectives
from nvae_jax.planning.estimate import GB
from nvae_jax.planning.kernels import KernelCounts, count_kernels
from nvae_jax.planning.topology import Topology


@dataclass(frozen=True)
class Compiled:
    """A compiled step on one device.

    Attributes:
      arguments: bytes of state and images.
      outputs: bytes of the new state and the metrics.
      aliased: bytes of outputs that overwrite arguments.
      temporaries: bytes of temporary arrays.
      collectives: `Collectives`.
      kernels: `KernelCounts`, for GPUs only.
      seconds: time to compile it.
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
        """The memory that a device needs, in bytes."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


class OutOfMemory(Exception):
    """The program does not fit a device's memory; the message is the compiler's."""


def compile_step(config: ConfigDict, topology: Topology) -> Compiled:
    """Compiles a config's training step for a topology.

    Raises:
      ValueError: for an invalid config, or if there is no compiler or it fails.
      OutOfMemory: if the program does not fit the memory.
    """
    lowered = _lower_step(config, topology)
    start = time.monotonic()
    try:
        compiled = lowered.compile(topology.compiler_options)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error)) from error
        raise ValueError(f"the compiler for {topology.name} failed: {error}") from error
    seconds = time.monotonic() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory and text  # available for GPUs and TPUs, though not for every backend
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
    size, micro_batches = experiment.loop.batch_size, experiment.loop.accumulation_steps
    sharding.check_batch_size(experiment.mesh, size, "train.batch_size", micro_batches)
    step = experiment.train_step()
    arguments = experiment.abstract_state(), experiment.abstract_images()
    device = topology.devices()[0]
    with lowering_for(device.device_kind, device.platform):
        return step.trace(*arguments).lower(lowering_platforms=(topology.platform,))


def lowering_for(device_kind: str, platform: str) -> AbstractContextManager:
    """Within it, Pallas kernels are traced and lowered for a device that need not be here.

    From version 0.12 on, jax refuses them without it.

    Args:
      device_kind: the device's name, as in `jax.Device.device_kind`.
      platform: "gpu" or "tpu".
    """
    if jax.__version_info__ < (0, 12):
        return nullcontext()
    device = AbstractDevice(device_kind, num_cores=None, platform=platform)
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def report(config: ConfigDict, topology: Topology) -> tuple[list[str], bool]:
    """Compiles a config's training step for a topology and reports what the compiler says.

    Returns:
      (lines of text, whether it fits a device's memory).

    Raises:
      ValueError: for an invalid config, a batch that cannot be divided among the devices, or if
        there is no compiler or it fails.
    """
    images = config.train.batch_size / topology.num_devices
    lines = [
        f"{topology.name}: {topology.num_devices} devices of {topology.hbm / GB:.1f} GB, "
        f"{images:g} images per device, {config.model.dtype}, remat {config.model.remat}"
    ]
    try:
        step = compile_step(config, topology)
    except OutOfMemory as error:
        return [*lines, f"cannot fit: {_first_line(error)}"], False
    fits = step.total <= topology.hbm  # the GPU compiler raises no error if it does not
    lines += [
        f"GB per device: arguments {step.arguments / GB:.2f}, temporaries "
        f"{step.temporaries / GB:.2f}, outputs that overwrite no argument "
        f"{(step.outputs - step.aliased) / GB:.2f}; in total {step.total / GB:.2f}: "
        f"{'it fits' if fits else 'cannot fit'}",
        *_collective_lines(step.collectives),
        *_kernel_lines(step.kernels, topology),
        f"compiled in {step.seconds:.0f} s",
    ]
    return lines, fits


def _first_line(error):
    found = re.search(r"Used \S+ of \S+ hbm.*", str(error))
    return found[0] if found else str(error).splitlines()[0]


def _collective_lines(collectives):
    lines = ["collectives per step:" + ("" if collectives.count else " none")]
    lines += [
        f"  {kind}: {collectives.count[kind]:,}, {collectives.bytes[kind] / 1e6:,.1f} MB; "
        f"{collectives.small[kind]:,} of them below {SMALL // 1024} KiB"
        for kind in sorted(collectives.count)
    ]
    if collectives.uncounted_loops:
        lines.append(f"  and more in {collectives.uncounted_loops} loop(s) of unknown length")
    return lines


def _kernel_lines(kernels, topology):
    """Describes the kernels of a step; only for GPUs, because TPU programs have no kernels."""
    if topology.platform != "cuda":
        return []
    moving, launching = topology.seconds(kernels)
    lines = [
        f"kernels per step: {kernels.count:,}, which read and write {kernels.bytes / GB:.1f} GB: "
        f"{1e3 * moving:.1f} ms for the bytes and {1e3 * launching:.1f} ms for launching"
    ]
    if kernels.uncounted_loops:
        lines.append(f"  and more in {kernels.uncounted_loops} loop(s) of unknown length")
    return lines
