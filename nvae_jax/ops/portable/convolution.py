"""Dense convolution with XLA's own operation."""

import jax
from jax import lax

ORDER = ("NHWC", "HWIO", "NHWC")
# The name of a convolution's output in remat policies.
CONV_OUTPUT = "conv_output"


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: lax.PrecisionLike = None
) -> jax.Array:
    """`Ops.conv`."""
    if kernel.shape[0] == 1:
        return _pointwise(x, kernel, stride=stride, precision=precision)
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=ORDER,
        precision=precision,
    )


def _pointwise(x, kernel, *, stride, precision):
    """Convolution with a kernel (1, 1, C, O), as a matrix product."""
    x = x[:, ::stride, ::stride]
    # With more dimensions XLA's CPU backend would transpose the operands, also in the gradients.
    y = lax.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=precision)
    return y.reshape(*x.shape[:-1], -1)
