"""How far an estimate of E-LPIPS can be trusted: intervals, errors of comparisons, and when drawing ends."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import rlpips_jax as rl
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.ensemble import Ensemble
from rlpips_jax.ensemble import inference as estimation
from tests.ensemble.test_ensemble import KEY, SINGLE, SMALL, pairs


@pytest.fixture(scope="module")
def ensemble(drawn: Callable[..., Lpips]) -> Ensemble:
    return Ensemble(drawn(SINGLE))


def test_estimate(ensemble: Ensemble) -> None:
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(2))
    loose = rl.estimate(x, y, ensemble, key=KEY, relative_error=0.4, absolute_error=0)
    tight = rl.estimate(x, y, ensemble, key=KEY, relative_error=0.02, absolute_error=0)
    assert loose.samples == 64
    assert tight.samples > 64
    assert np.all(2 * tight.standard_error <= 0.021 * tight.mean)
    assert np.all(np.abs(loose.mean - tight.mean) < 4 * loose.standard_error)
    capped = rl.estimate(x[0], y[0], ensemble, key=KEY, relative_error=0, absolute_error=0, max_samples=200)
    assert (capped.samples, capped.mean.shape) == (192, ())
    assert rl.estimate(x, x, ensemble, key=KEY).standard_error.tolist() == [0, 0]


def test_compare_shares_its_draws(ensemble: Ensemble) -> None:
    x, y = (each[0, :SMALL, :SMALL] for each in pairs(1))
    nearly = y + 0.06 * (x - y)
    found = rl.compare(x, np.stack([y, nearly]), ensemble, key=KEY)
    assert found.closest == 1
    assert found.confidence >= 0.95
    assert found.differences[1] == 0
    # Both distances vary by far more than their difference.
    assert 3 * found.difference_errors[0] < np.hypot(*found.standard_errors)
    plain = rl.compare(x, np.stack([nearly, y]), ensemble.metric)
    assert (plain.closest, plain.confidence, plain.samples) == (0, 1, 0)


def test_nothing_is_drawn_to_tell_identical_images_apart(ensemble: Ensemble) -> None:
    x, y = (each[0, :SMALL, :SMALL] for each in pairs(1))
    nearer = y + 0.5 * (x - y)
    tied = rl.compare(x, jnp.stack([y, y]), ensemble, key=KEY)
    assert (tied.samples, tied.confidence) == (64, 0)
    assert tied.differences.tolist() == [0, 0]
    closest = rl.compare(x, jnp.stack([y, nearer, y, nearer]), ensemble, key=KEY)
    assert (closest.samples, closest.confidence, closest.closest) == (64, 0, 1)
    # Of the others it is no matter how many there are of each.
    beaten = rl.compare(x, jnp.stack([y, y, nearer, y]), ensemble, key=KEY)
    assert (beaten.samples, beaten.closest) == (64, 2)
    # Rounding differs with the number of images; counted thrice, the others would be beaten with a third of this doubt.
    alone = rl.compare(x, jnp.stack([nearer, y]), ensemble, key=KEY)
    assert 1 - beaten.confidence == pytest.approx(1 - alone.confidence, rel=1e-3)
    assert beaten.confidence >= 0.95
    np.testing.assert_array_equal(beaten.distances, closest.distances[[0, 0, 1, 0]])
    np.testing.assert_array_equal(beaten.difference_errors[:2], beaten.difference_errors[3])


def test_comparisons_end_at_the_last_sample_and_tell_of_each_call(ensemble: Ensemble) -> None:
    x, y = mirrored()
    known: list[rl.Comparison] = []
    found = rl.compare(x, y, ensemble, key=KEY, confidence=0.9999, max_samples=200, progress=known.append)
    assert [each.samples for each in known] == [64, 128, 192]
    assert known[-1] is found
    assert all(each.confidence < 0.9999 for each in known)

    def refuse(found: rl.Comparison) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl.compare(x, y, ensemble, key=KEY, progress=refuse)


@pytest.mark.slow
def test_intervals_hold_as_often_as_they_say(ensemble: Ensemble) -> None:
    """Of 320 intervals of 95 %: not four standard errors less often, and not always."""
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(4))
    found = [rl.estimate(x, y, ensemble, key=jax.random.key(seed), absolute_error=1e3) for seed in range(80)]
    means, errors = (np.stack([getattr(each, name) for each in found]) for name in ("mean", "standard_error"))
    assert {each.samples for each in found} == {64}
    reach = stats.t.ppf((1 + estimation.LEVEL) / 2, estimation.BLOCKS - 1) * errors
    held = np.mean(np.abs(means - means.mean(axis=0)) <= reach)
    assert 0.95 - 4 * np.sqrt(0.95 * 0.05 / means.size) <= held < 0.99


@pytest.mark.slow
def test_a_tie_is_seldom_decided(ensemble: Ensemble) -> None:
    """Each of two images that are equally far is said to be closer in as few comparisons as there may be errors."""
    x, y = mirrored()
    level = 0.8
    found = [
        rl.compare(x, y, ensemble, key=jax.random.key(seed), confidence=level, max_samples=128) for seed in range(100)
    ]
    sure = [each.closest for each in found if each.confidence >= level]
    # Some are, or errors would not be counted here.
    assert len(sure) > 0
    most = (1 - level) * len(found)
    assert max(np.bincount(sure, minlength=2)) <= most + 3 * np.sqrt(most * level)


@pytest.mark.slow
def test_all_looks_together_keep_to_the_rate_of_errors(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    """With drawn differences in place of images, enough to tell the rate."""
    rng = np.random.default_rng(0)

    def blocks(*_: object, **__: object) -> np.ndarray:
        return rng.normal(1, 1, (estimation.BLOCKS, 1)) + rng.normal(0, 0.1, (estimation.BLOCKS, 2))

    monkeypatch.setattr(estimation, "_comparison_blocks", blocks)
    images = np.stack([np.full((8, 8, 3), value, np.uint8) for value in range(3)])
    level = 0.8
    found = [
        rl.compare(images[0], images[1:], ensemble, key=KEY, confidence=level, max_samples=512) for _ in range(400)
    ]
    sure = np.bincount([each.closest for each in found if each.confidence >= level], minlength=2)
    most = (1 - level) * len(found)
    assert 0 < sure.min() <= sure.max() <= most + 3 * np.sqrt(most * level)


def test_an_estimate_holds_although_it_decides_when_to_stop(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With drawn numbers in place of distances: the wanted error is kept as often as stated."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(estimation, "_distance_blocks", lambda *_, **__: rng.normal(1, 1, (estimation.BLOCKS, 1)))
    image = np.zeros((1, 8, 8, 3), np.uint8)
    found = [
        rl.estimate(image, image, ensemble, key=KEY, relative_error=0, absolute_error=0.4, max_samples=4096)
        for _ in range(400)
    ]
    assert len({each.samples for each in found}) > 1
    misses = sum(abs(each.mean[0] - 1) > 0.4 for each in found)
    expected = 0.05 * len(found)
    assert misses <= expected + 2 * np.sqrt(expected)


def mirrored() -> tuple[jax.Array, jax.Array]:
    """A symmetric image, and another twice, mirrored: these are equally far from it, though no sample finds that."""
    x, y = (each[0, :SMALL, :SMALL] for each in pairs(1))
    return (x + x[:, ::-1]) / 2, jnp.stack([y, y[:, ::-1]])
