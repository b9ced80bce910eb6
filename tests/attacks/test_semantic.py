"""`semantic`: its objective by brute force, its goal, its stillness once there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import AttackError
from tests.attacks.conftest import pictures, programs

KEY = jax.random.key(0)

STEPS = 20
"""With four images, all tests with a random start share one program."""


def margins(metric: Lpips, images: np.ndarray | jax.Array, references: np.ndarray) -> np.ndarray:
    """Own distance minus the largest other, one pair of images at a time."""
    count = len(images)
    matrix = np.array([[rl.distance(image, reference, metric) for reference in references] for image in images])
    return np.array([matrix[i, i] - max(matrix[i, j] for j in range(count) if j != i) for i in range(count)])


def test_the_objective_is_its_definition(metric) -> None:
    references = pictures(5)
    # The last two are nearer to each other's references, one of them is nearest to all others too.
    images = references[[0, 2, 1, 4, 3]]
    objective = rl.attacks.semantic_similarity(metric, references)
    expected = np.minimum(margins(metric, images, references), 0)
    assert (expected < 0).any()
    np.testing.assert_allclose(objective(jnp.asarray(images / 255, jnp.float32)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_its_gradient_is_that_of_the_pair_that_counts(metric) -> None:
    references = (pictures(4) / 255).astype(np.float32)
    images = (pictures(4, seed=7) / 255).astype(np.float32)
    objective = rl.attacks.semantic_similarity(metric, references)
    matrix = np.array(rl.pairwise(images, references, metric))
    others = np.argmax(np.where(np.eye(4, dtype=bool), -1, matrix), axis=1)
    below = np.diag(matrix) < matrix[np.arange(4), others]
    assert below.any()

    def margin(images):
        own, other = rl.distance(images, references, metric), rl.distance(images, references[others], metric)
        return below.astype(np.float32) @ (own - other)

    expected = jax.grad(margin)(images)
    np.testing.assert_allclose(
        jax.grad(lambda images: objective(images).sum())(images), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.slow
def test_the_goal_is_reached_in_a_large_ball_and_kept_from_the_start(metric) -> None:
    references = pictures(4)
    result = rl.attacks.semantic(metric, references, references, key=KEY, epsilon=0.5, steps=STEPS)
    assert np.all(result.success)
    assert np.all(result.after == 0)
    assert np.all(result.before < 0)
    assert margins(metric, result.adversarial, (references / 255).astype(np.float32)).min() > -1e-6
    # Each nearer to all other references than to its own: there is nothing to do, and nothing moves.
    there = np.asarray(result.adversarial)
    objective = rl.attacks.semantic_similarity(metric, references)
    again = rl.attacks.pgd(objective, there, key=KEY, epsilon=0.5, steps=3, random_start=False)
    reached = margins(metric, there, (references / 255).astype(np.float32)) > 1e-6
    np.testing.assert_array_equal(again.adversarial[reached], there[reached])
    assert np.all(again.success[reached])


@pytest.mark.slow
def test_a_ball_of_no_size_holds_the_image_alone_and_fails(metric) -> None:
    references, images = pictures(4), pictures(4, seed=1)
    result = rl.attacks.semantic(metric, references, references, key=KEY, epsilon=0, steps=STEPS)
    np.testing.assert_allclose(result.adversarial, references / 255, atol=1e-7)
    assert not result.success.any()
    rise = rl.attacks.semantic(metric, images, references, key=KEY, epsilon=0.02, norm="linf", steps=STEPS)
    assert np.all(rise.after >= rise.before)
    assert np.all(rise.linf <= 0.02 * (1 + 1e-5))


@pytest.mark.slow
def test_all_batches_are_one_program(metric) -> None:
    before = None
    for seed in range(3):
        images, references = pictures(4, seed), pictures(4, seed + 10)
        rl.attacks.semantic(metric, images, references, key=KEY, epsilon=0.1 * seed, steps=STEPS)
        if seed == 0:
            before = programs()
    assert programs() == before


def test_bad_arguments(metric) -> None:
    images = pictures(3)
    with pytest.raises(AttackError, match="two or more"):
        rl.attacks.semantic(metric, images[:1], images[:1], key=KEY, epsilon=0.1)
    with pytest.raises(AttackError, match="one reference for each image"):
        rl.attacks.semantic(metric, images, images[:2], key=KEY, epsilon=0.1)
    with pytest.raises(AttackError, match="two or more"):
        rl.attacks.semantic_similarity(metric, images[0])
