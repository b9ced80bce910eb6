"""Ensembles as metrics of averages and paths."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax import geometry
from rlpips_jax.backbones import Convolution, Pooling, Sequential
from rlpips_jax.ensemble import Ensemble
from tests.geometry.conftest import descended

COARSE = Sequential(
    "coarse", (Convolution(0, 8, 9, stride=4), Convolution(1, 8, 4)), Pooling("max", 2, 2), tapped=(0, 1)
)

SIDE = 24


@pytest.fixture(scope="module")
def ensemble(drawn: Callable[..., Any]) -> Ensemble:
    """Of a small network with random weights, which compiles fast."""
    return Ensemble(drawn(COARSE))


@pytest.fixture
def options(ensemble: Ensemble) -> dict[str, Any]:
    # Half of the images' size is less than it takes.
    assert SIDE // 2 < ensemble.minimum_size <= SIDE
    return {"steps": 60, "begin": 2000, "pace": 50, "coarsest": 4, "key": jax.random.key(0)}


@pytest.mark.slow
def test_an_average_goes_between_its_images(
    ensemble: Ensemble, photographs: np.ndarray, options: dict[str, Any]
) -> None:
    images = photographs[:2, :SIDE, :SIDE]
    seen: list[geometry.Progress] = []
    result = descended(geometry.average, images, ensemble, start=images[0], watch=seen.append, **options)
    assert {progress.size for progress in seen} == {(SIDE, SIDE)}
    again = geometry.distances(result.image[None], images, ensemble, key=options["key"])
    np.testing.assert_allclose(result.distances, again, rtol=1e-4)
    begun = geometry.distances(images[:1], images, ensemble, key=options["key"])
    assert begun[0] == 0
    assert float((again**2).sum()) < 0.85 * float(begun[1] ** 2)
    other = geometry.distances(result.image[None], images, ensemble, key=jax.random.key(1))
    assert np.all(other != again)


def test_a_path_gets_even(ensemble: Ensemble, photographs: np.ndarray, options: dict[str, Any]) -> None:
    a, b = photographs[:2, :SIDE, :SIDE]
    result = descended(geometry.geodesic, a, b, 3, ensemble, start=np.stack([a, a, b]), **options)
    begun = geometry.distances(np.stack([a, a]), np.stack([a, b]), ensemble, key=options["key"])
    assert begun[0] == 0
    assert float((result.distances**2).sum()) < 0.85 * float(begun[1] ** 2)


def test_images_too_small_for_it_are_named(ensemble: Ensemble, options: dict[str, Any]) -> None:
    with pytest.raises(rl.ImageError, match="ensemble:drawn-coarse needs at least"):
        descended(geometry.average, np.zeros((2, 8, 8, 3), np.float32), ensemble, **options)
