"""Winograd's convolution against the plain one in float64, in parts of any size."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rlpips_jax.ops import convolution as module
from rlpips_jax.ops import winograd as filtering
from rlpips_jax.ops.convolution import convolution
from rlpips_jax.ops.winograd import winograd

CASES = {
    # Size of the images, channels in and out, padding, values of a part.
    "one part": ((2, 6, 8), 32, 40, ((1, 1), (1, 1)), filtering.PART),
    "parts of some images, the last one filled up": ((5, 5, 4), 32, 32, ((1, 1), (1, 1)), 16 * 2 * 6 * 32),
    "parts of an image, the last one filled up": ((2, 11, 7), 33, 32, ((1, 1), (1, 1)), 16 * 4 * 4 * 33),
    "one row of blocks in a part": ((1, 6, 4), 32, 32, ((1, 1), (1, 1)), 1),
    "paddings that differ": ((2, 6, 5), 32, 32, ((0, 2), (3, 1)), filtering.PART),
    "no padding": ((2, 6, 7), 32, 32, ((0, 0), (0, 0)), filtering.PART),
    "padding that crops": ((2, 8, 9), 32, 32, ((-1, 0), (0, -2)), filtering.PART),
}


def plain(x: Any, kernel: Any, padding: Any) -> Any:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_plain_convolution(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size, channels, outputs, padding, part = CASES[case]
    monkeypatch.setattr(filtering, "PART", part)
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((*size, channels)), rng.standard_normal((3, 3, channels, outputs))
    with jax.enable_x64(True):
        expected = jax.device_get(plain(x, kernel, padding))
        exact = winograd(jnp.asarray(x), jnp.asarray(kernel), padding)
        assert exact.shape == expected.shape
        np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-13 * abs(expected).max())
    single = winograd(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), padding)
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-6 * abs(expected).max())


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is enough to multiply, in a wide type; for values and for gradients, but not for the values on whose
    way a gradient is taken: rounding would decide more of its ReLUs."""
    calls = []

    def recorded(*args: Any, **options: Any) -> Any:
        calls.append(args[0].shape)
        return winograd(*args, **options)

    monkeypatch.setattr(module, "winograd", recorded)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 2, 6, 5, 32)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 32, 33)) / 17, jnp.float32)

    def slope(function: Any, x: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(jnp.sin(function(x, kernel))))(x)

    fast = functools.partial(convolution, strides=(1, 1), padding=((1, 1), (1, 1)))
    direct = functools.partial(plain, padding=((1, 1), (1, 1)))
    jax.vmap(fast, (0, None))(x, kernel)
    assert not calls
    monkeypatch.setattr(module, "FILTERED_PRODUCTS", 0)
    for expected, found, shape in (
        (jax.vmap(direct, (0, None))(x, kernel), jax.vmap(fast, (0, None))(x, kernel), (2, 6, 5, 32)),
        (*(jax.vmap(functools.partial(slope, function))(x) for function in (direct, fast)), (2, 6, 5, 33)),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())
        assert shape in calls
    assert len(calls) == 2
    for other in (x.astype(jnp.bfloat16), x[..., :31]):
        fast(other[0], kernel[:, :, : other.shape[-1]].astype(other.dtype))
    assert len(calls) == 2
