"""Weight normalisation (Salimans & Kingma 2016), with the log of the scale as parameter."""

import jax
import jax.numpy as jnp

from nvae_jax.ops import native
from nvae_jax.ops.by_platform import by_platform

EPSILON = 1e-5  # added to a norm


def weight_norm(kernels, log_scales, implementation=None):
    """exp(log_scale) · v / (‖v‖ + 1e-5), the norm being that of each output channel.

    Args:
      kernels: a list of v (k, k, in, out), stacked ones with a leading axis; float32.
      log_scales: a list of (out,), stacked ones with a leading axis.
      implementation: "native" for one call of `nvae_jax.ops.native`; otherwise XLA's.

    Returns:
      a list of arrays in the shapes of the kernels.
    """
    if implementation == "native" and kernels:
        return _chosen(list(kernels), list(log_scales))
    return _normalized(kernels, log_scales)


def kernel_norm(kernel):
    """Euclidean norm of each output channel of a kernel (k, k, in, out), as (out,)."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=(-4, -3, -2)))


def _normalized(kernels, log_scales):
    gains = (
        jnp.exp(log_scale) / (kernel_norm(v) + EPSILON)
        for v, log_scale in zip(kernels, log_scales, strict=True)
    )
    return [v * gain[..., None, None, None, :] for v, gain in zip(kernels, gains, strict=True)]


@jax.custom_vjp
def _chosen(kernels, log_scales):
    return by_platform(kernels, log_scales, cpu=_native, default=_normalized)


def _chosen_bwd(residuals, gradients):
    return by_platform(*residuals, gradients, cpu=_native_gradients, default=_derived_gradients)


_chosen.defvjp(lambda *given: (_chosen(*given), given), _chosen_bwd)


def _derived_gradients(kernels, log_scales, gradients):
    return jax.vjp(_normalized, kernels, log_scales)[1](gradients)


def _native(kernels, log_scales):
    return native.call("weight_norm", [v.shape for v in kernels], *kernels, *log_scales)


def _native_gradients(kernels, log_scales, gradients):
    n = len(kernels)
    gradients = native.call(
        "weight_norm_grad",
        [array.shape for array in (*kernels, *log_scales)],
        *kernels,
        *log_scales,
        *gradients,
        in_place={2 * n + i: i for i in range(n)},
    )
    return gradients[:n], gradients[n:]
