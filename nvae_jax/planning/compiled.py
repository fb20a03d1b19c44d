"""What the compiler of a TPU slice that is not there says of a config's training step."""

import re
import time
from dataclasses import dataclass

from nvae_jax import build, sharding
from nvae_jax.planning import estimate, topology
from nvae_jax.planning.collectives import SMALL, Collectives, count_collectives
from nvae_jax.planning.estimate import GB


@dataclass(frozen=True)
class Compiled:
    """One chip's share of a compiled step.

    Attributes:
      arguments: bytes of state and images.
      outputs: bytes of the new state and the metrics.
      aliased: bytes of outputs that take the place of arguments.
      temporaries: bytes in between.
      collectives: `Collectives`.
      seconds: that it took to compile.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    collectives: Collectives
    seconds: float

    @property
    def total(self):
        """Bytes of memory that a chip needs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


class TooLarge(Exception):
    """The compiler could not place the program in a chip's memory; the message is its own."""


def compile_step(config, slice_):
    """`Compiled` training step of a config on a `topology.Topology`.

    Raises:
      ValueError: a bad config, or no compiler.
      TooLarge: the compiler found no room.
    """
    lowered = _lower_step(config, slice_)
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(str(error)) from error
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=count_collectives(compiled.as_text()),
        seconds=seconds,
    )


def _lower_step(config, slice_):
    config = estimate.prepared(config)
    experiment = build.build(config, topology.devices(slice_))
    size, parts = experiment.loop.batch_size, experiment.loop.accumulation_steps
    sharding.check_batch_size(experiment.mesh, size, "train.batch_size", parts)
    step = experiment.train_step()
    return step.lower(experiment.abstract_state(), experiment.abstract_images())


def report(config, slice_):
    """What the compiler says of a config on a `topology.Topology`.

    Returns:
      (lines of text, whether a chip has room).

    Raises:
      ValueError: a bad config, a batch that the chips cannot share, or no compiler.
    """
    images = config.train.batch_size / slice_.num_chips
    lines = [
        f"{slice_.name}: {slice_.num_chips} chips of {slice_.hbm / GB:.1f} GB, {images:g} images a "
        f"chip, {config.model.dtype}, remat {config.model.remat}"
    ]
    try:
        step = compile_step(config, slice_)
    except TooLarge as error:
        return [*lines, f"cannot fit: {_first_line(error)}"], False
    lines += [
        f"GB a chip: arguments {step.arguments / GB:.2f}, temporaries {step.temporaries / GB:.2f}, "
        f"outputs beside the arguments {(step.outputs - step.aliased) / GB:.2f}; "
        f"in all {step.total / GB:.2f}; the compiler found room",
        *_collective_lines(step.collectives),
        f"compiled in {step.seconds:.0f} s",
    ]
    return lines, True


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
