"""Recomputation of activations in the gradient that XLA's CPU compiler cannot undo.

`jax.checkpoint` keeps the recomputed apart from the original by a barrier, which that compiler drops: it then finds
both alike, computes once and keeps everything, as if nothing had been asked.
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
    """The same function, whose reverse derivative keeps the arguments alone and computes the rest again.

    Args:
        function: of parameters (any pytree) and an array. Neither is closed over.

    Under `vmap` the compiler does see through it on CPU, and memory is as without.
    """

    @jax.custom_vjp
    def call(parameters: Any, x: Array) -> Any:
        return function(parameters, x)

    def forward(parameters: Any, x: Any) -> tuple[Any, Any]:
        values = jax.tree.map(lambda leaf: leaf.value, parameters)
        learns = any(leaf.perturbed for leaf in jax.tree.leaves(parameters))
        # A mark by its shape: JAX remembers one structure of residuals for all uses of a traced function.
        return call(values, x.value), (values, x.value, jnp.zeros((0,) if learns else (0, 0)))

    def backward(residuals: Any, cotangent: Any) -> tuple[Any, Array]:
        *arguments, mark = residuals
        learns = mark.ndim == 1

        def pull(parameters: Any, x: Array, cotangent: Any) -> tuple[Any, Array]:
            if not learns:
                result, transpose = jax.vjp(functools.partial(function, parameters), x)
            else:
                result, transpose = jax.vjp(function, parameters, x)
            # A part of the result that nothing depends on has no cotangent.
            gradients = transpose(
                jax.tree.map(lambda leaf, part: jnp.zeros_like(leaf) if part is None else part, result, cotangent)
            )
            return gradients if learns else (None, *gradients)

        def after_barrier(parameters: Any, x: Array, cotangent: Any) -> tuple[Any, Array]:
            return pull(parameters, *lax.optimization_barrier((x, cotangent)))

        def in_branch(parameters: Any, x: Array, cotangent: Any) -> tuple[Any, Array]:
            # Always taken, which the compiler does not see; so it neither merges the branch with the forward pass
            # nor starts it before the cotangent is there.
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
