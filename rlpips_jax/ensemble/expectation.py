"""Sums over random draws, one draw after another, whose gradients by images cost no second forward pass.

The gradient of a plain `lax.scan` keeps the activations of every draw, and that of `lax.switch` also reserves memory
for the activations of the other branches. Recomputing them costs one more forward pass. But the sum has one value per
example and so one cotangent per example: the gradient of each draw can be computed together with its value, summed, and
multiplied by the cotangents at the end. For gradients by parameters this does not hold, and draws are recomputed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from rlpips_jax.ops.reverse_only import reverse_only
from rlpips_jax.ops.varying import varying_alike

Function = Callable[[Any, Any, Any], Any]
"""`parameters, arguments, draw -> (n, ...)`. Arrays in `arguments` have a first axis of n, and what comes out for an
example depends on that example alone."""

NOT_ASKED = (0, 0)
"""Shape of the array that stands for a gradient that is not needed."""
NOT_READY = (0,)
"""Shape of the array that stands for a gradient that is needed and not computed yet."""


class Draws(NamedTuple):
    """What is summed over.

    Attributes:
        each: a pytree of arrays with a first axis of draws.
        branch: which function each draw goes to; None where there is one function.
    """

    each: Any
    branch: Int[Array, " draws"] | None = None


def summed(
    functions: tuple[Function, ...], parameters: Any, arguments: Any, draws: Draws, *, forward_mode: bool = False
) -> Float[Array, "n ..."]:
    """The sum of what a function gives for each draw.

    Args:
        functions: which close over nothing that is traced.
        parameters: the first argument of all.
        arguments: the second, floating-point arrays.
        draws: the third, one by one.
        forward_mode: use derivatives that `jax.jvp` can take; gradients then recompute each draw.
    """
    parameters, arguments, draws = varying_alike((parameters, arguments, draws))
    if forward_mode:
        checkpointed = tuple(jax.checkpoint(cast(Any, function)) for function in functions)
        return _scan(checkpointed, (parameters, arguments), draws)
    return _summed(functions, *reverse_only((parameters, arguments)), draws)


def _scan(functions: tuple[Callable[..., Any], ...], arguments: tuple[Any, ...], draws: Draws) -> Any:
    """The sum of `function(*arguments, draw)` over draws."""

    def value(draw: Draws) -> Any:
        if draw.branch is None:
            return functions[0](*arguments, draw.each)
        return lax.switch(draw.branch, functions, *arguments, draw.each)

    count = len(jax.tree.leaves(draws)[0])
    if count == 1:
        return value(jax.tree.map(lambda leaf: leaf[0], draws))
    shapes = jax.eval_shape(value, jax.tree.map(lambda leaf: leaf[0], draws))
    zeros = varying_alike(jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes), arguments, draws)

    def add(total: Any, draw: Draws) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value(draw)), None

    return lax.scan(add, zeros, draws)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(functions: tuple[Function, ...], parameters: Any, arguments: Any, draws: Draws) -> Array:
    return _scan(functions, (parameters, arguments), draws)


class _Residuals(NamedTuple):
    """What the backward rule needs.

    JAX caches one structure of residuals for all uses of a traced function, so shapes tell which gradients are needed.

    Attributes:
        inputs: parameters, arguments and draws.
        gradients: one for each array of the parameters, then one for each array of the arguments: the gradient of the
            sum over examples, or an array of shape `NOT_READY` or `NOT_ASKED`.
    """

    inputs: tuple[Any, Any, Draws]
    gradients: list[Array]


def _forward(functions: tuple[Function, ...], *primals: Any) -> tuple[Array, _Residuals]:
    parameters, arguments, draws = jax.tree.map(lambda leaf: leaf.value, primals)
    of_parameters, of_arguments = ([leaf.perturbed for leaf in jax.tree.leaves(tree)] for tree in primals[:2])
    marks = [jnp.zeros(NOT_READY if asked else NOT_ASKED) for asked in (*of_parameters, *of_arguments)]
    inputs = (parameters, arguments, draws)
    result = jax.eval_shape(functools.partial(_scan, functions), inputs[:2], draws)
    if any(of_parameters) or result.ndim != 1:
        return _scan(functions, inputs[:2], draws), _Residuals(inputs, marks)
    leaves, structure = jax.tree.flatten(arguments)

    def with_gradient(function: Function) -> Callable[..., Any]:
        def call(parameters: Any, leaves: list[Array], draw: Any) -> tuple[Array, list[Array]]:
            def total(asked: list[Array]) -> tuple[Array, Array]:
                arguments = jax.tree.unflatten(structure, _joined(asked, leaves, of_arguments))
                values = function(parameters, arguments, draw)
                return values.sum(), values

            asked = [leaf for leaf, wanted in zip(leaves, of_arguments, strict=True) if wanted]
            (_, values), gradients = jax.value_and_grad(total, has_aux=True)(asked)
            return values, gradients

        return call

    total, gradients = _scan(tuple(map(with_gradient, functions)), (parameters, leaves), draws)
    ready = _joined(gradients, marks[len(of_parameters) :], of_arguments)
    return total, _Residuals(inputs, [*marks[: len(of_parameters)], *ready])


def _joined(asked: list[Array], others: list[Array], wanted: list[bool]) -> list[Array]:
    """The other arrays with those that are asked for in their places."""
    rest = iter(asked)
    return [next(rest) if here else other for other, here in zip(others, wanted, strict=True)]


def _backward(
    functions: tuple[Function, ...], residuals: _Residuals, cotangent: Array | SymbolicZero
) -> tuple[Any, Any, None]:
    if isinstance(cotangent, SymbolicZero):
        return None, None, None
    parameters, arguments, draws = residuals.inputs
    leaves, structure = jax.tree.flatten((parameters, arguments))
    gradients = list(residuals.gradients)
    missing = [gradient.shape == NOT_READY for gradient in gradients]
    if any(missing):

        def with_cotangent(function: Function) -> Callable[..., Any]:
            def call(leaves: list[Array], cotangent: Array, draw: Any) -> list[Array]:
                def value(asked: list[Array]) -> Array:
                    parameters, arguments = jax.tree.unflatten(structure, _joined(asked, leaves, missing))
                    return function(parameters, arguments, draw)

                asked = [leaf for leaf, wanted in zip(leaves, missing, strict=True) if wanted]
                return jax.vjp(value, asked)[1](cotangent)[0]

            return call

        found = _scan(tuple(map(with_cotangent, functions)), (leaves, cotangent), draws)
        gradients = _joined(found, gradients, missing)

    def finished(gradient: Array, recomputed: bool) -> Array | None:
        if gradient.shape == NOT_ASKED:
            return None
        return gradient if recomputed else gradient * cotangent.reshape(-1, *(1,) * (gradient.ndim - 1))

    result = [finished(*pair) for pair in zip(gradients, missing, strict=True)]
    of_parameters = jax.tree.structure(parameters).num_leaves
    return (
        jax.tree.unflatten(jax.tree.structure(parameters), result[:of_parameters]),
        jax.tree.unflatten(jax.tree.structure(arguments), result[of_parameters:]),
        None,
    )


_summed.defvjp(_forward, _backward, symbolic_zeros=True)
