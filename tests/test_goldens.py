"""The numbers that PyTorch computes in float64, with weights and images that anyone can draw."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.distances.lpips import HEADS, Lpips
from rlpips_jax.ensemble.ensemble import HEADS as ENSEMBLE_HEADS
from rlpips_jax.weights.parameters import from_pytorch, with_heads
from tests.goldens.make import GOLDENS, IN_FULL, METRICS, SLICE, draw, images

EXPECTED = json.loads(GOLDENS.read_text())


@functools.cache
def metric_of(name: str) -> Lpips:
    architecture = (HEADS | ENSEMBLE_HEADS)[name].backbone
    tensors = draw(
        {
            # E-LPIPS's heads are channels last; a checkpoint's are not.
            key: (1, *shape, 1, 1) if key.startswith("lin") else shape
            for key, shape in with_heads(architecture).pytorch_shapes.items()
        }
    )
    return Lpips(from_pytorch(tensors, with_heads(architecture), "drawn weights"), name, architecture)


def unweighted(metric: Lpips) -> Lpips:
    heads = tuple(jnp.ones_like(head) for head in metric.parameters["heads"])
    return replace(metric, parameters=metric.parameters | {"heads": heads})


def layers(metric: Lpips) -> jax.Array:
    return rl.layer_distances(*images(metric.backbone.name), metric)


@pytest.mark.parametrize("name", IN_FULL)
def test_float32(name: str) -> None:
    metric, expected = metric_of(name), EXPECTED[name]
    np.testing.assert_allclose(layers(metric), expected["0.1"]["layers"], rtol=1e-5)
    np.testing.assert_allclose(layers(unweighted(metric)), expected["0.1 unweighted"]["layers"], rtol=1e-5)


@pytest.mark.parametrize("name", IN_FULL)
def test_first_release(name: str) -> None:
    metric, expected = replace(metric_of(name), version="0.0"), EXPECTED[name]
    np.testing.assert_allclose(layers(metric), expected["0.0"]["layers"], rtol=1e-5)
    np.testing.assert_allclose(layers(unweighted(metric)), expected["0.0 unweighted"]["layers"], rtol=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_float64(name: str) -> None:
    with jax.enable_x64(True):
        found = layers(replace(metric_of(name), dtype="float64"))
        np.testing.assert_allclose(found, EXPECTED[name]["0.1"]["layers"], rtol=1e-9)
        np.testing.assert_allclose(found.sum(axis=-1), EXPECTED[name]["0.1"]["distance"], rtol=1e-9)


@pytest.mark.parametrize("name", IN_FULL)
def test_distance_and_gradient(name: str) -> None:
    metric, expected = metric_of(name), EXPECTED[name]["gradient"]
    x, y = (jnp.asarray(batch[0] / 127.5 - 1, jnp.float32) for batch in images(metric.backbone.name))

    def of_second(y: jax.Array, x: jax.Array, metric: Lpips) -> jax.Array:
        return rl.distance(x, y, metric, value_range=(-1, 1))

    for mode in (False, True):
        distance, gradient = jax.jit(jax.value_and_grad(of_second))(y, x, replace(metric, forward_mode=mode))
        np.testing.assert_allclose(distance, EXPECTED[name]["0.1"]["distance"][0], rtol=1e-5)
        gradient = np.asarray(gradient, np.float64)
        tolerance = 1e-4 * expected["largest"]
        np.testing.assert_allclose(gradient[SLICE], expected["slice"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(np.abs(gradient).max(), expected["largest"], rtol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(gradient), expected["norm"], rtol=1e-4)
        np.testing.assert_allclose(gradient.sum(), expected["sum"], rtol=0, atol=1e-4 * expected["norm"])


def test_every_variant_differs() -> None:
    """No two networks happen to agree, so that each of the numbers above can fail."""
    first = [EXPECTED[name]["0.1"]["distance"][0] for name in METRICS]
    assert len({round(value, 3) for value in first}) == len(METRICS)
