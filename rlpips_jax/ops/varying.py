"""Arrays inside `jax.shard_map`, which keeps account of the devices that each array varies over."""

from typing import Any, TypeVar, cast

import jax
from jax import lax
from jaxtyping import Array

Tree = TypeVar("Tree")


def varying_alike(tree: Tree, *others: Any) -> Tree:
    """The same arrays, all of them varying over every axis of devices that one of them varies over.

    The derivative of this step sums the gradients of what was replicated, which a backward rule of our own cannot do;
    and the state of a loop must vary from the start as it will at the end.

    Args:
        tree: arrays.
        others: arrays that may vary over further axes.
    """
    varying = varying_axes((tree, others))

    def cast_(leaf: Array) -> Array:
        lacking = tuple(varying - varying_axes(leaf))
        return lax.pcast(leaf, lacking, to="varying") if lacking else leaf

    return jax.tree.map(cast_, tree) if varying else tree


def varying_axes(tree: Any) -> frozenset[str]:
    """The axes of devices that one of the arrays varies over."""
    return frozenset().union(*(cast(Any, jax.typeof(leaf)).mat.varying for leaf in jax.tree.leaves(tree)))
