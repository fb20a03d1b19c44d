"""Batch norm, swish, a depthwise convolution, batch norm and swish, in few passes over memory.

The hidden layer of an inverted residual cell is the model's largest array, and each of these
operations by itself would read and write it. Here the convolution's kernel normalises what it
reads, and sums up what the second norm needs. The kernel of the backward pass computes the gradient
that the second norm passes on, that for the convolution's input, and that for its weights, and sums
up what the first norm's gradient needs.

With upsampling, an output at (2 i + p, 2 j + q) depends on the inputs around (i, j), with weights
that depend on its phase (p, q).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from nvae_jax.ops.gpu import columns
from nvae_jax.ops.gpu.image_blocks import Blocks, Channels, masked, multiply_add
from nvae_jax.ops.gpu.normalization import (
    apply_gradient,
    deviation_sums,
    gain_and_shift,
    gradient_sums,
    input_gradient,
    moments,
    normalize,
    swish,
    swish_slope,
)
from nvae_jax.ops.interface import Moments
from nvae_jax.ops.portable.convolution import CONV_OUTPUT
from nvae_jax.ops.portable.normalization import STATISTICS

Norm = tuple[jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def normalized_depthwise(
    epsilon: float,
    phases: int,
    interpret: bool,
    x: jax.Array,
    kernel: jax.Array,
    before: Norm,
    after: Norm,
) -> tuple[jax.Array, tuple[Moments, Moments]]:
    """`Ops.normalized_depthwise_conv` for a kernel (k, k, C); `phases` is 2 to upsample, or 1."""
    return _forward(epsilon, phases, interpret, x, kernel, before, after)[0]


def _forward(epsilon, phases, interpret, x, kernel, before, after):
    # Names are outside of jit, inside of which remat does not look for them.
    sums = checkpoint_name(deviation_sums(x, before[2], interpret), STATISTICS)
    y, sums, *first = _convolve(epsilon, phases, interpret, x, kernel, before, sums, after[2])
    y, (sums, first) = checkpoint_name(y, CONV_OUTPUT), checkpoint_name((sums, first), STATISTICS)
    options = dict(epsilon=epsilon, with_swish=True, interpret=interpret)
    z, *second = normalize(y, after, sums, **options)
    second = checkpoint_name(second, STATISTICS)
    residuals = x, y, kernel, (*before[:2], *first), (*after[:2], *second)
    return (z, (tuple(first), tuple(second))), residuals


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.jit, static_argnums=(0, 1, 2))
def _convolve(epsilon, phases, interpret, x, kernel, before, sums, next_center):
    """The convolution's result, the sums of its deviations from `next_center`, and mean and
    variance of x."""
    weights = _by_phase(kernel, phases)
    blocks = Blocks(x.shape, weights.shape[2], phases)
    batch, height, width, channels = x.shape
    shape = batch, phases * height, phases * width, channels
    vector = jax.ShapeDtypeStruct((channels,), jnp.float32)
    y, sums, mean, var = blocks.call(
        partial(_convolution_kernel, blocks=blocks, epsilon=epsilon),
        (x, weights, *before, sums, next_center),
        [jax.ShapeDtypeStruct(shape, x.dtype), blocks.parts(2), vector, vector],
        name="normalized_depthwise",
        interpret=interpret,
    )
    return y, columns.few(sums), mean, var


@partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(epsilon, phases, interpret, residuals, cotangents):
    (x, y, kernel, before, after), (g, _) = residuals, cotangents
    weights, pullback = jax.vjp(partial(_by_phase, phases=phases), kernel)
    blocks = Blocks(x.shape, weights.shape[2], phases)
    options: Any = dict(epsilon=epsilon, interpret=interpret)
    sums = gradient_sums(y, g, after, with_swish=True, **options)
    vector = jax.ShapeDtypeStruct(x.shape[3:], jnp.float32)
    inner, by_weights, inner_sums, *second = blocks.call(
        partial(_gradient_kernel, blocks=blocks, epsilon=epsilon),
        (x, y, g, weights, *before, *after, sums),
        [
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            blocks.parts(*weights.shape[:-1]),
            blocks.parts(2),
            vector,
            vector,
        ],
        name="normalized_depthwise_grad",
        interpret=interpret,
    )
    inner_sums = columns.few(inner_sums)
    dx, *first = apply_gradient(x, inner, before, inner_sums, with_swish=False, **options)
    return dx, *pullback(by_weights.sum(0)), (*first, None), (*second, None)


normalized_depthwise.defvjp(_forward, _backward)


def _by_phase(kernel, phases):
    """The weights (phases, phases, taps, taps, C) of the inputs around each, in float32."""
    kernel = kernel.astype(jnp.float32)
    if phases == 1:
        return kernel[None, None]
    low = kernel.shape[0] // 2
    phase, tap, row = np.ogrid[:phases, : 2 * -(-low // phases) + 1, : len(kernel)]
    meet = ((phase + row - low) // phases == tap + -low // phases).astype(np.float32)
    return jnp.einsum("pti,qsj,ijc->pqtsc", meet, meet, kernel, precision="highest")


def _convolution_kernel(*refs, blocks, epsilon):
    x, weights, *norm, next_center, y, found, mean_ref, var_ref = refs
    channels = Channels(x.shape[3])
    weights = channels.weights(weights)
    scale, bias, center, *sums = channels.vectors(*norm)
    (next_center,) = channels.vectors(next_center)
    mean, var = moments(sums, center, _count(x))
    gain, shift = gain_and_shift(scale, bias, mean, var, epsilon)

    def read(*at):
        inside = channels.inside(x, *at)
        return masked(inside, swish(channels.pixel(x, inside, *at) * gain + shift))

    def each(image, row, column, window, totals):
        total, square = totals
        for n in range(blocks.columns):
            for phase, (i, j) in blocks.pixels_at(row, column + n):
                value = channels.zeros()
                for tap, activation in blocks.around(window, n):
                    value = multiply_add(value, activation, weights[phase + tap])
                inside = channels.inside(y, image, i, j)
                stored = channels.store_pixel(y, value, inside, image, i, j)
                off = masked(inside, stored - next_center)
                total, square = total + off, multiply_add(square, off, off)
        return [total, square]

    channels.store_once(mean_ref, mean)
    channels.store_once(var_ref, var)
    channels.store_part(found, blocks.go_down(read, each, [channels.zeros()] * 2))


def _gradient_kernel(*refs, blocks, epsilon):
    x, y, g, weights, *norms, inner, by_weights, found, scale_grad, bias_grad = refs
    channels, last = Channels(x.shape[3]), blocks.taps - 1
    weights = channels.weights(weights)
    before, (*after, total, along) = channels.vectors(*norms[:4]), channels.vectors(*norms[4:])
    by_inner, by_y, constant = input_gradient(after, (total, along), _count(y), epsilon)
    gain, shift = gain_and_shift(*before, epsilon=epsilon)
    next_gain, next_shift = gain_and_shift(*after, epsilon=epsilon)

    def gradient(*at):
        """For an output of the convolution."""
        inside = channels.inside(y, *at)
        value = channels.pixel(y, inside, *at)
        by_scaled = channels.pixel(g, inside, *at) * swish_slope(value * next_gain + next_shift)
        return masked(inside, by_inner * by_scaled + by_y * value + constant)

    def read(image, row, column):
        return {phase: gradient(image, *at) for phase, at in blocks.pixels_at(row, column)}

    def each(image, row, column, window, totals):
        (total, along), by_weights = totals[:2], dict(zip(weights, totals[2:], strict=True))
        for n in range(blocks.columns):
            at, by_activation = (image, row, column + n), channels.zeros()
            inside = channels.inside(x, *at)
            value = channels.pixel(x, inside, *at)
            scaled = value * gain + shift
            activation = masked(inside, swish(scaled))
            for (i, j), gradients in blocks.around(window, n):
                for phase, gradient in gradients.items():
                    # An input meets the outputs around it with the taps in the opposite order.
                    tap = (*phase, last - i, last - j)
                    by_activation = multiply_add(by_activation, gradient, weights[tap])
                    by_weights[tap] = multiply_add(by_weights[tap], gradient, activation)
            by_scaled = by_activation * swish_slope(scaled)
            stored = masked(inside, channels.store_pixel(inner, by_scaled, inside, *at))
            total, along = total + stored, multiply_add(along, stored, value - before[2])
        return [total, along, *by_weights.values()]

    channels.store_once(scale_grad, along * lax.rsqrt(after[3] + epsilon))
    channels.store_once(bias_grad, total)
    totals = blocks.go_down(read, each, [channels.zeros()] * (2 + len(weights)))
    channels.store_part(found, totals[:2])
    channels.store_part(by_weights, totals[2:])


def _count(images):
    """The number of values of each channel."""
    return images.shape[0] * images.shape[1] * images.shape[2]
