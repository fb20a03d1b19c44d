"""Counts the collectives in the text of a compiled program: what devices send each other."""

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
SMALL = 64 * 1024  # bytes: below, the time of a collective is its latency


@dataclass
class Collectives:
    """Collectives of one run of a program on one device, by kind.

    Attributes:
      count: how many.
      bytes: size of their results.
      small: how many have results below `SMALL` bytes.
      uncounted_loops: loops that hold collectives and do not say how often they run; once is
        counted.
    """

    count: Counter = field(default_factory=Counter)
    bytes: Counter = field(default_factory=Counter)
    small: Counter = field(default_factory=Counter)
    uncounted_loops: int = 0


def count_collectives(program: Program) -> Collectives:
    """Counts the collectives of a program; the body of a loop counts as often as it runs.

    Of an asynchronous pair the end is counted. Of branches, of which one runs, all are. What TPUs'
    compiler splits over several fusions, to compute meanwhile, is one.
    """
    total = Collectives()
    _add(total, program, program.entry, times=1, chains=set())
    return total


def _add(total, program, name, times, chains):
    """Adds a computation's collectives, and whether there were any."""
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
            continue  # names the computation that its start has named
        trips = program.trips(instruction) if instruction.operation == "while" else 1
        inner = times * (trips or 1)
        within = [_add(total, program, callee, inner, chains) for callee in instruction.callees]
        total.uncounted_loops += trips is None and any(within)
        found |= any(within)
    return found
