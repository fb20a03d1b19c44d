"""Trees of arrays."""

from typing import Any

import jax


def by_name(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their path, such as params/image_head/kernel, in the tree's order."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in paths}
