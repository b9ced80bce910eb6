"""Cosine distances of embeddings: their values, and everything that takes a metric."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import CLIP, Computation
from rlpips_jax.backbones.convnext import ConvNeXt
from rlpips_jax.backbones.vit import ViT
from rlpips_jax.distances.embedding import Embedding
from rlpips_jax.errors import MetricError
from rlpips_jax.weights.parameters import Layout, from_pytorch

TOWERS = (
    ViT("vit", patch=8, tapped=(0, 1), width=32, depth=2, heads=2, dimension=16, size=32),
    ConvNeXt("convnext", widths=(8, 12), depths=(1, 1), dimension=10, size=32, scaling=CLIP),
)
each = pytest.mark.parametrize("backbone", TOWERS, ids=lambda backbone: backbone.name)


@functools.cache
def metric(backbone: Any, **options: Any) -> Embedding:
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(0, np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.5, shape).astype(np.float32)
        for name, shape in backbone.pytorch_shapes.items()
    }
    parameters = jax.tree.map(jnp.asarray, from_pytorch(tensors, Layout(backbone), "drawn weights"))
    return Embedding(parameters, f"drawn-{backbone.name}", backbone, **options)


def images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).uniform(size=(count, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("backbone", "centred"),
    [(TOWERS[0], False), (TOWERS[0], True), (TOWERS[1], False)],
    ids=["vit", "centred", "convnext"],
)
def test_it_is_one_minus_the_cosine(backbone: Any, centred: bool) -> None:
    x, y = images(4).reshape(2, 2, 32, 32, 3)
    scaled = (jnp.asarray([x, y]) - np.array(CLIP.mean, np.float32)) / np.array(CLIP.deviation, np.float32)
    embed = jax.jit(backbone.embedding, static_argnames="computation")
    found = embed(metric(backbone).parameters["backbone"], scaled.reshape(4, 32, 32, 3), computation=Computation())
    vectors = np.asarray(found, np.float64)
    u, v = (vectors - vectors.mean(-1, keepdims=True) * centred).reshape(2, 2, -1)
    expected = 1 - (u * v).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1)
    np.testing.assert_allclose(rl.distance(x, y, metric(backbone, centred=centred)), expected, rtol=1e-4, atol=1e-6)


@each
def test_zero_at_identical_images_and_finite_gradients(backbone: Any) -> None:
    """Of identical, constant and black images."""
    random, grey, black = images(1)[0], np.full((32, 32, 3), 0.5, np.float32), np.zeros((32, 32, 3), np.float32)
    x, y = np.stack([random, grey, black, grey]), np.stack([random, grey, black, black])

    def total(y: jax.Array, metric: Any) -> tuple[jax.Array, jax.Array]:
        distances = rl.distance(jnp.asarray(x), y, metric)
        return distances.sum(), distances

    gradient, distances = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(y), metric(backbone))
    assert (distances[:3] == 0).all()
    assert 0 < distances[3] < 2
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_recomputation_changes_no_gradient() -> None:
    def total(metric: Any, y: jax.Array) -> jax.Array:
        return rl.distance(images(2), y, metric).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    found, expected = (gradient(metric(TOWERS[0], remat=remat), jnp.asarray(images(4)[2:])) for remat in (True, False))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.slow
def test_an_embedding_of_zeros_has_a_distance() -> None:
    zeros = jax.tree.map(jnp.zeros_like, metric(TOWERS[1]))
    x = images(2)
    gradient = jax.grad(lambda x: rl.distance(x, x[::-1], zeros).sum())(jnp.asarray(x))
    assert (rl.distance(x, x[::-1], zeros) == 0).all()
    assert np.isfinite(gradient).all()


@pytest.mark.slow
@each
def test_pairs_by_matrix_products(backbone: Any) -> None:
    xs = images(4, 40)
    xs[1] = np.clip(xs[0] + 1e-3, 0, 1)
    expected = [[float(rl.distance(x, y, metric(backbone))) for y in xs[:3]] for x in xs]
    found = rl.pairwise(xs, xs[:3], metric(backbone))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert (np.diag(found) == 0).all()
    features = metric(backbone).features(xs)
    np.testing.assert_allclose(
        metric(backbone).pairwise_between(features, features[:3]), expected, rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions(dtype: str) -> None:
    x, y = images(2)
    expected = rl.distance(x, y, metric(TOWERS[0]))
    with jax.enable_x64(dtype == "float64"):
        found = rl.distance(x.astype(np.float64) if dtype == "float64" else x, y, metric(TOWERS[0], dtype=dtype))
        assert found.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(found, expected, rtol=1e-4 if dtype == "float64" else 0.1)


def test_a_signature_needs_values() -> None:
    signature = metric(TOWERS[0]).signature
    assert "drawn-vit backbone=vit size=32 activation=gelu taps=2 parameters=" in signature
    assert signature != metric(TOWERS[0], centred=True).signature
    with pytest.raises(MetricError, match="outside jit"):
        jax.eval_shape(lambda traced: len(traced.signature), metric(TOWERS[0]))


def test_embedded_vectors_have_the_distance_as_their_square() -> None:
    """Which attacks within a perceptual distance need."""
    features = metric(TOWERS[0]).features(images(2))
    one, other = metric(TOWERS[0]).embedded(features)
    expected = metric(TOWERS[0]).between(*features)
    np.testing.assert_allclose(np.square(one - other).sum(), expected, rtol=1e-6)


@pytest.mark.slow
def test_attacks_and_ensembles() -> None:
    tested = metric(TOWERS[0])
    x, y, z = images(3)[:, None]
    key = jax.random.key(0)
    objective = rl.attacks.ranking(tested, x, y, z)
    result = rl.attacks.pgd(objective, y, key=key, epsilon=8 / 255, steps=2)
    assert np.abs(result.adversarial - y).max() <= 8 / 255 + 1e-6
    assert (result.after >= result.before).all()
    ensemble = rl.Ensemble(tested)
    same, different = rl.distance(np.concatenate([x, x]), np.concatenate([x, y]), ensemble, key=key, samples=2)
    assert same == 0
    assert different > 0


@pytest.mark.slow
@each
def test_taps_of_the_same_networks(backbone: Any, drawn: Callable[..., Any]) -> None:
    """LPIPS over blocks, which scales images as the network expects it, and its ensembles."""
    taps = drawn(backbone)
    x, y = images(2)
    scaled = (jnp.asarray(x)[None] - np.array(CLIP.mean, np.float32)) / np.array(CLIP.deviation, np.float32)
    expected = backbone.taps(taps.parameters["backbone"], scaled, Computation())
    for feature, tap in zip(taps.features(x[None]), expected, strict=True):
        length = np.linalg.norm(tap, axis=-1, keepdims=True)
        np.testing.assert_allclose(feature, tap / length, rtol=1e-4, atol=1e-5)
    assert rl.distance(x, y, taps) > 0
    ensemble = rl.Ensemble(taps)
    assert "keep=1 " in ensemble.signature
    assert rl.distance(x, x, ensemble, key=jax.random.key(0), samples=2) == 0
    turned = taps.transposed(jnp.asarray(True))
    straight = rl.distance(x.swapaxes(0, 1), y.swapaxes(0, 1), taps)
    np.testing.assert_allclose(rl.distance(x, y, turned), straight, rtol=1e-4)
