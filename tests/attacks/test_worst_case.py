"""The worst of several attacks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.attacks import AttackResult, noise, pgd, randomised, worst_case, worst_of
from rlpips_jax.errors import AttackError

KEY = jax.random.key(3)


def result(after: list[float], steps: int, mark: float) -> AttackResult:
    """A result whose images all have the value `mark`."""
    n = len(after)
    values = jnp.asarray(after, jnp.float32)
    return AttackResult(
        adversarial=jnp.full((n, 2, 2, 3), mark),
        before=jnp.zeros(n),
        after=values,
        linf=jnp.full(n, mark),
        l2=jnp.full(n, 2 * mark),
        success=values > 0,
        trajectory=jnp.linspace(0, 1, steps + 1)[:, None] * values,
    )


def test_each_example_has_its_own_worst() -> None:
    worst = worst_of([result([1, -2, 3], 2, 0.25), result([0, -1, 3], 4, 0.5)])
    np.testing.assert_allclose(worst.after, [1, -1, 3])
    np.testing.assert_allclose(worst.linf, [0.25, 0.5, 0.25])
    np.testing.assert_allclose(worst.l2, [0.5, 1, 0.5])
    np.testing.assert_allclose(worst.adversarial[:, 0, 0, 0], [0.25, 0.5, 0.25])
    assert worst.success.tolist() == [True, False, True]
    # What ended early goes on at its last value.
    np.testing.assert_allclose(worst.trajectory[:, 0], [0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(worst.trajectory[:, 1], [0, -0.25, -0.5, -0.75, -1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_result_that_is_not_finite_hides_none_that_is(bad: float) -> None:
    """A part that ended at no number does not win over one that succeeded, wherever in the list it stands."""
    for results in ([result([bad], 2, 0.25), result([1], 2, 0.5)], [result([1], 2, 0.5), result([bad], 2, 0.25)]):
        worst = worst_of(results)
        assert worst.success.tolist() == [True]
        np.testing.assert_array_equal(worst.after, [1])
        np.testing.assert_array_equal(worst.adversarial, np.full((1, 2, 2, 3), 0.5))


def test_worst_case_is_the_worst_of_its_attacks(objective: Any) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (4, 6, 5, 3)).astype(np.float32)
    attacks = [
        functools.partial(noise, epsilon=0.1, steps=3),
        functools.partial(pgd, epsilon=0.1, steps=2),
        functools.partial(pgd, epsilon=0.2, steps=5),
    ]
    function = objective()
    after = [worst_case(function, images, key=KEY, attacks=attacks[:count]).after for count in (1, 2, 3)]
    assert np.all(after[1] >= after[0])
    assert np.all(after[2] >= after[1])
    assert np.any(after[2] > after[0])


def chance(images: Any, key: Any) -> Any:
    return jax.random.normal(key, images.shape[:1])


def test_the_choice_is_judged_anew() -> None:
    images = np.full((200, 2, 2, 3), 0.5, np.float32)
    attacks = [functools.partial(noise, epsilon=0.1)] * 6
    worst = worst_case(randomised(chance, 1), images, key=KEY, attacks=attacks)
    # The largest of six draws would be 1.27 on average.
    assert abs(np.mean(worst.after)) < 4 / np.sqrt(200)
    assert np.array_equal(worst.before, worst.after)


def no_attack(*images: Any, **options: Any) -> Any:
    return None


def test_errors() -> None:
    images = np.full((2, 2, 2, 3), 0.5, np.float32)
    with pytest.raises(AttackError, match="results is empty"):
        worst_of([])
    with pytest.raises(AttackError, match=r"shapes \(1, 2, 2, 3\), \(2, 2, 2, 3\); they must be of the same images"):
        worst_of([result([1], 2, 0.0), result([1, 2], 2, 0.0)])
    with pytest.raises(AttackError, match="attacks is empty"):
        worst_case(jnp.sum, images, key=KEY, attacks=[])
    with pytest.raises(AttackError, match=r"an attack is a function .*; this one gave NoneType"):
        worst_case(jnp.sum, images, key=KEY, attacks=[no_attack])
