"""What the machine can do, and timing next to it.

Machines are shared and change speed from minute to minute, so that a time means little alone. Here
a large matrix product and a large copy are timed between the samples of everything else: the best
of them are the machine's rates while it was measured.
"""

import statistics
import time

import jax
import jax.numpy as jnp

MATRIX = {"cpu": 2560, "gpu": 8192, "tpu": 8192}  # rows of the square matrices multiplied
COPY = 2**28  # bytes read, and written
REPEATS = 10  # of either in one call on an accelerator, which a single one would not keep busy


class Ceilings:
    """The best matrix product and the best copy so far."""

    def __init__(self, dtype=jnp.float32):
        platform_name = jax.default_backend()
        self._repeats = 1 if platform_name == "cpu" else REPEATS
        size = MATRIX.get(platform_name, MATRIX["cpu"])
        # Random: a product of constants takes less power, and so runs faster than any real one.
        numbers = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5
        self._matrix = numbers.astype(dtype)
        self._vector = jnp.ones(COPY // 4, jnp.float32)
        self._product = jax.jit(self._repeated(lambda a: a @ self._matrix))
        self._copy = jax.jit(self._repeated(lambda a: a + 1.0), donate_argnums=0)
        self.seconds = {"product": float("inf"), "copy": float("inf")}
        self.sample(), self.sample()  # the first calls compile

    def _repeated(self, function):
        return lambda a: jax.lax.fori_loop(0, self._repeats, lambda _, a: function(a), a)

    def sample(self):
        """Times both once."""
        self._keep("product", lambda: self._product(self._matrix))
        self._keep("copy", self._copy_once)

    def _copy_once(self):
        self._vector = self._copy(self._vector)
        return self._vector

    def _keep(self, name, function):
        seconds = timed(function)
        self.seconds[name] = min(self.seconds[name], seconds)

    @property
    def flops(self):
        """Floating-point operations a second of the matrix product."""
        return self._repeats * 2 * self._matrix.shape[0] ** 3 / self.seconds["product"]

    @property
    def bandwidth(self):
        """Bytes a second, read and written."""
        return self._repeats * 2 * COPY / self.seconds["copy"]


def timed(function):
    """Seconds until the arrays that `function` returns are there."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def sample(function, ceilings, reps):
    """Times of `reps` calls after one that is not counted, the ceilings sampled between them."""
    function()
    times = []
    for _ in range(reps):
        ceilings.sample()
        times.append(timed(function))
    return times


def sample_queued(function, reps, calls=5):
    """Seconds a call, `reps` times, of `calls` calls that are given to the device one after the
    other without waiting, as a training loop does."""
    jax.block_until_ready(function())

    def queued():
        for _ in range(calls):
            last = function()
        return last

    return [timed(queued) / calls for _ in range(reps)]


def spread(times):
    """{"median", "min", "max", "samples"} of times."""
    middle = statistics.median(times)
    return {"median": middle, "min": min(times), "max": max(times), "samples": len(times)}
