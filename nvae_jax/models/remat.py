"""What the backward pass keeps of the forward pass, and what it computes again.

Memory against time (paper, section 3.1, "reducing the memory requirements"):

  none      keeps every intermediate that a gradient wants.
  norm_act  keeps the outputs of convolutions; batch norms, activations and gates are computed
            again: the paper's trick, for next to no time.
  cell      keeps the input of every cell.
  group     keeps the input of every group of a scale, and of every cell outside the groups.

All keep the mean and the variance of every batch norm: they are small, and over many devices each
costs a round of communication.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from nvae_jax.ops.portable.normalization import STATISTICS

POLICIES = ("none", "norm_act", "cell", "group")
_CONV_OUTPUT = "conv_output"


def name_conv_output(y: jax.Array) -> jax.Array:
    """Names a convolution's output, so that the policy `norm_act` keeps it."""
    return checkpoint_name(y, _CONV_OUTPUT)


def remat_cell(policy: str, cell: partial, looped: bool = False) -> partial:
    """A cell factory whose cells keep what the policy says.

    Args:
      policy: one of `POLICIES`.
      cell: a `functools.partial` of a module with __call__(x, train).
      looped: whether the cell is in the body of a loop. There the compiler cannot merge the second
        computation with the first; elsewhere it would, and has to be stopped.
    """
    if policy == "none":
        return cell
    module = _remat(policy, cell.func, train=2, looped=looped)
    return partial(module, *cell.args, **cell.keywords)


def remat_group(
    policy: str, group: Callable[..., nn.Module], cell: partial, looped: bool
) -> tuple[Callable[..., nn.Module], partial]:
    """A group's module and the cell factory for it, one of which keeps what the policy says.

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
    """`train` is the argument's place in __call__, the module itself being 0."""
    kept = (STATISTICS, _CONV_OUTPUT) if policy == "norm_act" else (STATISTICS,)
    return nn.remat(
        module,
        policy=jax.checkpoint_policies.save_only_these_names(*kept),
        static_argnums=(train,),
        prevent_cse=not looped,
    )
