"""Counts the kernels that a compiled GPU program launches, and the bytes that they move."""

from dataclasses import dataclass

from nvae_jax.planning.hlo import Program

# Operations that run nothing on the device.
_FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"}
_FREE |= {"opt-barrier", "partition-id", "replica-id"}
# Operations that read no more of their first operand than they return.
_SLICES = {"slice", "dynamic-slice", "gather"}


@dataclass(frozen=True)
class KernelCounts:
    """What one run of a program launches on one device.

    Attributes:
      count: number of kernels, copies and library calls.
      bytes: how much device memory they read and write. If a loop reads a slice of an array, or
        updates a slice in place, only the slice is counted.
      uncounted_loops: loops with an unknown number of iterations; one iteration is counted.
    """

    count: int = 0
    bytes: int = 0
    uncounted_loops: int = 0

    def __add__(self, other):
        loops = self.uncounted_loops + other.uncounted_loops
        return KernelCounts(self.count + other.count, self.bytes + other.bytes, loops)

    def scaled(self, number: int) -> "KernelCounts":
        """The sum over `number` runs."""
        return KernelCounts(number * self.count, number * self.bytes, self.uncounted_loops)


def count_kernels(program: Program, name: str | None = None) -> KernelCounts:
    """Counts the kernels of a program, or of its computation `name`."""
    total = KernelCounts()
    computation = program.computations[name or program.entry]
    for instruction in computation.values():
        total += _of(program, computation, instruction)
    return total


def _of(program, computation, instruction):
    operation = instruction.operation
    if operation in _FREE or operation.endswith(("-done", "-update")):
        return KernelCounts()
    if operation == "while":
        trips = program.trips(instruction)
        loop = KernelCounts(uncounted_loops=int(trips is None))
        return loop + count_kernels(program, instruction.body).scaled(trips or 1)
    if operation == "conditional":  # one of them runs
        branches = [count_kernels(program, branch) for branch in instruction.branches]
        return max(branches, key=lambda kernels: kernels.bytes, default=KernelCounts())
    if operation in ("call", "async-start"):
        return count_kernels(program, instruction.body)
    if operation == "fusion":
        return KernelCounts(1, _fusion_bytes(program.computations[instruction.body]))
    return KernelCounts(1, _bytes(computation, instruction))


def _bytes(computation, instruction):
    """Bytes read and written by an operation that is a kernel by itself."""
    operands = [computation[name] for name in instruction.operands if name in computation]
    if instruction.operation in _SLICES:
        return 2 * instruction.bytes
    if instruction.operation == "dynamic-update-slice":
        return 2 * operands[1].bytes
    return instruction.bytes + sum(operand.bytes for operand in operands)


def _fusion_bytes(body):
    users = {name: [] for name in body}
    for instruction in body.values():
        for operand in dict.fromkeys(instruction.operands):
            users.setdefault(operand, []).append(instruction)
    parameters = [i for i in body.values() if i.operation == "parameter"]
    return sum(_read(body, users, p) for p in parameters) + sum(
        _written(body, r) for r in _results(body)
    )


def _results(body):
    """The instructions whose results a fusion returns."""
    root = next(instruction for instruction in body.values() if instruction.is_root)
    return [body[name] for name in root.operands] if root.operation == "tuple" else [root]


def _written(body, result):
    while result.operation in ("bitcast", "copy"):
        result = body[result.operands[0]]
    updates = result.operation == "dynamic-update-slice"
    return body[result.operands[1]].bytes if updates else result.bytes


def _read(body, users, instruction):
    """How many bytes of one of its arguments a fusion reads."""
    total = 0
    for user in users[instruction.name]:
        first = user.operands[0] == instruction.name
        if user.operation == "bitcast":
            total += _read(body, users, user)
        elif user.operation in _SLICES and first:
            total += user.bytes
        elif user.operation != "dynamic-update-slice" or not first:
            return instruction.bytes
    return min(total, instruction.bytes)
