"""The optimiser's step with the C++ kernels: one call for all arrays, which compiles faster."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nvae_jax.ops.cpu import native
from nvae_jax.ops.portable.optimizer import SMALL
from nvae_jax.trees import by_name


def global_norm(tree: Any) -> jax.Array:
    """`Ops.global_norm`."""
    return native.call("norm", (), *jax.tree.leaves(tree))


def optimizer_step(
    optimizer: Any, gradients: Any, state: Any, params: Any, accept: ArrayLike
) -> tuple[Any, Any]:
    """`Ops.optimizer_step`, with all arrays in one call."""
    settings = optimizer.settings
    *others, moments, old_rate = state
    # The factor by which the last part of the optax chain multiplies m / u.
    last = optax.scale_by_learning_rate(optimizer.learning_rate)
    rate, new_rate = last.update(jnp.ones(()), old_rate)
    count = optax.safe_increment(moments.count)
    clip = settings.gradient_clip
    factor = jnp.minimum(1.0, clip / global_norm(gradients)) if clip else 1.0
    scalars = jnp.stack([accept, factor, rate / (1 - settings.B1**count)]).astype(jnp.float32)
    old, structure = jax.tree.flatten(params)
    (means, stored), largest = jax.tree.flatten(moments.mu), jax.tree.leaves(moments.nu)
    replaced = [*old, *means, *largest]
    new = native.call(
        "adamax",
        [array.shape for array in replaced],
        scalars,
        *jax.tree.leaves(gradients),
        *replaced,
        in_place={1 + len(old) + i: i for i in range(len(replaced))},
        b1=settings.B1,
        b2=settings.B2,
        epsilon=float(settings.epsilon),
        decay=float(settings.weight_decay),
        **_places_in(moments.mu, params),
    )
    parts = new[: len(old)], new[len(old) : -len(largest)], new[-len(largest) :]
    params, mu, nu = map(jax.tree.unflatten, (structure, stored, stored), parts)
    count, rate_state = optax.tree.where(accept, (count, new_rate), (moments.count, old_rate))
    return params, (*others, optax.ScaleByAdamState(count, mu, nu), rate_state)


def _places_in(moments, params):
    """For each parameter the index of the array of `portable.optimizer.concatenate_small` that
    contains it, and its first entry in that array."""
    names, places, starts, end = sorted(moments), [], [], 0
    for name, leaf in by_name(params).items():
        is_small = leaf.size < SMALL
        places.append(names.index("small" if is_small else name))
        starts.append(end if is_small else 0)
        end += leaf.size if is_small else 0
    return {"places": places, "starts": starts}
