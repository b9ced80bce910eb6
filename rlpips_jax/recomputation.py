"""Recomputation of activations in the gradient that XLA's CPU compiler cannot undo.

`jax.checkpoint` keeps the recomputed apart from the original by a barrier, which that compiler drops: it then finds
both alike, computes once and keeps everything, as if nothing had been asked.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array


def recomputed(function: Callable[[Any, Array], Any]) -> Callable[[Any, Array], Any]:
    """The same function, whose reverse derivative keeps the arguments alone and computes the rest again.

    Args:
        function: of parameters (any pytree) and an array. Neither is closed over.
    """

    @jax.custom_vjp
    def call(parameters: Any, x: Array) -> Any:
        return function(parameters, x)

    def forward(parameters: Any, x: Any) -> tuple[Any, Any]:
        values = jax.tree.map(lambda leaf: leaf.value, parameters)
        learns = any(leaf.perturbed for leaf in jax.tree.leaves(parameters))
        return call(values, x.value), (values, x.value, () if learns else None)

    def backward(residuals: Any, cotangent: Any) -> tuple[Any, Array]:
        *arguments, learns = residuals

        def pull(arguments: Any, cotangent: Any) -> tuple[Any, Array]:
            parameters, x = arguments
            if learns is None:
                return None, jax.vjp(lambda x: function(parameters, x), x)[1](cotangent)[0]
            return jax.vjp(function, parameters, x)[1](cotangent)

        def after_barrier(arguments: Any, cotangent: Any) -> tuple[Any, Array]:
            return pull(*lax.optimization_barrier((arguments, cotangent)))

        def in_branch(arguments: Any, cotangent: Any) -> tuple[Any, Array]:
            # Always taken, which the compiler does not see; so it neither merges the branch with the forward pass
            # nor starts it before the cotangent is there.
            first = jnp.sum(jax.tree.leaves(cotangent)[0].reshape(-1)[:1])
            shapes = jax.eval_shape(pull, arguments, cotangent)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            return lax.cond(first < first - 1, lambda *_: zeros, pull, arguments, cotangent)

        cotangent = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, SymbolicZero) else leaf,
            cotangent,
            is_leaf=lambda leaf: isinstance(leaf, SymbolicZero),
        )
        return lax.platform_dependent(tuple(arguments), cotangent, cpu=in_branch, default=after_barrier)

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call
