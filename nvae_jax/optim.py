"""Adamax with coupled weight decay, linear warm-up and cosine decay, as an optax chain."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nvae_jax.ops import native

# Parameters of fewer entries are updated as one vector: each array of the state costs a program of
# its own, and most of a model's arrays are small. No array of this size is sharded.
SMALL = 2**12
B1, B2 = 0.9, 0.999  # decay of the first and of the infinity moment


@dataclass(frozen=True)
class OptimizerSettings:
    """Attributes:
    learning_rate: the highest, at the end of the warm-up.
    min_learning_rate: at the end of the run.
    warmup_steps: over which the rate rises linearly from 0.
    weight_decay: times each parameter, added to its gradient.
    epsilon: added to |gradient| inside Adamax's maximum.
    gradient_clip: the largest Euclidean norm of all gradients together; 0: not clipped.
    """

    num_steps: int
    learning_rate: float = 1e-2
    min_learning_rate: float = 1e-4
    warmup_steps: int = 0
    weight_decay: float = 3e-4
    epsilon: float = 1e-3
    gradient_clip: float = 0.0

    def __post_init__(self):
        for name in ("learning_rate", "epsilon"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optimizer.{name} must be positive, not {getattr(self, name)}")
        for name in ("min_learning_rate", "warmup_steps", "weight_decay", "gradient_clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is negative: {getattr(self, name)}")


def learning_rate_schedule(settings):
    """Maps a step to its learning rate: linear from 0, then cosine to the lowest, every step."""
    decay_steps = max(settings.num_steps - settings.warmup_steps, 1)
    lowest = settings.min_learning_rate / settings.learning_rate
    cosine = optax.cosine_decay_schedule(settings.learning_rate, decay_steps, alpha=lowest)
    if not settings.warmup_steps:
        return cosine
    linear = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
    return optax.join_schedules([linear, cosine], [settings.warmup_steps])


class Optimizer(NamedTuple):
    """An optax transformation, and its whole step as one function.

    init: parameters -> state.
    update: (gradients, state, params, accept=...) -> (updates, state), as in optax. With `accept`
      False the state stays as it is.
    step: (gradients, state, params, accept, implementation=None) -> (params, state), the old ones
      if not `accept`. By `nvae_jax.ops.native` if the implementation is "native", otherwise XLA's.
    clip: the largest norm of all gradients together that is not clipped; 0: none is.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    step: Callable[..., Any]
    clip: float


def adamax(settings, learning_rate=None):
    """u = max(0.999·u, |g| + ε); m = 0.9·m + 0.1·g; p -= lr / (1 - 0.9^t) · m / u.

    Gradients are clipped, where they are, ahead of the weight decay.

    Args:
      settings: `OptimizerSettings`.
      learning_rate: a number or schedule; None takes the settings' schedule.

    Returns:
      an `Optimizer`.
    """
    if learning_rate is None:
        learning_rate = learning_rate_schedule(settings)
    clip = settings.gradient_clip
    chain = optax.chain(
        *([optax.clip_by_global_norm(clip)] if clip else []),
        optax.add_decayed_weights(settings.weight_decay),
        scale_by_adamax(B1, B2, settings.epsilon),
        skipping(optax.scale_by_learning_rate(learning_rate)),
    )
    optimizer = joined(chain)

    def step(gradients, state, params, accept, implementation=None):
        if implementation == "native":
            return _native_step(settings, learning_rate, gradients, state, params, accept)
        updates, state = optimizer.update(gradients, state, params, accept=accept)
        updated = optax.apply_updates(params, updates)
        return optax.tree.where(accept, updated, params), state

    return Optimizer(*optimizer, step, clip)


def _native_step(settings, learning_rate, gradients, state, params, accept):
    """The step of `adamax`, with everything but numbers in one call."""
    *ahead, moments, old_rate = state
    # What the chain's last part makes of m / u: of 1, here.
    rate, new_rate = optax.scale_by_learning_rate(learning_rate).update(jnp.ones(()), old_rate)
    count = optax.safe_increment(moments.count)
    clip = settings.gradient_clip
    factor = jnp.minimum(1.0, clip / global_norm(gradients, "native")) if clip else 1.0
    scalars = jnp.stack([accept, factor, rate / (1 - B1**count)]).astype(jnp.float32)
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
        b1=B1,
        b2=B2,
        epsilon=float(settings.epsilon),
        decay=float(settings.weight_decay),
        **_places_in(moments.mu, params),
    )
    parts = new[: len(old)], new[len(old) : -len(largest)], new[-len(largest) :]
    params, mu, nu = map(jax.tree.unflatten, (structure, stored, stored), parts)
    count, rate_state = optax.tree.where(accept, (count, new_rate), (moments.count, old_rate))
    return params, (*ahead, optax.ScaleByAdamState(count, mu, nu), rate_state)


def _places_in(moments, params):
    """For each parameter the array of `_join`'s that it is in, and the entry it starts at there."""
    names, places, starts, end = sorted(moments), [], [], 0
    for name, leaf in _named_leaves(params):
        is_small = leaf.size < SMALL
        places.append(names.index("small" if is_small else name))
        starts.append(end if is_small else 0)
        end += leaf.size if is_small else 0
    return {"places": places, "starts": starts}


def skipping(transformation):
    """`transformation` that keeps its old state where `accept` is False."""

    def update(gradients, state, params=None, *, accept=True, **_):
        updates, new = transformation.update(gradients, state, params)
        return updates, optax.tree.where(accept, new, state)

    return optax.GradientTransformationExtraArgs(transformation.init, update)


def scale_by_adamax(b1, b2, epsilon):
    """`optax.scale_by_adamax`, `skipping`."""
    adamax = skipping(optax.scale_by_adamax(b1, b2, epsilon))

    def update(gradients, state, params=None, **extra):
        _, new = adamax.update(gradients, state, params, **extra)
        # The updates are made of the moments as they are stored. Else the compiler computes them
        # from the old ones once more, which it then has to copy ahead of overwriting them.
        new = jax.lax.optimization_barrier(new)
        correction = 1 - b1**new.count
        return jax.tree.map(lambda m, u: m / (correction * u), new.mu, new.nu), new

    return optax.GradientTransformationExtraArgs(adamax.init, update)


def joined(optimizer, limit=SMALL):
    """`optimizer` with all arrays of fewer than `limit` entries joined to one vector.

    For optimisers that treat every entry alike. The state has the large arrays under their paths,
    and the vector under "small".
    """

    def init(params):
        return optimizer.init(_join(params, limit))

    def update(gradients, state, params, **extra):
        updates, state = optimizer.update(
            _join(gradients, limit), state, _join(params, limit), **extra
        )
        return _part(updates, params, limit), state

    return optax.GradientTransformationExtraArgs(init, update)


def global_norm(tree, implementation=None):
    """The Euclidean norm of all entries of a tree of arrays; `implementation` as in `Optimizer`."""
    if implementation == "native":
        return native.call("norm", (), *jax.tree.leaves(tree))
    return optax.tree.norm(_join(tree))


def _join(tree, limit=SMALL):
    leaves = _named_leaves(tree)
    joined = {name: leaf for name, leaf in leaves if leaf.size >= limit}
    small = [leaf.reshape(-1) for _, leaf in leaves if leaf.size < limit]
    return {**joined, "small": jnp.concatenate(small)} if small else joined


def _part(joined, like, limit):
    """The inverse of `_join`, in the structure of the tree `like`."""
    leaves, start = [], 0
    for name, leaf in _named_leaves(like):
        if leaf.size >= limit:
            leaves.append(joined[name])
        else:
            part = jax.lax.slice_in_dim(joined["small"], start, start + leaf.size)
            leaves.append(part.reshape(leaf.shape))
            start += leaf.size
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
