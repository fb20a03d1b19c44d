"""Parses the text of a compiled program (XLA's HLO) into computations and their instructions."""

import math
import re
from dataclasses import dataclass

_BITS = re.compile(r"[a-z]+(\d+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BODY = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_EITHER = re.compile(r"\b(?:true|false)_computation=%?([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_CHAIN = re.compile(r'\bchain_id="(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: the name by which other lines refer to its result.
      type: type of the result, such as f32[8,4]{1,0} or a tuple of types.
      operation: for example fusion.
      rest: the text after the opening parenthesis: operands and attributes.
      is_root: whether its result is the result of the computation.
    """

    name: str
    type: str
    operation: str
    rest: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Bytes of all arrays of the result."""
        return bytes_of(self.type)

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results are its operands."""
        return _OPERAND.findall(self.rest.partition(")")[0])

    @property
    def callees(self) -> list[str]:
        """Names of all computations that it runs."""
        return self.branches + _CALLED.findall(self.rest)

    @property
    def branches(self) -> list[str]:
        """Names of the computations of a conditional, of which one runs."""
        found = _BRANCHES.search(self.rest)
        return found[1].replace("%", "").split(", ") if found else _EITHER.findall(self.rest)

    @property
    def chain(self) -> str | None:
        """The id that the TPU compiler gives to all parts of a collective that it splits."""
        found = _CHAIN.search(self.rest)
        return found[1] if found else None

    @property
    def body(self) -> str | None:
        """The name of the computation that a fusion, call or loop runs, or None."""
        found = _BODY.search(self.rest)
        return found[1] if found else None


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: {name: {name: `Instruction`}}.
      entry: the name of the computation that runs first.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int | None:
        """The number of iterations of a loop, or None if it is unknown.

        Either the compiler wrote it into the program, or it is the only constant in the loop's
        condition, with which the counter is compared: JAX's loops count up from 0.
        """
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        found = _CONDITION.search(loop.rest)
        condition = self.computations.get(found[1], {}) if found else {}
        instructions = condition.values()
        constants = [i.rest.partition(")")[0] for i in instructions if i.operation == "constant"]
        single = len(constants) == 1 and constants[0].isdigit()
        return int(constants[0]) if single else None


def parse(text: str) -> Program:
    """Parses the text that `Compiled.as_text()` returns.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            root, name, *parts = found.groups()
            current[name] = Instruction(name, *parts, is_root=bool(root))
    if entry is None:
        raise ValueError("no entry computation in the text of the compiled program")
    return Program(computations, entry)


def bytes_of(kind: str) -> int:
    """Bytes of all arrays in the text of a type, such as (f32[8,4]{1,0}, pred[])."""
    total = 0
    for name, dims in _ARRAY.findall(kind):
        bits = _BITS.match(name)
        item = int(bits[1]) / 8 if bits else 1
        total += math.prod(int(n) for n in dims.split(",") if n) * item
    return int(total)
