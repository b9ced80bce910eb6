"""An error that says what to do where a derivative of our own, which `jax.grad` can take, meets `jax.jvp`.

JAX knows only when it computes a tangent that `jax.jvp`, not `jax.grad`, has asked for it: `jax.grad` transposes the
program of the tangents and never runs it. So the tangents pass through an operation that can be transposed but not run.
"""

from typing import Any, NoReturn, TypeVar

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from rlpips_jax.errors import MetricError

Tree = TypeVar("Tree")

_same = Primitive("reverse_only")
_tangent = Primitive("tangent_of_reverse_only")


def reverse_only(tree: Tree) -> Tree:
    """The same arrays, through which `jax.jvp` cannot pass.

    Args:
        tree: arguments of a function with a `jax.custom_vjp`.

    Raises:
        MetricError: when the tangents of `jax.jvp`, `jax.jacfwd`, `jax.hessian` or `jax.linearize` are computed.
    """
    return jax.tree.map(_same.bind, tree)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise MetricError(
        "jax.jvp, jax.jacfwd, jax.hessian and jax.linearize need a metric with forward-mode derivatives: "
        "rlpips_jax.load(name, forward_mode=True); or take gradients of gradients, as jax.jacrev(jax.grad(f)) does"
    )


def _jvp(primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
    (tangent,) = tangents
    return _same.bind(*primals), tangent if isinstance(tangent, ad.Zero) else _tangent.bind(tangent)


_same.def_impl(lambda x: x)
_same.def_abstract_eval(lambda x: x)
ad.primitive_jvps[_same] = _jvp
batching.primitive_batchers[_same] = lambda arrays, axes: (_same.bind(*arrays), *axes)
mlir.register_lowering(_same, lambda _, x: [x])

_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda tangent: tangent)
ad.deflinear2(_tangent, lambda cotangent, _: [cotangent])
batching.primitive_batchers[_tangent] = _refuse
mlir.register_lowering(_tangent, _refuse)
