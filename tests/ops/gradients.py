"""Values and gradients of an operation under test, or of its reference."""

import jax


def with_gradients(function, given, g):
    """Returns `function(*given)` and the gradients for `given`, where `g` is that of the values.

    One program computes all: operation by operation, each would be compiled alone.
    """

    def run(given, g):
        y, pullback = jax.vjp(function, *given)
        return y, *pullback(g)

    return jax.jit(run)(given, g)
