"""Rematerialisation: which intermediates are stored for the backward pass, and which recomputed.

The policies trade memory for time (paper, section 3.1, "reducing the memory requirements"):

  none      stores every intermediate that a gradient needs.
  norm_act  stores the outputs of convolutions and recomputes batch norms, activations and gates:
            the paper's method, which costs almost no time.
  cell      stores the input of every cell.
  group     stores the input of every group of a scale, and of every cell outside the groups.

All store the mean and the variance of every batch norm: they are small, and recomputing them would
need communication between devices.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from nvae_jax.ops.portable.convolution import CONV_OUTPUT
from nvae_jax.ops.portable.normalization import STATISTICS

POLICIES = ("none", "norm_act", "cell", "group")


def name_conv_output(y: jax.Array) -> jax.Array:
    """Names a convolution's output, so that the policy `norm_act` stores it."""
    return checkpoint_name(y, CONV_OUTPUT)


def remat_cell(policy: str, cell: partial, looped: bool = False) -> partial:
    """Wraps a cell factory so that its cells follow a policy.

    Args:
      policy: one of `POLICIES`.
      cell: a `functools.partial` of a module with __call__(x, train).
      looped: whether the cell is in the body of a loop, where the compiler cannot merge the
        recomputation with the first computation. Elsewhere it must be prevented from doing so.
    """
    if policy == "none":
        return cell
    module = _remat(policy, cell.func, train=2, looped=looped)
    return partial(module, *cell.args, **cell.keywords)


def remat_group(
    policy: str, group: Callable[..., nn.Module], cell: partial, looped: bool
) -> tuple[Callable[..., nn.Module], partial]:
    """Wraps a group's module or the factory of its cells, as the policy requires, and returns both.

    Args:
      policy: one of `POLICIES`.
      group: a module class with __call__(carry, inputs, train).
      cell: as in `remat_cell`, not wrapped.
      looped: as in `remat_cell`.
    """
    if policy == "cell":
        return group, remat_cell(policy, cell, looped)
    if policy == "none":
        return group, cell
    return _remat(policy, group, train=3, looped=looped), cell


def _remat(policy, module, train, looped):
    """Wraps a module; `train` is the index of that argument of __call__, where `self` is 0."""
    stored = (STATISTICS, CONV_OUTPUT) if policy == "norm_act" else (STATISTICS,)
    return nn.remat(
        module,
        policy=jax.checkpoint_policies.save_only_these_names(*stored),
        static_argnums=(train,),
        prevent_cse=not looped,
    )
