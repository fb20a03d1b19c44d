"""Timing, together with the peak rates of the machine.

Machines are shared and change speed from minute to minute, so a time alone means little. Therefore
a large matrix product and a large copy are timed between all samples: the best of them give the
rates of the machine during the measurement.
"""

import statistics
import time

import jax
import jax.numpy as jnp

MATRIX = {"cpu": 2560, "gpu": 8192, "tpu": 8192}  # rows of the square matrices
COPY = 2**28  # bytes read, and bytes written
REPEATS = 10  # repetitions per call on an accelerator, since a single one would not keep it busy


class Ceilings:
    """The fastest matrix product and the fastest copy so far."""

    def __init__(self, dtype=jnp.float32):
        platform_name = jax.default_backend()
        self._repeats = 1 if platform_name == "cpu" else REPEATS
        size = MATRIX.get(platform_name, MATRIX["cpu"])
        # Random: a product of constants needs less power, and is faster than a realistic one.
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
        """Times the product and the copy once."""
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
        """Floating-point operations per second of the matrix product."""
        return self._repeats * 2 * self._matrix.shape[0] ** 3 / self.seconds["product"]

    @property
    def bandwidth(self):
        """Bytes per second that the copy reads and writes."""
        return self._repeats * 2 * COPY / self.seconds["copy"]


def timed(function):
    """Seconds until the arrays that `function` returns are computed."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def sample(function, ceilings, reps):
    """Times of `reps` calls after a warm-up call; the ceilings are sampled between them."""
    function()
    times = []
    for _ in range(reps):
        ceilings.sample()
        times.append(timed(function))
    return times


def sample_queued(function, reps, calls=5):
    """Seconds per call, `reps` times, for `calls` calls that are queued on the device without
    waiting, as in a training loop."""
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
