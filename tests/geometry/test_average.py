"""Averages: what they must be where that is known, and what they promise."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import rlpips_jax as rl
from rlpips_jax import geometry
from rlpips_jax.geometry.average import _Spread
from rlpips_jax.geometry.descent import enlarged, reduced, sizes_of
from rlpips_jax.geometry.geodesic import _Energy
from rlpips_jax.geometry.pair_distances import pair_distance
from tests.geometry.conftest import descended, mean_square


def noisy_mean_square(x: Any, y: Any, key: Any) -> Any:
    """The same in expectation: each draw sees a random half of the pixels."""
    seen = jax.random.bernoulli(key, 0.5, x.shape)
    return 2 * jnp.mean(jnp.square(x - y) * seen, axis=(1, 2, 3))


@pytest.fixture
def images() -> np.ndarray:
    """Five smooth images in [0, 1]."""
    coarse = np.random.default_rng(0).uniform(size=(5, 4, 5, 3))
    return coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.float32)


@pytest.mark.parametrize("start", ["mean", "noise", "image"])
def test_it_is_the_mean_under_squared_pixel_differences(images: np.ndarray, start: Any) -> None:
    begin = images[3] if start == "image" else start
    result = descended(
        geometry.average,
        images,
        mean_square,
        start=begin,
        exponent=1,
        steps=900,
        begin=0,
        pace=5,
        coarsest=8,
        key=jax.random.key(0),
    )
    np.testing.assert_allclose(result.image, images.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(result.distances, np.square(images - images.mean(axis=0)).mean((1, 2, 3)), rtol=1e-2)
    assert len(result.objective) == 1800


def test_random_metrics_and_random_subsets_lead_to_the_same(images: np.ndarray) -> None:
    result = descended(
        geometry.average,
        images,
        noisy_mean_square,
        start=images[0],
        exponent=1,
        steps=600,
        begin=0,
        pace=10,
        images_per_step=2,
        key=jax.random.key(1),
    )
    np.testing.assert_allclose(result.image, images.mean(axis=0), atol=0.1)
    assert np.abs(result.image - images.mean(axis=0)).mean() < 0.02


@pytest.mark.parametrize("exponent", [1, 2])
def test_what_is_minimised_is_a_power_of_the_mean_distance(images: np.ndarray, exponent: int) -> None:
    """Not its mean square, which is the variance more: a third of the square here."""
    measured = pair_distance(uneven, 1)[1]
    x = jnp.asarray(images)
    keys = jax.random.split(jax.random.key(0), 4000)
    spread = _Spread(measured, measured.prepared(x[2:4]), exponent, 2, 2)
    energy = _Energy(measured, measured.prepared(jnp.stack([x[0], x[3]])), exponent)
    steps = mean_square(x[jnp.array([0, 1, 2])], x[jnp.array([1, 2, 3])], None)
    away = jax.vmap(lambda key: spread(x[:1], key))(keys).mean()
    along = jax.vmap(lambda key: energy(x[1:3], key))(keys).mean()
    exact = mean_square(x[:1], x[2:4], None)
    np.testing.assert_allclose(away, (exact**exponent).sum(), rtol=0.05)
    np.testing.assert_allclose(along, (steps**exponent).sum(), rtol=0.05)


def uneven(x: Any, y: Any, key: Any) -> Any:
    """The mean square in expectation, with a third of its square as variance."""
    return mean_square(x, y, key) * jax.random.uniform(key, maxval=2)


def test_of_two_images_it_is_in_the_middle_whatever_the_exponent(images: np.ndarray) -> None:
    result = descended(
        geometry.average,
        images[:2],
        mean_square,
        start="noise",
        exponent=2,
        steps=2000,
        begin=0,
        pace=5,
        key=jax.random.key(0),
    )
    np.testing.assert_allclose(result.image, images[:2].mean(axis=0), atol=5e-3)


@pytest.mark.parametrize("start", ["noise", "far"])
def test_by_default_it_gets_there_from_anywhere(start: Any) -> None:
    """From noise, and from an image given, by the schedule that was published."""
    grey = np.stack([np.full((16, 16, 3), level, np.float32) for level in (0.2, 0.6)])
    begin = np.ones((16, 16, 3), np.float32) if start == "far" else start
    options: dict[str, Any] = {"start": begin, "exponent": 1, "coarsest": 16, "key": jax.random.key(0)}
    found = descended(geometry.average, grey, mean_square, **options)
    np.testing.assert_allclose(found.image, 0.4, atol=1e-2)
    published = descended(geometry.average, grey, mean_square, begin=0, pace=1, **options)
    np.testing.assert_array_equal(found.image, published.image)


def test_the_schedule_is_the_starts_unless_it_is_given(images: np.ndarray, tmp_path: Path) -> None:
    cases: list[tuple[Any, dict[str, Any], tuple[float, float]]] = [
        ("mean", {}, geometry.LATE),
        ("noise", {}, geometry.PUBLISHED),
        (images[0], {}, geometry.PUBLISHED),
        ("mean", {"begin": 0, "pace": 1}, geometry.PUBLISHED),
        ("noise", {"pace": 3}, (0, 3)),
    ]
    for number, (start, options, schedule) in enumerate(cases):
        snapshot = tmp_path / f"{number}.npz"
        key = jax.random.key(0)
        descended(
            geometry.average,
            images,
            mean_square,
            start=start,
            steps=1,
            snapshot=snapshot,
            name="mean square",
            key=key,
            **options,
        )
        with np.load(snapshot) as archive:
            run = json.loads(str(archive["run"]))
        assert (run["begin"], run["pace"]) == schedule


def test_the_range_of_values_is_the_users(images: np.ndarray) -> None:
    options: dict[str, Any] = {"exponent": 1, "steps": 20, "key": jax.random.key(0), "start": "noise"}
    unit = descended(geometry.average, images, mean_square, **options)
    symmetric = descended(geometry.average, 2 * images - 1, mean_square, value_range=(-1, 1), **options)
    np.testing.assert_allclose(symmetric.image, 2 * unit.image - 1, atol=1e-4)
    for values, (black, white) in ((unit.image, (0, 1)), (symmetric.image, (-1, 1))):
        assert black <= float(values.min()) < float(values.max()) <= white
    eight = np.rint(255 * images).astype(np.uint8)
    of_bytes = descended(geometry.average, eight, mean_square, **options)
    of_floats = descended(geometry.average, eight / np.float32(255), mean_square, **options)
    np.testing.assert_allclose(of_bytes.image, of_floats.image, atol=1e-6)


@pytest.mark.slow
def test_under_lpips_it_is_nearer_than_the_mean(metric: rl.Lpips, photographs: np.ndarray) -> None:
    result = descended(geometry.average, photographs, metric, steps=40, coarsest=64)
    of_mean = rl.distance(photographs, np.stack([photographs.mean(axis=0)] * len(photographs)), metric)
    again = rl.distance(photographs, np.stack([np.asarray(result.image)] * len(photographs)), metric)
    np.testing.assert_allclose(result.distances, again, rtol=1e-4)
    assert float((again**2).sum()) < 0.8 * float((of_mean**2).sum())


def test_a_small_rate_leads_down_at_every_step(images: np.ndarray) -> None:
    rate = functools.partial(constant, 1e-3)
    result = descended(
        geometry.average, images, mean_square, start=images[0], steps=60, rate=rate, key=jax.random.key(0)
    )
    assert np.all(np.diff(result.objective) < 0)


def constant(rate: float, t: Any) -> float:
    return rate


def test_an_average_of_equal_images_stays(metric: rl.Lpips, photographs: np.ndarray) -> None:
    alike = np.stack([photographs[0]] * 3)
    result = descended(geometry.average, alike, metric, steps=3)
    np.testing.assert_allclose(result.image, photographs[0], atol=1 / 255)
    assert np.all(result.objective < 1e-12)


def test_gradients_are_those_of_the_objective(metric: rl.Lpips, photographs: np.ndarray) -> None:
    measured = pair_distance(metric, 1)[1]
    x = jnp.asarray(photographs)
    objective = _Spread(measured, measured.prepared(x), 2, len(x), len(x))
    image = jnp.clip(x[:1] + 0.1 * jax.random.normal(jax.random.key(0), x[:1].shape), 0, 1)
    value = jax.jit(lambda image: objective(image, jax.random.key(0)))
    gradient = jax.grad(value)(image)
    # Along the gradient itself the difference is largest, and least touched by rounding.
    way = gradient / jnp.linalg.norm(gradient)
    difference = (value(image + 0.02 * way) - value(image - 0.02 * way)) / 0.04
    np.testing.assert_allclose(difference, jnp.vdot(gradient, way), rtol=2e-2)


def test_levels_halve_and_images_keep_their_means() -> None:
    assert sizes_of(256, 192, 64) == [(128, 96), (256, 192)]
    assert sizes_of(65, 63, 16) == [(17, 16), (33, 32), (65, 63)]
    assert sizes_of(40, 40, 64) == [(40, 40)]
    images = jnp.linspace(0, 1, 2 * 12 * 10 * 3).reshape(2, 12, 10, 3)
    small = reduced(images, (6, 5))
    np.testing.assert_allclose(small.mean((1, 2)), images.mean((1, 2)), atol=1e-3)
    assert enlarged(small, (12, 10)).shape == images.shape
    assert reduced(images, (12, 10)) is images


def test_the_published_rate() -> None:
    def by_hand(t: float) -> float:
        late = (100.0**2 + t**2) ** 0.5 - 100
        return 0.03 / (1 + 0.02 * late**0.75)

    assert float(geometry.published_rate(0)) == pytest.approx(0.03)
    for t in (1, 100, 5000, 100_000):
        assert float(geometry.published_rate(t)) == pytest.approx(by_hand(t), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be a whole number, 1 or more, got 0"),
        ({"steps": (5, 5, 5)}, "one for each of the levels 16x20, got 3"),
        ({"start": "middle"}, "start must be one of mean, noise, or an image"),
        ({"start": "noise"}, "draws at random and needs one key"),
        ({"exponent": 0.5}, "exponent must be a number, 1 or more"),
        ({"images_per_step": 6, "key": jax.random.key(0)}, "images_per_step must be a whole number, from 1 to 5"),
        ({"metric": "lpips-tiny"}, "metric must come from rlpips_jax.load"),
        ({"snapshot": "state.npz", "metric": mean_square}, "name the function, as in Descent(snapshot="),
        ({"metric": mean_square}, "a randomised metric draws at random and needs one key"),
        ({"metric": lambda x, y, key: jnp.mean(x - y), "key": jax.random.key(0)}, "a number for each pair"),
        ({"rate": 0.1}, "rate must be a function of time"),
        ({"pace": -1}, "pace must be a number, above 0"),
        ({"begin": -1}, "begin must be a number, 0 or more"),
        ({"coarsest": 0}, "coarsest must be a whole number"),
    ],
)
def test_errors_name_what_was_wrong(images: np.ndarray, options: dict[str, Any], words: str, wrong_types: None) -> None:
    first: dict[str, Any] = {"metric": Partial(lambda x, y, key: jnp.zeros(len(x)))} if "metric" not in options else {}
    if "needs one key" not in words:
        first |= {"key": jax.random.key(0)}
    with pytest.raises(rl.GeometryError, match=words.replace("(", r"\(")):
        descended(geometry.average, images, **(first | options))


def test_one_image_has_no_average(images: np.ndarray, metric: rl.Lpips) -> None:
    with pytest.raises(rl.GeometryError, match="two or more"):
        descended(geometry.average, images[:1], mean_square)
    with pytest.raises(rl.ImageError, match="lpips-tiny needs at least"):
        descended(geometry.average, images, metric)


def test_what_is_not_finite_ends_with_an_error(images: np.ndarray) -> None:
    def broken(x: Any, y: Any, key: Any) -> Any:
        return jnp.log(mean_square(x, y, key) - 1)

    def steep(x: Any, y: Any, key: Any) -> Any:
        return jnp.sqrt(mean_square(x, y, key)) + 1

    with pytest.raises(rl.GeometryError, match="the objective is nan at step 0"):
        descended(geometry.average, images, broken, steps=2, key=jax.random.key(0))
    with pytest.raises(rl.GeometryError, match="not finite"):
        descended(geometry.average, np.stack([images[0]] * 2), steep, steps=1, key=jax.random.key(0))
