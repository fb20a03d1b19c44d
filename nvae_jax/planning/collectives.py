"""Counts the collectives of a compiled program, the communication between devices."""

from collections import Counter
from dataclasses import dataclass, field

from nvae_jax.planning.hlo import Program

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
SMALL = 64 * 1024  # bytes; the time of a smaller collective is its latency


@dataclass
class Collectives:
    """Collectives of one execution of a program on one device, by kind.

    Attributes:
      count: number of collectives.
      bytes: total size of their results.
      small: number of collectives with results below `SMALL` bytes.
      uncounted_loops: number of loops with collectives whose number of iterations is unknown; they
        are counted as one iteration.
    """

    count: Counter = field(default_factory=Counter)
    bytes: Counter = field(default_factory=Counter)
    small: Counter = field(default_factory=Counter)
    uncounted_loops: int = 0


def count_collectives(program: Program) -> Collectives:
    """Counts the collectives of a program; the body of a loop is counted for each iteration.

    Of an asynchronous pair the end is counted. All branches are counted, although only one runs. A
    collective that the TPU compiler splits over several fusions, to overlap it with computation, is
    counted once.
    """
    total = Collectives()
    _add(total, program, program.entry, times=1, chains=set())
    return total


def _add(total, program, name, times, chains):
    """Adds a computation's collectives to `total` and returns whether there were any."""
    found = False
    for instruction in program.computations.get(name, {}).values():
        base = instruction.operation.removesuffix("-done")
        if base in KINDS:
            found = True
            if instruction.chain in chains:
                continue
            if instruction.chain:
                chains.add(instruction.chain)
            total.count[base] += times
            total.bytes[base] += times * instruction.bytes
            total.small[base] += times * (instruction.bytes < SMALL)
            continue
        if instruction.operation.endswith(("-done", "-update")):
            continue  # refers to the same computation as its start
        trips = program.trips(instruction) if instruction.operation == "while" else 1
        inner = times * (trips or 1)
        within = [_add(total, program, callee, inner, chains) for callee in instruction.callees]
        total.uncounted_loops += trips is None and any(within)
        found |= any(within)
    return found
