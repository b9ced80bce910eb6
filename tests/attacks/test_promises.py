"""What every attack promises, whichever it is."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from rlpips_jax import attacks
from rlpips_jax.attacks import table
from rlpips_jax.errors import AttackError, ImageError

KEY = jax.random.key(7)


# Each is a program of its own, for each attack.
CASES = [
    ((3, 6, 5, 3), (0.0, 1.0)),
    ((2, 2, 5, 7, 3), (-3.0, 252.0)),
]


def drawn(shape: tuple[int, ...], value_range: tuple[float, float], seed: int = 0) -> np.ndarray:
    """Images with some values at the ends of the range, where the box is active."""
    rng = np.random.default_rng(seed)
    black, white = value_range
    return np.clip(rng.uniform(-0.1, 1.1, shape), 0, 1).astype(np.float32) * np.float32(white - black) + black


@settings(max_examples=15)
@given(
    case=st.sampled_from(CASES),
    seed=st.integers(0, 1000),
    relative=st.lists(st.one_of(st.just(0.0), st.floats(1e-4, 1.0)), min_size=3, max_size=3),
)
def test_stays_in_its_ball_and_in_the_range(
    attack: Any, objective: Any, case: Any, seed: int, relative: list[float]
) -> None:
    shape, value_range = case
    images = drawn(shape, value_range, seed)
    width = value_range[1] - value_range[0]
    epsilon = np.asarray(relative[: shape[0]], np.float32) * width
    result = attack.run(
        objective(value_range), images, key=jax.random.key(seed), epsilon=epsilon, value_range=value_range
    )
    adversarial = np.asarray(result.adversarial)
    assert adversarial.shape == shape
    assert adversarial.min() >= value_range[0]
    assert adversarial.max() <= value_range[1]
    assert np.array_equal(adversarial[epsilon == 0], images[epsilon == 0])

    # Lengths anew, in twice the precision.
    change = adversarial.astype(np.float64) - images
    lengths = {"linf": np.abs(change).max((-3, -2, -1)), "l2": np.sqrt(np.square(change).sum((-3, -2, -1)))}
    ulp = 2.0**-23 * max(map(abs, value_range))
    for norm, length in lengths.items():
        np.testing.assert_allclose(getattr(result, norm), length, rtol=1e-5, atol=ulp)
    if attack.bounded:
        # A sum of image and perturbation is rounded, in each of the values that a length adds up.
        values = 1 if attack.bounded == "linf" else np.prod(shape[-3:])
        limits = epsilon * (1 + 1e-6) + ulp * np.sqrt(values)
        assert np.all(lengths[attack.bounded] <= limits.reshape(-1, *(1,) * (len(shape) - 4)))


def test_says_what_it_reached(attack: Any, objective: Any) -> None:
    shape, value_range = CASES[0]
    images = drawn(shape, value_range)
    function = objective(value_range)
    epsilon = np.full(3, attack.radius, np.float32)
    result = attack.run(function, images, key=KEY, epsilon=epsilon, value_range=value_range)
    np.testing.assert_allclose(result.before, function(images), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.after, function(result.adversarial), rtol=1e-5, atol=1e-5)
    assert np.array_equal(result.after, result.trajectory.max(axis=0))
    assert np.array_equal(result.success, result.after > result.before)
    assert not attack.climbs or np.all(result.success)


def test_is_determined_by_its_key(attack: Any, objective: Any) -> None:
    shape, value_range = CASES[0]
    images = drawn(shape, value_range)
    epsilon = np.full(3, attack.radius, np.float32)
    first, again, other = (
        attack.run(objective(value_range), images, key=key, epsilon=epsilon, value_range=value_range)
        for key in (KEY, jax.random.key(7), jax.random.key(8))
    )
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))
    assert not np.any(first.trajectory[0] == other.trajectory[0])


def test_ten_batches_are_one_trace(attack: Any, objective: Any, traces: list[Any]) -> None:
    shape, value_range = CASES[0]
    counts = []
    for seed in range(10):
        attack.run(
            objective(value_range, scale=seed),
            drawn(shape, value_range, seed),
            key=jax.random.key(seed),
            epsilon=np.full(3, attack.radius * (1 + seed / 100), np.float32),
            value_range=value_range,
        )
        counts.append(len(traces))
    assert traces
    assert len(set(counts)) == 1


def test_bytes_are_what_floats_are(attack: Any, objective: Any) -> None:
    shape, (black, white) = CASES[1]
    images = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    floats = (images / 255 * (white - black) + black).astype(np.float32)
    epsilon = np.full(2, 20, np.float32)
    results = [
        attack.run(objective((black, white)), given, key=KEY, epsilon=epsilon, value_range=(black, white))
        for given in (images, floats)
    ]
    # Square fills up a ball by the root of a difference of squares, which magnifies rounding.
    np.testing.assert_allclose(results[0].adversarial, results[1].adversarial, atol=1e-3 * (white - black))
    np.testing.assert_allclose(results[0].before, results[1].before, atol=1e-3)


def test_an_epsilon_for_each_example(attack: Any, objective: Any) -> None:
    if attack.bounded is None:
        pytest.skip("has no epsilon")
    shape, value_range = CASES[0]
    images = np.full(shape, 0.5, np.float32)
    epsilon = np.asarray([0.0, 0.05, 0.2], np.float32)
    result = attack.run(objective(value_range), images, key=KEY, epsilon=epsilon, value_range=value_range)
    lengths = np.asarray(getattr(result, attack.bounded))
    assert np.all(lengths <= epsilon + 1e-6)
    # Who moves at all reaches far into the own ball, not only into the smallest one.
    assert np.all((lengths >= 0.7 * epsilon) | (lengths == 0))
    assert lengths[1:].any()


def test_averages_over_draws_change_nothing_without_chance(attack: Any, objective: Any) -> None:
    shape, value_range = CASES[0]
    images = drawn(shape, value_range)
    epsilon = np.full(3, attack.radius, np.float32)
    plain, averaged = (
        attack.run(function, images, key=KEY, epsilon=epsilon, value_range=value_range)
        for function in (objective(value_range), objective(value_range, chance=0))
    )
    np.testing.assert_allclose(plain.adversarial, averaged.adversarial, atol=1e-5)
    np.testing.assert_allclose(plain.after, averaged.after, rtol=1e-5)


def test_luck_is_not_reported(attack: Any, objective: Any) -> None:
    """The best of many draws of what is all chance is high; the same images judged by other draws are not."""
    shape, value_range = CASES[0]
    images = drawn(shape, value_range)
    epsilon = np.full(3, attack.radius, np.float32)
    found, judged = [], []
    for seed in range(20):
        result = attack.run(
            objective(value_range, scale=0, chance=1),
            images,
            key=jax.random.key(seed),
            epsilon=epsilon,
            value_range=value_range,
        )
        found.append(np.max(result.trajectory, axis=0))
        judged.append(result.after)
        assert np.array_equal(result.before, result.after)
        assert not np.any(result.success)
    # Each is the mean of two draws.
    deviation = np.sqrt(1 / 2 / np.size(judged))
    assert abs(np.mean(judged)) < 4 * deviation
    assert np.mean(found) > 4 * deviation


def test_more_restarts_are_never_worse(attack: Any, objective: Any) -> None:
    if "restarts" not in attack.options:
        pytest.skip("has no restarts")
    shape, value_range = CASES[0]
    images = drawn(shape, value_range)
    epsilon = np.full(3, 0.2, np.float32)
    one, three = (
        attack.run(objective(value_range), images, key=KEY, epsilon=epsilon, value_range=value_range, **options)
        for options in ({}, {"restarts": 3})
    )
    assert np.all(three.after >= one.after - 1e-4)
    assert np.any(three.after > one.after + 1e-4)


def test_no_slope_and_no_random_start_change_nothing(attack: Any, objective: Any) -> None:
    if "random_start" not in attack.options:
        pytest.skip("always starts at random")
    shape, value_range = CASES[0]
    images = drawn(shape, value_range)
    flat = objective(value_range, scale=0)
    result = attack.run(flat, images, key=KEY, epsilon=0.1, value_range=value_range, random_start=False)
    assert np.array_equal(result.adversarial, images)
    assert not np.any(result.success)


def nothing(images: Any) -> Any:
    return jnp.zeros(images.shape[0])


@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "noise", "recolor", "union"])
def test_a_radius_in_grey_levels_is_not_taken_for_one_in_floats(name: str) -> None:
    attack = table.entry(name).function
    images = np.zeros((1, 6, 5, 3), np.uint8)
    with pytest.raises(AttackError, match=r"epsilon 8 is more than the whole range of values, .*=\(0, 255\)"):
        attack(nothing, images, key=KEY, epsilon=8, steps=1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm": "l1"}, "norm must be one of linf, l2, got 'l1'"),
        ({"steps": 0}, "steps must be a whole number, 1 or more, got 0"),
        ({"steps": 2.5}, "steps must be a whole number, 1 or more, got 2.5"),
        ({"restarts": 0}, "restarts must be a whole number, 1 or more, got 0"),
        ({"epsilon": -0.1}, r"epsilon must be finite and 0 or more, in the units of \w+, got -0.1"),
        ({"epsilon": float("nan")}, "epsilon must be finite"),
        ({"epsilon": [0.1, 0.1]}, r"epsilon must be one number or one for each of the 3 examples, got shape \(2,\)"),
        ({"epsilon": "small"}, "epsilon must be a number, or one for each example, got 'small'"),
        ({"key": 0}, r"an attack draws at random and needs one key of jax.random, .*, got 0"),
        ({"objective": 3}, "an objective or a classifier is a function of images, got int"),
        ({"objective": jnp.mean}, r"gives shape \(\) for images \(3, 6, 5, 3\); it must give a number for each"),
        ({"images": np.zeros((6, 5, 3), np.float32)}, r"an attack takes a batch \(n, h, w, 3\): pass images\[None\]"),
        ({"images": np.full((3, 6, 5, 3), 2, np.float32)}, r"outside value_range=\(0, 1\)"),
        ({"value_range": (1.0, 0.0)}, "value_range must be"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.usefixtures("wrong_types")
def test_errors_teach(attack: Any, changed: dict[str, Any], message: str) -> None:
    arguments = {
        "objective": nothing,
        "images": np.zeros((3, 6, 5, 3), np.float32),
        "key": KEY,
        "epsilon": 0.1,
        "value_range": (0.0, 1.0),
    }
    if not set(changed) <= {*arguments, *attack.options}:
        pytest.skip("has no such argument")
    arguments |= changed
    with pytest.raises((AttackError, ImageError), match=message):
        attack.run(arguments.pop("objective"), arguments.pop("images"), **arguments)


def test_an_objective_of_another_range_is_an_error(attack: Any, tiny: Any, triplets: Any) -> None:
    function = attacks.ranking(tiny, *triplets)
    with pytest.raises(AttackError, match=r"made for images in value_range=\(0.0, 1.0\), the attack has \(-1.0, 1.0\)"):
        attack.run(function, triplets[1] * 2 - 1, key=KEY, epsilon=0.1, value_range=(-1.0, 1.0))


def test_names_its_arguments_alike(attack: Any) -> None:
    """What works with one attack works with another."""
    parameters = inspect.signature(attack.run).parameters
    assert list(parameters)[:2] == ["objective", "images"]
    assert {"key", "value_range", *attack.options} <= set(parameters)
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(parameters)[2:])


def broken(bad: Any, images: Any) -> Any:
    """Brightness, and no finite number on one side of a plane."""
    outside = images[:, 0, 0, 0] > 0.5
    return jnp.where(outside, bad, jnp.mean(images, axis=(1, 2, 3)))


def test_what_is_not_finite_is_never_better(attack: Any) -> None:
    """Whether the images themselves have a finite objective or not, and among restarts too."""
    images = np.random.default_rng(0).uniform(0.4, 0.6, (40, 4, 5, 3)).astype(np.float32)
    images[:20, 0, 0, 0], images[20:, 0, 0, 0] = 0.498, 0.502
    bad = jnp.tile(jnp.asarray([jnp.nan, jnp.inf]), 20)
    options = {"restarts": 3} if "restarts" in attack.options else {}
    epsilon = np.float32(attack.radius)
    result = attack.run(Partial(broken, bad), images, key=KEY, epsilon=epsilon, value_range=(0.0, 1.0), **options)
    seen = np.isfinite(result.before) | np.isfinite(result.trajectory).any(axis=0)
    assert np.all(np.isfinite(result.after) == seen)
    np.testing.assert_allclose(result.after[seen], broken(bad, result.adversarial)[seen], rtol=1e-5)
    assert not np.any(result.success & ~np.isfinite(result.after))
    assert all(seen[part].any() for part in (slice(0, 20), slice(20, 40, 2), slice(21, 40, 2)))
