"""Convolution has the derivatives that autodiff gives the plain operation, under every transformation."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

import rlpips_jax as rl
from rlpips_jax.errors import MetricError
from rlpips_jax.ops.convolution import convolution

# Size of the image, channels in, channels out, window, stride, padding: every convolution of the networks, and odder.
GEOMETRIES = {
    "alex 1": ((2, 37, 41), 3, 8, 11, 4, 2),
    "alex 1, the smallest image": ((1, 7, 7), 3, 8, 11, 4, 2),
    "alex 1, a flat image": ((1, 8, 63), 3, 8, 11, 4, 2),
    "alex 2": ((2, 7, 6), 4, 8, 5, 1, 2),
    "alex 2, a small image": ((2, 3, 4), 4, 8, 5, 1, 2),
    "alex 3": ((3, 3, 3), 4, 8, 3, 1, 1),
    "alex 3, one pixel": ((2, 1, 1), 4, 8, 3, 1, 1),
    "squeeze 1": ((2, 33, 20), 3, 8, 3, 2, 0),
    "squeeze 1, the smallest image": ((1, 3, 4), 3, 8, 3, 2, 0),
    "squeeze": ((2, 5, 6), 8, 4, 1, 1, 0),
    "vgg, a small image": ((2, 4, 3), 130, 128, 3, 1, 1),
    "vgg, one pixel": ((3, 1, 1), 128, 130, 3, 1, 1),
    "vgg, a line": ((2, 1, 9), 128, 128, 3, 1, 1),
    "many channels, a wide window": ((2, 4, 5), 128, 129, 5, 1, 2),
    "many channels, more padding than window": ((1, 3, 2), 128, 128, 2, 1, 3),
    "stride without overlap": ((2, 11, 9), 3, 4, 2, 3, 1),
    "more padding than window": ((1, 4, 5), 3, 4, 2, 1, 3),
}


def plain(x: jax.Array, kernel: jax.Array, strides, padding, **_) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def drawn(geometry: str) -> tuple[jax.Array, jax.Array, dict]:
    size, channels, outputs, window, stride, padding = GEOMETRIES[geometry]
    rng = np.random.RandomState(0)
    x = jnp.asarray(rng.standard_normal((*size, channels)), jnp.float32)
    scale = 3 / (window * np.sqrt(channels))
    kernel = jnp.asarray(rng.normal(0, scale, (window, window, channels, outputs)), jnp.float32)
    return x, kernel, {"strides": (stride, stride), "padding": ((padding, padding),) * 2, "precision": "highest"}


def assert_near(found, expected, tolerance: float = 1e-5) -> None:
    """Relative to the largest entry."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * float(abs(other).max()))


def loss(function: Callable, options: dict, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Not linear in the convolution, so that second derivatives are not 0."""
    return jnp.sum(jnp.tanh(function(x, kernel, **options)) ** 2)


SLOW = {"many channels, a wide window", "vgg, a small image"}


@pytest.mark.parametrize(
    "geometry", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in GEOMETRIES]
)
def test_gradients_of_image_and_kernel_are_those_of_autodiff(geometry: str) -> None:
    x, kernel, options = drawn(geometry)
    with jax.enable_x64(True):
        exact = [jnp.asarray(array, jnp.float64) for array in (x, kernel)]
        value = jax.device_get(plain(*exact, **options))
        gradients = jax.jit(jax.grad(functools.partial(loss, plain, options), argnums=(0, 1)))
        expected = jax.device_get(gradients(*exact))
    assert_near(convolution(x, kernel, **options), value, 1e-6)
    assert_near(jax.jit(jax.grad(functools.partial(loss, convolution, options), argnums=(0, 1)))(x, kernel), expected)
    for argument in (0, 1):
        alone = jax.grad(functools.partial(loss, convolution, options), argnums=argument)(x, kernel)
        assert_near(alone, expected[argument])


@pytest.mark.parametrize("geometry", ["alex 1", "alex 2", "squeeze 1", "vgg, a small image"])
def test_reverse_over_reverse(geometry: str) -> None:
    x, kernel, options = drawn(geometry)

    def twice(function: Callable) -> tuple[jax.Array, jax.Array]:
        gradient = jax.grad(functools.partial(loss, function, options), argnums=(0, 1))

        def along(x: jax.Array, kernel: jax.Array) -> jax.Array:
            by_image, by_kernel = gradient(x, kernel)
            return jnp.sum(by_image * jnp.cos(by_image)) + jnp.sum(by_kernel**2)

        return jax.jit(jax.grad(along, argnums=(0, 1)))(x, kernel)

    assert_near(twice(convolution), twice(plain))


@pytest.mark.parametrize(
    "geometry",
    [
        "alex 1",
        pytest.param("alex 2", marks=pytest.mark.slow),
        pytest.param("vgg, a small image", marks=pytest.mark.slow),
    ],
)
def test_vmap_over_images_and_over_kernels(geometry: str) -> None:
    x, kernel, options = drawn(geometry)
    images, kernels = jnp.stack([x, 2 * x, x[::-1]]), jnp.stack([kernel, -kernel, 0.5 * kernel])
    for axes, arguments in (((0, None), (images, kernel)), ((None, 0), (x, kernels)), ((0, 0), (images, kernels))):
        found, expected = (
            jax.vmap(jax.grad(functools.partial(loss, function, options), argnums=(0, 1)), axes)(*arguments)
            for function in (convolution, plain)
        )
        assert_near(found, expected)


@pytest.mark.parametrize("geometry", ["alex 1", "alex 2", "vgg, a small image"])
def test_in_scan_and_checkpoint(geometry: str) -> None:
    x, kernel, options = drawn(geometry)

    def descent(function: Callable, x: jax.Array, kernel: jax.Array) -> jax.Array:
        gradient = jax.grad(jax.checkpoint(functools.partial(loss, function, options)))
        return lax.scan(lambda x, _: (x - 0.1 * gradient(x, kernel), None), x, length=3)[0].sum()

    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(descent, function), argnums=(0, 1)))(x, kernel)
        for function in (convolution, plain)
    )
    assert_near(found, expected)


def test_a_replicated_kernel_gets_the_sum_of_all_devices_gradients() -> None:
    x, kernel, options = drawn("alex 3")
    x = jnp.concatenate([x] * 8)
    mesh = Mesh(np.array(jax.devices()), ("data",))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()), out_specs=PartitionSpec()
    )
    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.psum(loss(convolution, options, x, kernel), "data")

    found = jax.jit(jax.grad(total, argnums=(0, 1)))(x, kernel)
    assert_near(found, jax.grad(functools.partial(loss, plain, options), argnums=(0, 1))(x, kernel))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_types(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        x, kernel, options = drawn("alex 1")
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        gradient = jax.grad(functools.partial(loss, convolution, options))(x, kernel)
        assert gradient.dtype == x.dtype
        expected = jax.grad(functools.partial(loss, plain, options))(x, kernel)
        assert_near(gradient.astype(float), expected.astype(float), 1e-2 if dtype == "bfloat16" else 1e-12)


@pytest.mark.parametrize(
    "option",
    [{"kernel_dilation": 2}, {"input_dilation": 2}, {"feature_group_count": 2}, {"padding": "VALID"}],
    ids=lambda option: next(iter(option)),
)
def test_a_layer_of_flax_that_it_does_not_compute_is_an_error(option: dict[str, Any], wrong_types: None) -> None:
    module = nn.Conv(4, (3, 3), conv_general_dilated=convolution, **{"padding": 1, **option})
    with pytest.raises(MetricError, match="must be"):
        module.init(jax.random.key(0), jnp.ones((1, 8, 8, 4)))


def test_images_with_channels_first_are_an_error() -> None:
    x, kernel, options = drawn("squeeze")
    with pytest.raises(MetricError, match="NHWC"):
        convolution(x, kernel, **options, dimension_numbers=("NCHW", "OIHW", "NCHW"))


def test_a_plain_layer_of_flax_is_computed() -> None:
    x = drawn("squeeze")[0]
    layers = [nn.Conv(4, (3, 3), padding=1, conv_general_dilated=function) for function in (convolution, None)]
    variables = layers[0].init(jax.random.key(0), x)
    found, expected = (jnp.asarray(layer.apply(variables, x)) for layer in layers)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_kernel_alone_keeps_the_input_alive() -> None:
    """What an attack never asks for is not computed: no gradient of the kernel in its program, no input kept."""
    x, kernel, options = drawn("alex 2")
    _, residuals = jax.vjp(lambda x: convolution(x, kernel, **options), x)
    assert all(leaf.shape != x.shape for leaf in jax.tree.leaves(residuals))
    _, residuals = jax.vjp(lambda kernel: convolution(x, kernel, **options), kernel)
    assert any(leaf.shape == x.shape for leaf in jax.tree.leaves(residuals))


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_one_program_differentiates_by_images_and_by_parameters(remat: bool) -> None:
    """Adversarial training does both, and JAX traces the network once for both."""
    metric = rl.load("lpips-tiny", remat=remat)
    x, y = np.random.default_rng(0).random((2, 1, 32, 32, 3), np.float32)

    def distance(parameters: Any, y: Any) -> Any:
        bound = replace(metric, parameters=parameters)
        return bound.between(bound.features(x), bound.features(y)).sum()

    def attacked(y: Any, slope: Any) -> Any:
        return jnp.clip(y + slope, 0, 1)

    def adversarial(parameters: Any) -> Any:
        natural = distance(parameters, y)
        # Between the two uses of the network that learn, one that does not.
        slope = jax.grad(distance, argnums=1)(jax.lax.stop_gradient(parameters), y)
        return natural + distance(parameters, jax.lax.stop_gradient(attacked(y, slope)))

    together = jax.jit(jax.grad(adversarial))(metric.parameters)
    slope = jax.grad(distance, argnums=1)(metric.parameters, y)
    apart = [jax.grad(distance)(metric.parameters, images) for images in (y, attacked(y, slope))]
    expected = jax.tree.leaves(jax.tree.map(jnp.add, *apart))
    for found, one in zip(jax.tree.leaves(together), expected, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())
