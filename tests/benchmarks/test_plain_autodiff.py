"""The formula written down plainly gives the library's numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import plain_autodiff
from rlpips_jax.backbones import ALEX, ELPIPS_VGG, SQUEEZE, STALEX, TINY, VGG
from rlpips_jax.distances.lpips import Lpips


@pytest.fixture(scope="module")
def pair() -> list[np.ndarray]:
    # At this size SqueezeNet's windows hang over the edge.
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (2, 50, 47, 3)).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize(
    "architecture",
    [ALEX, *(pytest.param(backbone, marks=pytest.mark.slow) for backbone in (SQUEEZE, STALEX, VGG))],
    ids=lambda architecture: architecture.name,
)
def test_distances_and_gradients_are_the_library_s(architecture, drawn, pair) -> None:
    def library(metric: Lpips, x: jax.Array, y: jax.Array) -> jax.Array:
        return rl.distance(x, y, metric, value_range=(-1, 1))

    def with_gradient(function: Callable[..., jax.Array]) -> tuple[jax.Array, jax.Array]:
        def total(y: jax.Array, metric: Lpips) -> tuple[jax.Array, jax.Array]:
            distances = function(metric, jnp.asarray(pair[0]), y)
            return distances.sum(), distances

        # Compiling as a whole takes a fraction of compiling every operation.
        return jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(pair[1]), drawn(architecture))[::-1]

    (found, slope), (expected, expected_slope) = map(with_gradient, (plain_autodiff.distance, library))
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    np.testing.assert_allclose(slope, expected_slope, rtol=0, atol=1e-5 * np.abs(expected_slope).max())


def test_cached_features_give_the_same_distance(drawn, pair) -> None:
    metric = drawn(TINY)
    features = [plain_autodiff.features(metric, jnp.asarray(image)) for image in pair]
    np.testing.assert_array_equal(
        plain_autodiff.between(metric, *features), plain_autodiff.distance(metric, *map(jnp.asarray, pair))
    )


def test_gradients_are_finite_where_activations_are_0() -> None:
    assert np.isfinite(jax.grad(lambda f: plain_autodiff.unit(f).sum())(jnp.zeros((1, 1, 1, 4)))).all()


def test_other_pooling_is_refused(drawn, pair) -> None:
    with pytest.raises(ValueError, match="only max pooling"):
        plain_autodiff.distance(drawn(ELPIPS_VGG), *map(jnp.asarray, pair))
