"""Squeeze and excitation with the residual sum, in one kernel with a program for each image."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from nvae_jax.ops.gpu.options import options

TILE = 2**12  # entries of an image that a program holds at once
# Beyond these an image is too much for one program, and its gates are for registers.
MOST_PIXELS, MOST_CHANNELS = 2**10, 2**9


def supports(x: jax.Array) -> bool:
    """Whether images x (B, H, W, C) are small enough for one program each."""
    return x.shape[1] * x.shape[2] <= MOST_PIXELS and x.shape[3] <= MOST_CHANNELS


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def add_gated(
    scale: float,
    interpret: bool,
    skip: jax.Array,
    x: jax.Array,
    reduce: jax.Array,
    reduce_bias: jax.Array,
    expand: jax.Array,
    expand_bias: jax.Array,
) -> jax.Array:
    """`Ops.add_gated`: returns skip + scale · x · gate(means of x)."""
    return pl.pallas_call(
        partial(_add_gated, scale=scale),
        out_shape=jax.ShapeDtypeStruct(skip.shape, skip.dtype),
        grid=(x.shape[0],),
        name="squeeze_excitation",
        **options(interpret),
    )(skip, x, reduce, reduce_bias, expand, expand_bias)


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(scale, interpret, arrays, g):
    x, reduce, reduce_bias, expand, expand_bias = arrays
    batch, channels, hidden = x.shape[0], *reduce.shape
    wide, narrow = (jax.ShapeDtypeStruct((batch, n), jnp.float32) for n in (channels, hidden))
    dx, *vectors = pl.pallas_call(
        partial(_input_grad, scale=scale),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), wide, narrow, narrow, wide],
        grid=(batch,),
        name="squeeze_excitation_grad",
        **options(interpret),
    )(x, reduce, reduce_bias, expand, expand_bias, g)
    given = (reduce, reduce_bias, expand, expand_bias)
    return (
        g,
        dx,
        *pl.pallas_call(
            _kernel_grad,
            out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in given],
            grid=(pl.cdiv(channels, _CHANNELS), hidden),
            name="squeeze_excitation_kernel_grad",
            **options(interpret, 8),
        )(*vectors),
    )


add_gated.defvjp(lambda *arguments: (add_gated(*arguments), arguments[3:]), _gradients)


def _load(ref, *at, inside):
    at = jnp.broadcast_arrays(*at)
    mask = jnp.broadcast_to(inside, at[0].shape)
    return plgpu.load(ref.at[*at], mask=mask, other=0.0).astype(jnp.float32)


def _store(ref, value, *at, inside):
    at = jnp.broadcast_arrays(*at)
    plgpu.store(ref.at[*at], value.astype(ref.dtype), mask=jnp.broadcast_to(inside, at[0].shape))


def _range(n):
    """Returns 0, 1, ... up to the next power of two, and a mask of those below n."""
    numbers = jnp.arange(pl.next_power_of_2(n))
    return numbers, numbers < n


class _Image:
    """The tiles of one image of an array (B, H, W, C)."""

    def __init__(self, shape):
        self.number = pl.program_id(0)
        self.height, self.width, channels = shape[1:]
        self.channels, self.inside = _range(channels)
        self.rows = max(TILE // self.channels.size, 1)
        self.pixels = self.height * self.width
        self.steps = pl.cdiv(self.pixels, self.rows)

    def tile(self, step):
        """Returns the indices (rows, channels) of a tile and a mask of those inside the image."""
        pixel = step * self.rows + jnp.arange(self.rows)
        at = self.number, (pixel // self.width)[:, None], (pixel % self.width)[:, None]
        return (*at, self.channels[None]), (pixel < self.pixels)[:, None] & self.inside[None]

    def sums(self, function):
        """Sums function(indices, mask) -> (rows, channels) over the pixels."""

        def add(step, total):
            at, inside = self.tile(step)
            return total + function(at, inside)

        zeros = jnp.zeros((self.rows, self.channels.size), jnp.float32)
        return lax.fori_loop(0, self.steps, add, zeros).sum(0)

    def each(self, function):
        lax.fori_loop(0, self.steps, lambda step, _: function(*self.tile(step)), None)


class _Gate:
    """The gate of one image, with the intermediate values that its gradient needs."""

    def __init__(self, image, x, reduce, reduce_bias, expand, expand_bias):
        channels, there = image.channels, image.inside
        hidden, inside = _range(reduce.shape[1])
        both = there[:, None] & inside[None]
        self.means = image.sums(lambda at, mask: _load(x, *at, inside=mask)) / image.pixels
        self.reduce = _load(reduce, channels[:, None], hidden[None], inside=both)
        self.expand = _load(expand, hidden[None], channels[:, None], inside=both)  # (C, R) too
        before = (self.means[:, None] * self.reduce).sum(0)
        before += _load(reduce_bias, hidden, inside=inside)
        self.hidden = jnp.maximum(before, 0.0)
        out = (self.hidden[None] * self.expand).sum(1) + _load(expand_bias, channels, inside=there)
        self.value = 1.0 / (1.0 + jnp.exp(-out))
        self.numbers, self.inside = hidden, inside


def _add_gated(skip, x, *refs, scale):
    *weights, result = refs
    image = _Image(x.shape)
    gain = scale * _Gate(image, x, *weights).value

    def add(at, inside):
        total = _load(skip, *at, inside=inside) + gain[None] * _load(x, *at, inside=inside)
        _store(result, total, *at, inside=inside)

    image.each(add)


def _input_grad(x, *refs, scale):
    *weights, g, dx, means, hidden, hidden_grad, out_grad = refs
    image = _Image(x.shape)
    gate = _Gate(image, x, *weights)

    def along(at, inside):
        return _load(g, *at, inside=inside) * _load(x, *at, inside=inside)

    by_out = scale * image.sums(along) * gate.value * (1.0 - gate.value)
    by_hidden = jnp.where(gate.hidden > 0, (by_out[:, None] * gate.expand).sum(0), 0.0)
    by_pixel = (by_hidden[None] * gate.reduce).sum(1) / image.pixels

    def move(at, inside):
        found = scale * gate.value[None] * _load(g, *at, inside=inside) + by_pixel[None]
        _store(dx, found, *at, inside=inside)

    image.each(move)
    for ref, vector in ((means, gate.means), (out_grad, by_out)):
        _store(ref, vector, image.number, image.channels, inside=image.inside)
    for ref, vector in ((hidden, gate.hidden), (hidden_grad, by_hidden)):
        _store(ref, vector, image.number, gate.numbers, inside=gate.inside)


_CHANNELS = 32  # per program that computes the kernels' gradients


def _kernel_grad(means, hidden, hidden_grad, out_grad, reduce, reduce_bias, expand, expand_bias):
    """Sums the kernels' gradients over the batch, for a block of channels and one hidden unit."""
    block, unit = pl.program_id(0), pl.program_id(1)
    images, some = _range(means.shape[0])
    channels = block * _CHANNELS + jnp.arange(_CHANNELS)
    there = channels < means.shape[1]
    inside = some[:, None] & there[None]
    wide = [_load(ref, images[:, None], channels[None], inside=inside) for ref in (means, out_grad)]
    narrow = [_load(ref, images, unit, inside=some) for ref in (hidden_grad, hidden)]
    by_reduce, by_expand = (a * b[:, None] for a, b in zip(wide, narrow, strict=True))
    _store(reduce, by_reduce.sum(0), channels, unit, inside=there)
    _store(expand, by_expand.sum(0), unit, channels, inside=there)
    _store(expand_bias, wide[1].sum(0), channels, inside=there & (unit == 0))
    first = jnp.zeros(1, jnp.int32)
    _store(reduce_bias, narrow[0].sum()[None], unit + first, inside=(block == 0) & (first == 0))
