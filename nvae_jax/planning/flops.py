"""Floating-point operations of a traced program: its convolutions and matrix products."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

from jax.extend import core


def count_flops(jaxpr: core.Jaxpr | core.ClosedJaxpr, rescaled: Callable[[int], int] = int) -> int:
    """Multiplications and additions, two a product; everything else is not counted.

    Args:
      jaxpr: of `jax.make_jaxpr(f)(...)` or `jax.jit(f).trace(...)`. Of `Experiment.portable`: what
        kernels in C++ or Pallas do is not seen.
      rescaled: applied to the operations of each product.

    Returns:
      an integer. Of branches, the one with most is counted: of a choice by platform, that is the
      one that calls the library. A loop whose length the program does not say counts once.
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
    """2 · |output| · |contracted axes|."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[a] for a in contracted)


def _convolution(eqn):
    """2 · |output| · products an output, less those with the zeros of a dilated input."""
    kernel, params = eqn.invars[1].aval.shape, eqn.params
    per_output = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    gaps = math.prod(params["lhs_dilation"])
    return int(2 * math.prod(eqn.outvars[0].aval.shape) * Fraction(per_output, gaps))


def subprograms(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The jaxprs inside an equation: bodies of loops, branches, calls."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part
