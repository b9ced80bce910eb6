"""Scores: the published numbers, and what must hold of any triplets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.scores import (
    best_two_afc_score,
    bootstrap_interval,
    credit_interval,
    flip_rate,
    flipped,
    has_majority,
    jnd_average_precision,
    majority_accuracy,
    majority_credit,
    two_afc_credit,
    two_afc_score,
)

PUBLISHED = {
    "alex": {"traditional": 77.48, "cnn": 82.87, "superres": 71.19, "deblur": 61.04, "color": 65.23}
    | {"frameinterp": 62.43},
    "vgg": {"traditional": 78.35, "cnn": 83.65, "superres": 71.20, "deblur": 60.99, "color": 63.97}
    | {"frameinterp": 62.22},
}
"""2AFC scores on the validation sets of BAPPS, in per cent, as their authors logged them."""


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


@pytest.fixture(scope="module")
def bapps(shared):
    with np.load(shared / "goldens" / "bapps_val_distances.npz") as file:
        return dict(file)


CASES = [(network, split) for network, splits in PUBLISHED.items() for split in splits]


@pytest.mark.shared
@pytest.mark.parametrize(("network", "split"), CASES)
def test_published_scores(network, split, bapps):
    d0, d1, judgment = (bapps[f"{network}/{split}/{name}"] for name in ("d0", "d1", "judge"))
    assert round(100 * float(two_afc_score(d0, d1, judgment)), 2) == PUBLISHED[network][split]
    # Five people judged each, so there are majorities throughout, and the rounding of the R-LPIPS code is the same.
    assert has_majority(judgment).all()
    rounding = np.mean(np.where(d0 == d1, 0.5, (d1 < d0) == np.round(judgment)))
    assert float(majority_accuracy(d0, d1, judgment)) == pytest.approx(rounding, abs=1e-12)


def test_half_a_point_for_guessing_and_a_whole_one_for_agreeing_with_all():
    d0, d1, judgment = array(1, 2, 1, 2, 1, 1), array(2, 1, 2, 1, 1, 1), array(0, 1, 1, 0, 1, 0.2)
    assert two_afc_credit(d0, d1, judgment).tolist() == [1, 1, 0, 0, 0.5, 0.5]
    assert majority_credit(d0, d1, judgment).tolist() == [1, 1, 0, 0, 0.5, 0.5]
    assert two_afc_score(d0, d1, judgment) == majority_accuracy(d0, d1, judgment) == 0.5


def test_minorities_count_in_2afc_and_not_in_majority_accuracy():
    d0, d1, judgment = array(1, 1, 2), array(2, 2, 1), array(0.2, 0.6, 0.75)
    assert two_afc_credit(d0, d1, judgment) == pytest.approx([0.8, 0.4, 0.75])
    assert majority_credit(d0, d1, judgment).tolist() == [1, 0, 1]
    assert majority_accuracy(d0, d1, judgment) == pytest.approx(2 / 3)
    assert best_two_afc_score(judgment) == pytest.approx((0.8 + 0.6 + 0.75) / 3)


def test_a_divided_jury_is_left_out():
    d0, d1, judgment = array(1, 2, 3, 4), array(2, 1, 1, 1), array(0.5, 0.5, 1, 0)
    np.testing.assert_array_equal(majority_credit(d0, d1, judgment), [np.nan, np.nan, 1, 0])
    assert has_majority(judgment).tolist() == [False, False, True, True]
    assert majority_accuracy(d0, d1, judgment) == 0.5
    assert np.isnan(majority_accuracy(d0[:2], d1[:2], judgment[:2]))
    assert two_afc_score(d0[:2], d1[:2], judgment[:2]) == 0.5


TRIPLETS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 6).map(lambda votes: votes / 6))
"""Two distances and a judgment; ties of both kinds are frequent."""


@given(st.lists(TRIPLETS, min_size=1))
def test_scores_do_not_know_which_image_is_called_p0(triplets):
    d0, d1, judgment = np.array(triplets, np.float64).T
    for score in (two_afc_score, majority_accuracy):
        np.testing.assert_allclose(score(d0, d1, judgment), score(d1, d0, 1 - judgment), rtol=0, atol=1e-12)
        # Only the order of distances counts, and the opposite order earns what is left.
        np.testing.assert_allclose(score(d0, d1, judgment), score(d0**3, d1**3, judgment), rtol=0, atol=1e-12)
        np.testing.assert_allclose(score(d0, d1, judgment), 1 - score(d1, d0, judgment), rtol=0, atol=1e-12)
    assert two_afc_score(d0, d1, judgment) <= best_two_afc_score(judgment) + 1e-12
    sides = np.where(judgment > 0.5, 1.0, 0.0)
    assert two_afc_score(sides, 1 - sides, judgment) == pytest.approx(best_two_afc_score(judgment), abs=1e-12)


@given(st.lists(TRIPLETS, min_size=9, max_size=9))
def test_jax_scores_as_numpy_does(triplets):
    d0, d1, judgment = np.array(triplets, np.float32).T
    for score in (two_afc_score, majority_accuracy):
        expected = score(d0, d1, judgment)
        found = score(jnp.asarray(d0), jnp.asarray(d1), jnp.asarray(judgment))
        assert isinstance(found, jax.Array)
        assert isinstance(expected, np.floating)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_everything_runs_under_jit():
    rng = np.random.default_rng(0)
    d0, d1, e0, e1, judgment = (rng.uniform(size=500).astype(np.float32) for _ in range(5))
    judgment = np.round(judgment * 5).astype(np.float32) / 5
    for function, arguments in [
        (two_afc_score, (d0, d1, judgment)),
        (majority_accuracy, (d0, d1, judgment)),
        (best_two_afc_score, (judgment,)),
        (jnd_average_precision, (d0, judgment)),
        (flip_rate, (d0, d1, e0, e1, judgment)),
    ]:
        assert jax.jit(function)(*arguments).shape == ()
        np.testing.assert_allclose(jax.jit(function)(*arguments), function(*arguments), rtol=0, atol=2e-6)


def test_distances_that_float32_cannot_tell_apart_are_compared_as_given():
    assert two_afc_score(array(1), array(1 + 1e-12), array(0)) == 1


@pytest.mark.parametrize("bad", [0, 1])
def test_a_distance_that_is_no_number_is_no_mistake_but_no_score(bad):
    distances = [array(1, 2, 3), array(2, 1, 4)]
    distances[bad][0] = np.nan
    judgment = array(0, 1, 0)
    d0, d1 = distances
    assert np.isnan(two_afc_score(d0, d1, judgment))
    assert np.isnan(majority_accuracy(d0, d1, judgment))
    assert np.isnan(flip_rate(array(1, 2, 3), array(2, 1, 4), d0, d1, judgment))
    assert np.isnan(jnd_average_precision(distances[bad], judgment))


def voc(distance: np.ndarray, same: np.ndarray) -> float:
    """The area under max precision at recall >= r, taken threshold by threshold."""
    points = []
    for threshold in np.unique(distance):
        below = distance <= threshold
        points.append((same[below].sum() / same.sum(), same[below].mean()))
    area = reached = 0.0
    for recall, _ in points:
        area += (recall - reached) * max(precision for r, precision in points if r >= recall)
        reached = recall
    return area


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3).map(lambda n: n / 3)), min_size=1))
def test_jnd_average_precision_is_the_area_under_the_curve(pairs):
    distance, same = np.array(pairs, np.float64).T
    if same.sum() == 0:
        assert np.isnan(jnd_average_precision(distance, same))
        return
    assert jnd_average_precision(distance, same) == pytest.approx(voc(distance, same), abs=1e-12)
    order = np.random.default_rng(0).permutation(len(same))
    assert jnd_average_precision(distance[order], same[order]) == pytest.approx(voc(distance, same), abs=1e-12)


def test_jnd_average_precision_of_known_orders():
    same = array(1, 1, 0, 0)
    assert jnd_average_precision(array(1, 2, 3, 4), same) == 1
    assert jnd_average_precision(array(4, 3, 2, 1), same) == 0.5  # 2 of 4, at full recall only
    assert jnd_average_precision(array(1, 3, 2, 4), same) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert jnd_average_precision(array(7, 7, 7, 7), same) == 0.5
    assert jnd_average_precision(array(1, 2, 3), array(0.25, 0.25, 0.25)) == 0.25


def test_flips_count_only_what_was_right():
    judgment = array(0, 0, 0, 1, 1, 0.5, 0)
    d0, d1 = array(1, 1, 1, 2, 1, 1, 2), array(2, 2, 2, 1, 2, 2, 2)
    # held, reversed, tied, reversed, wrong before, divided, tied before
    attacked_d0, attacked_d1 = array(1, 3, 2, 1, 9, 9, 9), array(2, 2, 2, 3, 1, 1, 1)
    arguments = d0, d1, attacked_d0, attacked_d1, judgment
    np.testing.assert_array_equal(flipped(*arguments), [0, 1, 0.5, 1, np.nan, np.nan, np.nan])
    assert flip_rate(*arguments) == pytest.approx(2.5 / 4)
    assert flip_rate(d0, d1, d0, d1, judgment) == 0
    assert np.isnan(flip_rate(d1[:1], d0[:1], d0[:1], d1[:1], judgment[:1]))


@pytest.mark.parametrize("count", [40, 1000])
@pytest.mark.parametrize("discrete", [True, False])
def test_the_bootstrap_meets_the_normal_interval(count, discrete):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 6, count) / 5 if discrete else rng.uniform(size=count)
    error = values.std() / count**0.5
    for confidence in (0.5, 0.95):
        low, high = bootstrap_interval(values, confidence=confidence)
        width = norm.ppf((1 + confidence) / 2) * error
        # Of 10,000 resamples the 2.5 % quantile is known to 0.03 standard errors; the mean is not quite normal.
        assert (low, high) == pytest.approx((values.mean() - width, values.mean() + width), abs=0.1 * error)


def test_the_bootstrap_is_seeded_and_narrows_with_more_triplets():
    values = np.random.default_rng(0).integers(0, 2, 400).astype(np.float64)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)
    few, many = (np.ptp(bootstrap_interval(np.tile(values, times))) for times in (1, 16))
    assert few / many == pytest.approx(4, rel=0.1)
    assert bootstrap_interval(array(1, 1, 1)) == (1, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d0": array(1, 2)}, r"d0 \(2,\), d1 \(3,\).*one number per triplet"),
        ({"d0": np.ones((3, 1))}, "one number per triplet"),
        ({"judgment": array(-1, 1, 1)}, "from -1 to 1; they are fractions"),
        ({"judgment": array(0, 1, 5)}, "from 0 to 5; they are fractions"),
        ({"judgment": array(0, np.nan, 1)}, "fractions of people"),
        ({name: array() for name in ("d0", "d1", "judgment")}, "n at least 1"),
    ],
)
@pytest.mark.usefixtures("wrong_types")
def test_wrong_arrays_are_named(change, words):
    arguments = {"d0": array(1, 2, 3), "d1": array(1, 2, 3), "judgment": array(0, 1, 0)} | change
    for score in (two_afc_score, majority_accuracy):
        with pytest.raises(TripletsError, match=words):
            score(**arguments)


def test_wrong_samenesses_are_named():
    with pytest.raises(TripletsError, match="same has values from 0 to 2"):
        jnd_average_precision(array(1, 2), array(0, 2))


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (array(), {}, "one or more"),
        (array(1, np.nan, 0, np.nan), {}, "2 of 4 values are not finite"),
        (array(1, 0), {"confidence": 95.0}, "between 0 and 1"),
        (array(1, 0), {"resamples": 0}, "resamples be 1 or more"),
    ],
)
def test_intervals_of_nothing_are_refused(values, options, words):
    with pytest.raises(TripletsError, match=words):
        bootstrap_interval(values, **options)


def wilson(successes: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of 95 %: the shares p with |share - p| <= z sqrt(p (1 - p) / n)."""
    z, share = norm.ppf(0.975), successes / count
    middle, half = share + z**2 / (2 * count), z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return float((middle - half) / (1 + z**2 / count)), float((middle + half) / (1 + z**2 / count))


@pytest.mark.parametrize(("successes", "count"), [(4, 4), (0, 3), (7, 10), (1, 1), (350, 600)])
def test_shares_have_wilsons_interval(successes, count):
    interval = credit_interval(np.repeat([1.0, 0.0], [successes, count - successes]))
    assert interval == pytest.approx(wilson(successes, count), abs=1e-12)
    assert interval.low < interval.high


def test_other_credits_have_a_bootstrap_interval_of_some_width():
    values = np.random.default_rng(0).integers(0, 6, 50) / 5
    assert credit_interval(values) == bootstrap_interval(values)
    assert credit_interval(array(1, 0, 0.5, 1)) == pytest.approx((wilson(2, 4)[0], wilson(3, 4)[1]))
    assert credit_interval(np.full(5, 0.8)) == pytest.approx(wilson(4, 5))
    low, high = credit_interval(np.full(7, 0.9))
    assert low < 0.9 < high
    assert credit_interval(np.arange(100) % 2 / 1.0) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    with pytest.raises(TripletsError, match=r"between -1 and 2; they must be in \[0, 1\]"):
        credit_interval(array(-1, 2))
    with pytest.raises(TripletsError, match="one or more"):
        credit_interval(array())
