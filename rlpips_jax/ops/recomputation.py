"""Recomputation of activations in the backward pass that XLA's CPU compiler cannot undo.

`jax.checkpoint` separates the recomputation from the forward pass by a barrier, which that compiler drops: it then
merges the two as common subexpressions, and all activations stay in memory.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from rlpips_jax.ops.reverse_only import reverse_only


def recomputed(function: Callable[[Any, Array], Any]) -> Callable[[Any, Array], Any]:
    """Returns the same function with a reverse derivative that keeps only the arguments and recomputes the rest.

    Args:
        function: takes parameters (any pytree) and an array. It must not close over traced values.

    Under `vmap` the compiler removes the recomputation on CPU; memory is then not reduced.
    """

    @jax.custom_vjp
    def call(parameters: Any, x: Array) -> Any:
        return function(parameters, x)

    def forward(parameters: Any, x: Any) -> tuple[Any, Any]:
        values = jax.tree.map(lambda leaf: leaf.value, parameters)
        learns = any(leaf.perturbed for leaf in jax.tree.leaves(parameters))
        # The shape of the mark carries `learns`: residuals must have one structure for all uses of a traced function.
        return call(values, x.value), (values, x.value, jnp.zeros((0,) if learns else (0, 0)))

    def backward(residuals: Any, cotangent: Any) -> tuple[Any, Array]:
        *arguments, mark = residuals
        learns = mark.ndim == 1

        def pull(parameters: Any, x: Array, cotangent: Any) -> tuple[Any, Array]:
            if not learns:
                result, transpose = jax.vjp(functools.partial(function, parameters), x)
            else:
                result, transpose = jax.vjp(function, parameters, x)
            # A part of the result that is not used has no cotangent.
            gradients = transpose(
                jax.tree.map(lambda leaf, part: jnp.zeros_like(leaf) if part is None else part, result, cotangent)
            )
            return gradients if learns else (None, *gradients)

        def after_barrier(parameters: Any, x: Array, cotangent: Any) -> tuple[Any, Array]:
            return pull(parameters, *lax.optimization_barrier((x, cotangent)))

        def in_branch(parameters: Any, x: Array, cotangent: Any) -> tuple[Any, Array]:
            # The branch is always taken, but the compiler cannot know it: so it neither merges the branch with the
            # forward pass nor runs it before the cotangent is available.
            first = jnp.sum(jax.tree.leaves(cotangent)[0].reshape(-1)[:1])
            never = (parameters if learns else None), x
            return lax.cond(first < first - 1, lambda *_: never, pull, parameters, x, cotangent)

        cotangent = jax.tree.map(
            lambda leaf: None if isinstance(leaf, SymbolicZero) else leaf,
            cotangent,
            is_leaf=lambda leaf: isinstance(leaf, SymbolicZero),
        )
        return lax.platform_dependent(*arguments, cotangent, cpu=in_branch, default=after_barrier)

    call.defvjp(forward, backward, symbolic_zeros=True)
    return lambda parameters, x: call(*reverse_only((parameters, x)))
