"""Depthwise convolution, with the implementation chosen per platform.

XLA's own grouped convolution is far off the hardware on CPU, so there the convolution and both of
its gradients are written in other ways. Compilers for accelerators have their own lowering and get
that. To add an implementation: a module here with the six maps of `MAPS`, and a row in
`IMPLEMENTATIONS`.

Everything is one linear map or a transpose of it, for a kernel w (k, k, C) of any size, a stride
s and `low` zeros in front (as many behind as the output size asks for):

  correlate:    y[i]  = sum_d x[s i + d - low] w[d]
  input_grad:   dx[n] = sum of y'[i] w[d] over all (i, d) with s i + d - low = n
  kernel_grad:  dw[d] = sum_i x[s i + d - low] y'[i]
"""

from functools import partial

import jax
from jax import lax

from nvae_jax.ops.by_platform import by_platform
from nvae_jax.ops.depthwise import library, native, pallas, shifted
from nvae_jax.ops.depthwise.geometry import convolving, doubling

# name: {platform: module, None: the module for all others}.
IMPLEMENTATIONS = {
    "library": {None: library},
    "shifted": {None: shifted},
    "pallas": {"cuda": pallas, None: library},
    # Not where an array is spread over devices: XLA would gather it for every call.
    "native": {"cpu": native, None: library},
}
# What runs wherever a program is lowered to, on however many devices.
PORTABLE = {"cpu": shifted, None: library}


def depthwise_conv(x, kernel, *, stride=1, implementation=None, precision=None):
    """Cross-correlates every channel with its own kernel, (k - 1) / 2 zeros on every side.

    Args:
      x: (B, H, W, C), float32 or bfloat16; sums are accumulated in float32.
      kernel: (k, k, 1, C), k odd.
      stride: 1 or 2, in both directions. The padding does not depend on it.
      implementation: one of `IMPLEMENTATIONS`, or None to choose by platform when lowered, of those
        that run on any number of devices. "native" is for one CPU device; see `native.problem`.
      precision: as in `lax.conv_general_dilated`; only the library's convolution reads it.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), C), dtype of x.

    Raises:
      ValueError: for shapes, a stride or an implementation other than these.
      RuntimeError: "native" is asked for where it is not available.
    """
    _check(x, kernel, implementation)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")
    geometry = convolving(x.shape[1:3], kernel.shape[0], stride)
    return _apply(x, kernel[:, :, 0], _CONV, geometry, implementation, precision)


def upsample_depthwise_conv(x, kernel, *, implementation=None, precision=None):
    """`depthwise_conv` of x repeated twice along H and W, without making the repeated array.

    Pixels that repeat share their kernel taps: repeating is the transpose of summing 2 x 2
    blocks, so the two together are the transpose of a stride-2 correlation with k + 1 taps. An
    output takes ((k + 1) / 2)^2 products instead of k^2 (9 for 25), in the gradients too.

    Args:
      x: (B, H, W, C).
      kernel: (k, k, 1, C), k odd.
      implementation: as in `depthwise_conv`.
      precision: as in `depthwise_conv`.

    Returns:
      (B, 2 H, 2 W, C), dtype of x.
    """
    _check(x, kernel, implementation)
    geometry = doubling(x.shape[1:3], kernel.shape[0])
    return _apply(x, kernel[:, :, 0], _UPSAMPLE, geometry, implementation, precision)


def _check(x, kernel, implementation):
    k = kernel.shape[0]
    if x.ndim != 4 or kernel.shape != (k, k, 1, x.shape[-1]) or k % 2 == 0:
        raise ValueError(
            "expected x (B, H, W, C) and kernel (k, k, 1, C) with k odd, "
            f"got {x.shape} and {kernel.shape}"
        )
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        known = ", ".join(sorted(IMPLEMENTATIONS))
        raise ValueError(f"unknown implementation {implementation!r}; known: {known}")


# (forward, gradient for x, gradient for the kernel) of the two operations; the arguments are
# (x, w), (g, w) and (x, g), then the geometry and the precision.
_CONV = ("correlate", "input_grad", "kernel_grad")
_UPSAMPLE = ("upsample", "upsample_input_grad", "upsample_kernel_grad")


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.jit, static_argnames=("name", "geometry", "implementation", "precision"))
def _run(name, a, b, geometry, implementation, precision):
    """One map, in the implementation asked for or the platform's own."""
    modules = IMPLEMENTATIONS[implementation] if implementation else PORTABLE
    branches = {
        platform: partial(getattr(module, name), geometry=geometry, precision=precision)
        for platform, module in modules.items()
    }
    default = branches.pop(None)
    if not branches:
        return default(a, b)
    # Operations are counted (planning/flops.py) in what lax's choice shows, which is traced whole.
    by_cpu = implementation and "cpu" in branches
    choose = by_platform if by_cpu else lax.platform_dependent
    return choose(a, b, default=default, **branches)


# The rule wraps the choice of platform: differentiated, the choice would save what any of its
# branches needs.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _apply(x, w, operation, geometry, implementation, precision):
    return _run(operation[0], x, w, geometry, implementation, precision)


def _apply_fwd(x, w, *options):
    return _apply(x, w, *options), (x, w)


def _apply_bwd(operation, geometry, implementation, precision, residuals, g):
    x, w = residuals
    options = (geometry, implementation, precision)
    dx = _run(operation[1], g, w, *options)
    dw = _run(operation[2], x, g, *options)
    return dx, dw.astype(w.dtype)


_apply.defvjp(_apply_fwd, _apply_bwd)
