"""Weight normalisation (Salimans & Kingma 2016), with the log of the scale as parameter."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

EPSILON = 1e-5  # added to a norm


def weight_norm(kernels: Sequence[jax.Array], log_scales: Sequence[jax.Array]) -> list[jax.Array]:
    """`Ops.weight_norm`."""
    gains = (
        jnp.exp(log_scale) / (kernel_norm(v) + EPSILON)
        for v, log_scale in zip(kernels, log_scales, strict=True)
    )
    return [v * gain[..., None, None, None, :] for v, gain in zip(kernels, gains, strict=True)]


def kernel_norm(kernel: jax.Array) -> jax.Array:
    """Euclidean norm of each output channel of a kernel (k, k, in, out), as (out,)."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=(-4, -3, -2)))
