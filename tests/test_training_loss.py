"""The distance as a training loss in Flax: a small autoencoder learns, the metric does not."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.core import Tracer

import rlpips_jax as rl
from rlpips_jax.backbones import ALEX, TINY
from rlpips_jax.distances.lpips import Lpips

STEPS = 30


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth colour fields in [-1, 1], as a generator's training data often are."""
    rng = np.random.RandomState(0)
    ramp = np.linspace(-1, 1, 32, dtype=np.float32)
    waves = [np.sin(rng.uniform(1, 4) * ramp[:, None] + rng.uniform(1, 4) * ramp + k) for k in range(24)]
    return np.stack(waves, -1).reshape(32, 32, 8, 3).transpose(2, 0, 1, 3).astype(np.float32)


def copy_of(metric: Lpips) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(metric)]


def assert_learned(losses: list[float], metric: Lpips, before: list[np.ndarray]) -> None:
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    for leaf, old in zip(jax.tree.leaves(metric), before, strict=True):
        np.testing.assert_array_equal(leaf, old)


@pytest.mark.slow
def test_linen_with_the_metric_in_the_train_state(images, drawn) -> None:
    class Autoencoder(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.gelu(nn.Conv(16, (4, 4), (2, 2))(x))
            return nn.tanh(nn.ConvTranspose(3, (4, 4), (2, 2))(x))

    class State(TrainState):
        metric: Lpips

    model = Autoencoder()
    state = State.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), images),
        tx=optax.adam(1e-2),
        metric=drawn(TINY),
    )
    before = copy_of(state.metric)

    @jax.jit
    def step(state: State, images: jax.Array) -> tuple[State, jax.Array]:
        def loss(params):
            output = state.apply_fn(params, images)
            return rl.distance(images, output, state.metric, value_range=(-1, 1)).mean()

        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    losses = []
    for _ in range(STEPS):
        state, value = step(state, images)
        losses.append(float(value))
    assert_learned(losses, state.metric, before)


@pytest.mark.slow
def test_nnx_with_the_metric_as_data_of_the_module(images, drawn) -> None:
    class Autoencoder(nnx.Module):
        def __init__(self, metric: Lpips, rngs: nnx.Rngs) -> None:
            self.down = nnx.Conv(3, 16, (4, 4), (2, 2), rngs=rngs)
            self.up = nnx.ConvTranspose(16, 3, (4, 4), (2, 2), rngs=rngs)
            self.metric = nnx.data(metric)

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.tanh(self.up(nnx.gelu(self.down(x))))

    model = Autoencoder(drawn(TINY), nnx.Rngs(0))
    optimiser = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    before = copy_of(model.metric)

    @nnx.jit
    def step(model: Autoencoder, optimiser: nnx.Optimizer, images: jax.Array) -> jax.Array:
        def loss(model: Autoencoder) -> jax.Array:
            return rl.distance(images, model(images), model.metric, value_range=(-1, 1)).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimiser.update(model, gradient)
        return value

    losses = [float(step(model, optimiser, images)) for _ in range(STEPS)]
    assert_learned(losses, model.metric, before)


@pytest.mark.slow
def test_the_default_metric_may_be_loaded_while_tracing(images, drawn, tmp_path, monkeypatch, checking_leaks) -> None:
    """`distance` loads "lpips-alex" once and keeps it: what it keeps must be no tracer."""
    from rlpips_jax.distances.named import named
    from rlpips_jax.weights import native
    from rlpips_jax.weights.parameters import with_heads

    parameters = drawn(ALEX).parameters
    for name, half in (("alex", "backbone"), ("lpips-alex", "heads")):
        native.write(tmp_path / f"{name}.safetensors", {half: parameters[half]}, with_heads(ALEX))
    monkeypatch.setenv("RLPIPS_WEIGHTS_DIR", str(tmp_path))
    named.cache_clear()
    x, y = images[:1], images[1:2]
    with checking_leaks():
        traced = jax.jit(lambda x, y: rl.distance(x, y, value_range=(-1, 1)))(x, y)
    np.testing.assert_allclose(rl.distance(x, y, value_range=(-1, 1)), traced, rtol=1e-5)
    named.cache_clear()


@pytest.mark.slow
def test_a_first_load_under_tracing_leaks_nothing(images, drawn, tmp_path: Path, checking_leaks) -> None:
    """The metric is read from disk while a gradient is being traced, then used outside."""
    from rlpips_jax.weights import native
    from rlpips_jax.weights.parameters import with_heads

    path = tmp_path / "lpips-tiny.safetensors"
    native.write(path, drawn(TINY).parameters, with_heads(TINY), metric="lpips-tiny")
    loaded: list[Lpips] = []

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        def loss(x: jax.Array) -> jax.Array:
            loaded.append(rl.load(path))
            return rl.distance(images, x, loaded[-1], value_range=(-1, 1)).mean()

        return jax.grad(loss)(x)

    with checking_leaks():
        gradient = step(images * 0.9)
    assert jnp.isfinite(gradient).all()
    assert all(not isinstance(leaf, Tracer) for leaf in jax.tree.leaves(loaded))
    np.testing.assert_allclose(
        rl.distance(images, images * 0.9, loaded[0], value_range=(-1, 1)),
        rl.distance(images, images * 0.9, drawn(TINY), value_range=(-1, 1)),
        rtol=1e-6,
    )
