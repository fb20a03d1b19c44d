"""What devices send each other in a compiled program, read out of its text."""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
SMALL = 64 * 1024  # bytes: below, the time of a collective is its latency
_BITS = re.compile(r"[a-z]+(\d+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


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


def count_collectives(text):
    """`Collectives` of a compiled program's text; the body of a loop counts as often as it runs.

    Of an asynchronous pair the end is counted. Of branches, of which one runs, all are.
    """
    computations, entry = _computations(text)
    total = Collectives()
    _add(total, computations, entry, times=1)
    return total


def _computations(text):
    """({name: its instructions as (type, operation, rest of the line)}, name of the entry)."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(found.groups()[1:])
    if entry is None:
        raise ValueError("no entry computation in the text of the compiled program")
    return computations, entry


def _add(total, computations, name, times):
    """Adds a computation's collectives, and whether there were any."""
    found = False
    for kind, operation, rest in computations.get(name, ()):
        base = operation.removesuffix("-done")
        if base in KINDS:
            found = True
            size = _bytes(kind)
            total.count[base] += times
            total.bytes[base] += times * size
            total.small[base] += times * (size < SMALL)
            continue
        if operation.endswith(("-done", "-update")):
            continue  # names the computation that its start has named
        trips = _trips(computations, rest) if operation == "while" else 1
        inner = times * (trips or 1)
        within = [_add(total, computations, callee, inner) for callee in _callees(rest)]
        total.uncounted_loops += trips is None and any(within)
        found |= any(within)
    return found


def _trips(computations, rest):
    """How often a loop runs, or None: as the compiler says, or the one constant that its condition
    compares the counter with (JAX's loops count up from 0)."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    condition = computations.get(_CONDITION.search(rest)[1], ())
    limits = [of.partition(")")[0] for _, operation, of in condition if operation == "constant"]
    return int(limits[0]) if len(limits) == 1 and limits[0].isdigit() else None


def _callees(rest):
    branches = _BRANCHES.search(rest)
    names = branches[1].replace("%", "").split(", ") if branches else []
    return names + _CALLED.findall(rest)


def _bytes(kind):
    """Bytes of all arrays in the text of a type, such as (f32[8,4]{1,0}, pred[])."""
    total = 0
    for name, dims in _ARRAY.findall(kind):
        bits = _BITS.match(name)
        item = int(bits[1]) / 8 if bits else 1
        total += math.prod(int(n) for n in dims.split(",") if n) * item
    return int(total)
