"""From two distances to a judgment, against the definition written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.judgment import RankingHead, draw_ranking_head, judgment_loss, ranking_head_logit, ratio_logit

D0, D1 = np.random.default_rng(0).uniform(0, 1.5, (2, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def parameters() -> dict:
    return draw_ranking_head(jax.random.key(3))


def dense(parameters: dict, d0: np.ndarray, d1: np.ndarray) -> np.ndarray:
    """The network as matrix products in float64."""
    d0, d1 = d0.astype(np.float64), d1.astype(np.float64)
    x = np.stack([d0, d1, d0 - d1, d0 / (d1 + 0.1), d1 / (d0 + 0.1)], axis=1)
    for index in range(3):
        kernel, bias = (np.asarray(parameters[f"layer{index}"][name], np.float64) for name in ("kernel", "bias"))
        x = x @ kernel + bias
        if index < 2:
            x = np.maximum(x, 0.2 * x)
    return x[:, 0]


def test_the_ranking_head_is_the_network_of_its_definition(parameters) -> None:
    shapes = {name: (layer["kernel"].shape, layer["bias"].shape) for name, layer in parameters.items()}
    assert shapes == {"layer0": ((5, 32), (32,)), "layer1": ((32, 32), (32,)), "layer2": ((32, 1), (1,))}
    found = ranking_head_logit(parameters, jnp.asarray(D0), jnp.asarray(D1))
    np.testing.assert_allclose(found, dense(parameters, D0, D1), rtol=2e-6, atol=2e-7)


def test_both_signs_of_the_activations_matter(parameters) -> None:
    """Else the slope below 0 would not be tested by the comparison above."""
    hidden = np.stack([D0, D1, D0 - D1, D0 / (D1 + 0.1), D1 / (D0 + 0.1)], axis=1) @ parameters["layer0"]["kernel"]
    assert (hidden > 0.05).any()
    assert (hidden < -0.05).any()


def test_it_is_initialised_within_the_inverse_root_of_its_inputs() -> None:
    drawn = [draw_ranking_head(jax.random.key(seed)) for seed in range(8)]
    for layer, inputs in (("layer0", 5), ("layer1", 32), ("layer2", 32)):
        bound = inputs**-0.5
        for name in ("kernel", "bias"):
            values = np.concatenate([np.ravel(one[layer][name]) for one in drawn])
            assert np.abs(values).max() <= bound
            if len(values) > 100:
                # Uniform: it fills its range evenly to both sides.
                assert np.abs(values).max() > 0.95 * bound
                assert abs(values.mean()) < 5 * bound / (3 * len(values)) ** 0.5
                assert values.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not np.array_equal(drawn[0]["layer1"]["kernel"], drawn[1]["layer1"]["kernel"])


def test_it_works_on_equal_and_vanishing_distances(parameters) -> None:
    zero = jnp.zeros(3)
    value, slopes = jax.value_and_grad(lambda d: ranking_head_logit(parameters, *d).sum())((zero, zero))
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)
    module = RankingHead()
    np.testing.assert_array_equal(
        module.apply({"params": parameters}, zero, zero), ranking_head_logit(parameters, zero, zero)
    )


def test_the_ratio_speaks_of_the_ratio_alone() -> None:
    d0, d1 = jnp.asarray(D0) + 0.1, jnp.asarray(D1) + 0.1
    logit = ratio_logit(d0, d1)
    np.testing.assert_allclose(logit, 4 * np.log(np.asarray(d0, np.float64) / np.asarray(d1, np.float64)), atol=1e-4)
    np.testing.assert_allclose(ratio_logit(7 * d0, 7 * d1), logit, atol=1e-4)
    np.testing.assert_allclose(ratio_logit(d1, d0), -logit, atol=1e-6)
    np.testing.assert_allclose(ratio_logit(d0, d1, steepness=1.0), logit / 4, rtol=1e-6, atol=1e-7)
    # Above 0 where the second image is closer.
    assert ((np.asarray(logit) > 0) == (D1 < D0)).all()


def test_the_ratio_of_vanishing_distances_is_finite() -> None:
    zero = jnp.zeros(())
    assert float(ratio_logit(zero, zero)) == 0
    for d0, d1 in ((zero, zero), (zero, zero + 1), (zero + 1, zero)):
        value, slopes = jax.value_and_grad(lambda d: ratio_logit(*d))((d0, d1))
        assert np.isfinite(value)
        assert all(np.isfinite(slope) for slope in slopes)


def test_the_loss_is_the_cross_entropy_of_the_judgment() -> None:
    logit, judgment = np.linspace(-6, 6, 13), np.linspace(0, 1, 13)
    probability = 1 / (1 + np.exp(-logit))
    expected = -(judgment * np.log(probability) + (1 - judgment) * np.log(1 - probability))
    found = judgment_loss(jnp.asarray(logit, jnp.float32), jnp.asarray(judgment, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    # Far out the sigmoid is 0 or 1, whose logarithm the loss may not take.
    assert float(judgment_loss(jnp.float32(200), jnp.float32(0))) == pytest.approx(200)
    assert float(judgment_loss(jnp.float32(-200), jnp.float32(0))) == 0


def test_the_loss_is_least_at_the_judgment_itself() -> None:
    judgment = jnp.linspace(0.1, 0.9, 5)
    best = jnp.log(judgment / (1 - judgment))
    slope = jax.vmap(jax.grad(judgment_loss))(best, judgment)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    assert (judgment_loss(best + 0.1, judgment) > judgment_loss(best, judgment)).all()
    assert (judgment_loss(best - 0.1, judgment) > judgment_loss(best, judgment)).all()
