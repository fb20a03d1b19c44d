"""A choice between functions, made when a program is lowered.

`lax.platform_dependent` traces all that there is to choose from, wherever a program runs: for the
C++ kernels, nearly twice the time to trace a training step. Here only what is chosen is traced.
"""

import jax
from jax import core
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def by_platform(*arguments, default, cpu=None, cuda=None):
    """cpu(*arguments) in programs for CPU, cuda(*arguments) in those for NVIDIA's GPUs, where these
    are given, and default(*arguments) in all others.

    Without a derivative: `jax.custom_vjp` goes around it.

    Args:
      arguments: trees of arrays.
      default, cpu, cuda: functions with results of the same structure, shapes and dtypes.
    """
    flat, structure = jax.tree.flatten(arguments)
    results, result_structure = jax.tree.flatten(jax.eval_shape(cpu or cuda or default, *arguments))

    def on_leaves(function):
        return lambda *leaves: jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    shapes = tuple((result.shape, result.dtype) for result in results)
    branches = {"default": default, "cpu": cpu or default, "cuda": cuda or default}
    branches = {name: on_leaves(function) for name, function in branches.items()}
    chosen = _choice.bind(*flat, **branches, shapes=shapes)
    return jax.tree.unflatten(result_structure, chosen)


_choice = Primitive("by_platform")
_choice.multiple_results = True


@_choice.def_impl
def _run(*arrays, **options):
    return jax.jit(lambda *arrays: _choice.bind(*arrays, **options))(*arrays)


@_choice.def_abstract_eval
def _shapes(*_, shapes, **__):
    return [core.ShapedArray(*shape) for shape in shapes]


def _lower(which):
    def rule(context, *arrays, **options):
        return mlir.lower_fun(options[which], multiple_results=True)(context, *arrays)

    return rule


for _platform in ("cpu", "cuda"):
    mlir.register_lowering(_choice, _lower(_platform), platform=_platform)
mlir.register_lowering(_choice, _lower("default"))


def _batch(arrays, axes, **options):
    del options["shapes"]
    branches = {which: jax.vmap(function, axes) for which, function in options.items()}
    results = by_platform(*arrays, **branches)
    return results, [0] * len(results)


batching.primitive_batchers[_choice] = _batch
