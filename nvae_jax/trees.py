"""Names the arrays of a tree."""

from typing import Any

import jax


def by_name(tree: Any) -> dict[str, Any]:
    """Returns {path: array} of a tree in its order; paths look like "params/image_head/kernel"."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in paths}
