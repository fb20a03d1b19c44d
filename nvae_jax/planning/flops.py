"""Counts the floating-point operations of a traced program: convolutions and matrix products."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

from jax.extend import core


def count_flops(jaxpr: core.Jaxpr | core.ClosedJaxpr, rescaled: Callable[[int], int] = int) -> int:
    """Counts the multiplications and additions of products; other operations are not counted.

    Args:
      jaxpr: the jaxpr from `jax.make_jaxpr(f)(...)` or `jax.jit(f).trace(...)`. Use
        `Experiment.portable`, because operations of C++ and Pallas kernels are not counted.
      rescaled: function applied to the number of operations of each product.

    Returns:
      the number of operations. Of several branches, the one with the most operations is counted. A
      loop of unknown length is counted as one iteration.
    """
    return _count(getattr(jaxpr, "jaxpr", jaxpr), rescaled)


def _count(jaxpr, rescaled):
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            total += rescaled(_dot(eqn))
        elif name == "conv_general_dilated":
            total += rescaled(_convolution(eqn))
        else:
            inner = [_count(sub, rescaled) for sub in subprograms(eqn)]
            times = eqn.params["length"] if name == "scan" else 1
            total += times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _dot(eqn):
    """2 · |output| · |contracted axes|, the operations of a matrix product."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[a] for a in contracted)


def _convolution(eqn):
    """2 · |output| · products per output, without those with the zeros of a dilated input."""
    kernel, params = eqn.invars[1].aval.shape, eqn.params
    per_output = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    gaps = math.prod(params["lhs_dilation"])
    return int(2 * math.prod(eqn.outvars[0].aval.shape) * Fraction(per_output, gaps))


def subprograms(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Yields the jaxprs inside an equation: bodies of loops, branches and calls."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part
