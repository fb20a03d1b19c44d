"""Estimates the memory of a traced program from which of its arrays are alive at the same time."""

from collections.abc import Callable
from typing import Any

from jax.extend import core

from nvae_jax.planning.flops import subprograms


def peak_bytes(
    jaxpr: core.Jaxpr | core.ClosedJaxpr,
    size: Callable[[Any], int],
    aliased: int = 0,
) -> int:
    """Estimates the peak memory of a program in bytes, without its arguments.

    The estimate assumes that the operations run in the order in which they were traced, and that
    each writes its result to memory. Compilers fuse operations, so that some results are never
    written; they also pad arrays, and run independent parts in another order.

    Args:
      jaxpr: of `jax.make_jaxpr(f)(...)` or `jax.jit(f).trace(...)`.
      size: maps an abstract array to bytes.
      aliased: this number of results, the first ones, overwrite arguments and need no memory.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    in_place = {v for v in jaxpr.outvars[:aliased] if isinstance(v, core.Var)}
    return _peak(jaxpr, size, in_place, {})


def _peak(jaxpr, size, in_place, known):
    """`known` caches the peaks of subprograms, many of which occur often."""
    dies = _last_uses(jaxpr)
    sizes, alive, peak = {}, 0, 0
    for position, eqn in enumerate(jaxpr.eqns):
        results = {v: 0 if v in in_place else size(v.aval) for v in eqn.outvars}
        written = sum(results.values())
        inside = max((_remembered(sub, size, known) for sub in subprograms(eqn)), default=0)
        # The results of a call are among the arrays inside; a scan stacks the results of its body.
        needed = written + inside if eqn.primitive.name == "scan" else max(written, inside)
        peak = max(peak, alive + needed)
        sizes.update(results)
        alive += written
        alive -= sum(sizes.pop(v, 0) for v in dies.get(position, ()))
    return peak


def _remembered(jaxpr, size, known):
    if id(jaxpr) not in known:
        known[id(jaxpr)] = _peak(jaxpr, size, frozenset(), known)
    return known[id(jaxpr)]


def _last_uses(jaxpr):
    """{position of an equation: the variables that are used there for the last time}."""
    last = {}
    for position, eqn in enumerate(jaxpr.eqns):
        last.update({v: position for v in [*eqn.invars, *eqn.outvars] if isinstance(v, core.Var)})
    for v in jaxpr.outvars:
        last.pop(v, None) if isinstance(v, core.Var) else None
    dies = {}
    for v, position in last.items():
        dies.setdefault(position, []).append(v)
    return dies
