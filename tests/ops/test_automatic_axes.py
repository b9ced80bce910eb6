"""Functions run on arrays that are sharded over explicit axes, and say how their results are sharded."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.convolution import convolution
from rlpips_jax.ops.pooling import Pooling, pool

SPECS = {"batch": PartitionSpec("data"), "height": PartitionSpec(None, "data")}


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Explicit,))


def spec(array: Any) -> tuple[Any, ...]:
    return tuple(cast(Any, jax.typeof(array)).sharding.spec)


@automatic_axes("x")
def parts(x: jax.Array, shift: int) -> dict[str, jax.Array]:
    """Operations that explicit axes forbid: a slice and a reshape along every axis, and a gather."""
    rolled = jnp.concatenate([x[shift:], x[:shift]])
    return {
        "same": rolled[:, ::-1],
        "flat": x.reshape(-1)[1:],
        "means": rolled.mean(axis=(1, 2))[jnp.arange(x.shape[0])],
    }


@pytest.mark.parametrize("axis", SPECS)
def test_results_are_sharded_as_the_argument_along_the_axes_they_share(axis: str, mesh: Mesh) -> None:
    x = np.random.default_rng(0).random((8, 4, 3), np.float32)
    sharded = jax.device_put(x, NamedSharding(mesh, SPECS[axis]))
    found, expected = jax.jit(parts, static_argnames="shift")(sharded, shift=3), parts(jnp.asarray(x), shift=3)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    first = ("data", None, None) if axis == "batch" else (None, "data", None)
    assert {name: spec(array) for name, array in found.items()} == {
        "same": first,
        "flat": (None,),
        "means": first[:1],
    }


def test_arrays_without_a_mesh_are_passed_as_they_are() -> None:
    x = jnp.ones((8, 4, 3))
    wrapped = parts.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    plain = jax.make_jaxpr(wrapped, static_argnums=1)(x, 3)
    assert str(jax.make_jaxpr(parts, static_argnums=1)(x, 3)) == str(plain)


def test_under_automatic_axes_arrays_from_outside_are_taken(mesh: Mesh) -> None:
    x = np.random.default_rng(0).random((8, 4, 3), np.float32)
    sharded = jax.device_put(x, NamedSharding(mesh, SPECS["batch"]))

    @automatic_axes("x", "y")
    def distance(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.abs(x[::-1] - y).sum(axis=(1, 2))

    @automatic_axes("x")
    def outer(x: jax.Array) -> jax.Array:
        return jnp.sqrt(distance(x, sharded))

    np.testing.assert_allclose(jax.jit(outer)(sharded), np.sqrt(np.abs(x[::-1] - x).sum(axis=(1, 2))), rtol=1e-6)


@pytest.mark.parametrize("axis", SPECS)
def test_gradients_of_convolution_and_pooling_by_images_and_by_the_kernel(axis: str, mesh: Mesh) -> None:
    """The channels and the small image take the way by matrix products, which is traced for every platform."""
    rng = np.random.default_rng(0)
    x, kernel = rng.random((8, 4, 4, 128), np.float32), rng.random((3, 3, 128, 128), np.float32) - 0.5

    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        features = convolution(x, kernel, (1, 1), ((1, 1), (1, 1)), precision="highest")
        return jnp.sum(jnp.tanh(pool(features, Pooling("max", 2, 2))) ** 2)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))
    sharded = jax.device_put(x, NamedSharding(mesh, SPECS[axis]))
    found, expected = gradients(sharded, kernel), gradients(x, kernel)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    assert spec(found[0])[:2] == (("data", None) if axis == "batch" else (None, "data"))
