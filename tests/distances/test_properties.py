"""What every metric promises, for every family of the table over a small network with drawn weights."""

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import rlpips_jax as rl
from rlpips_jax.backbones import Convolution, Pool, Sequential
from rlpips_jax.backbones.sequential import BlurPool
from rlpips_jax.backbones.vit import ViT
from rlpips_jax.distances import dists
from rlpips_jax.distances.options import Options
from rlpips_jax.distances.protocol import MappedMetric, MaskedMetric, is_random
from rlpips_jax.loading import FAMILIES
from rlpips_jax.ops.pooling import Pooling
from rlpips_jax.weights.parameters import Layout, unflatten, with_heads
from rlpips_jax.weights.registry import Recipe

DEVICES = 8
SMALL = Sequential(
    "small",
    (Convolution(0, 4, 3, padding=1), Pool(1), Convolution(2, 6, 3, padding=1), Convolution(4, 5, 3, padding=1)),
    Pooling("max", 2, 2),
    tapped=(0, 2, 4),
)
SMALL_L2 = replace(SMALL, pooling=Pooling("l2", 3, 2))
SMALL_ST = replace(
    SMALL,
    layers=(Convolution(0, 4, 3, padding=1, blurred=True), Pool(1), BlurPool(1), *SMALL.layers[2:]),
    pooling=Pooling("max", 3, 1),
)

LAYOUTS: dict[str, Layout] = {
    "lpips": with_heads(SMALL),
    "lpips+": with_heads(SMALL),
    "elpips": with_heads(SMALL),
    "dists": dists.layout(SMALL_L2),
    "stlpips": with_heads(SMALL_ST),
    "embedding": Layout(ViT("small", patch=4, tapped=(0,), width=8, depth=1, heads=2, dimension=8, size=16)),
}
"""A small network for a family. One that does not stand here is tested over the smallest network that it has."""

RNG = np.random.default_rng(0)
X, Y = RNG.uniform(size=(2, DEVICES, 16, 16, 3)).astype(np.float32)
FLAT = {
    "identical": (X[0], X[0]),
    "constant": (np.full_like(X[0], 0.5), np.full_like(X[0], 0.4)),
    "black": (np.zeros_like(X[0]), np.zeros_like(X[0])),
    "black beside another": (np.zeros_like(X[0]), X[0]),
}


def layout_of(family: str) -> Layout:
    def size(recipe: Recipe) -> int:
        return sum(math.prod(shape) for shape in recipe.layout.shapes.values())

    return LAYOUTS.get(family) or min(FAMILIES[family].recipes.values(), key=size).layout


def small_recipe(family: str) -> Recipe:
    """That of the first metric of a family, over a small network."""
    first = next(iter(FAMILIES[family].recipes.values()))
    return Recipe(first.name, layout_of(family), (), first.settings)


def make(family: str, **options: Any) -> Any:
    """A metric of a family, with drawn parameters."""
    layout, rng, tensors = layout_of(family), np.random.default_rng(1), {}
    signed = {weight.path: weight.signed for weight in layout.weights}
    for path, shape in layout.shapes.items():
        deviation = math.sqrt(2 / math.prod(shape[:-1])) if path.endswith("kernel") else 0.1
        tensor = np.asarray(rng.normal(0, deviation, shape), np.float32)
        tensors[path] = tensor if signed.get(path, True) else np.asarray(np.abs(tensor))
    return FAMILIES[family].build(small_recipe(family), unflatten(tensors, layout, "drawn"), Options(**options))


def distance(metric: Any, x: Any, y: Any, **arguments: Any) -> jax.Array:
    """By a random metric always under the same draws."""
    draws = {"key": jax.random.key(0), "samples": 2} if is_random(metric) else {}
    return rl.distance(x, y, metric, **draws, **arguments)


jitted = jax.jit(distance)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def metric(family: str) -> Any:
    return make(family)


def assert_alike(found: Any, expected: Any) -> None:
    """The roots, which are lengths of differences: of unit vectors they are rounded to 1e-7, however short they are."""
    np.testing.assert_allclose(np.sqrt(found), np.sqrt(expected), rtol=5e-6, atol=2e-7)


def test_it_is_zero_for_identical_images_alone(metric: Any) -> None:
    found = jitted(metric, X, Y)
    assert found.shape == (DEVICES,)
    assert np.all(found > 0)
    assert np.all(jitted(metric, X, X.copy()) == 0)
    assert np.all(distance(metric, X, X.copy()) == 0)
    assert distance(metric, X[0], X[0].copy()) == 0


def test_it_is_symmetric_unless_the_table_says_no(metric: Any, family: str) -> None:
    there, back = jitted(metric, X, Y), jitted(metric, Y, X)
    assert np.allclose(there, back, rtol=1e-5) == FAMILIES[family].symmetric


def test_leading_axes_and_vmap(metric: Any) -> None:
    found = jitted(metric, X, Y)
    for leading in ((2, 4), (4, 1, 2)):
        x, y = (images.reshape(*leading, *images.shape[1:]) for images in (X, Y))
        shaped = distance(metric, x, y)
        assert shaped.shape == leading
        # A random metric draws anew for each image, in the order of the images.
        assert_alike(shaped.ravel(), found)
    if not is_random(metric):
        assert_alike(jax.vmap(lambda x, y: distance(metric, x, y))(X, Y), found)


def test_one_image_is_compared_with_many(metric: Any) -> None:
    many = np.concatenate([Y[:2], X[:1]])
    copies = np.broadcast_to(X[0], many.shape)
    for lone, pairs in (((X[0], many), (copies, many)), ((many, X[0]), (many, copies))):
        found = distance(metric, *lone)
        assert_alike(found, distance(metric, *pairs))
        assert found[2] == 0
    if isinstance(metric, MaskedMetric):
        mask = np.arange(16) < np.full((16, 1), 9)
        masked = [distance(metric, x, many, mask=mask) for x in (X[0], copies)]
        np.testing.assert_allclose(masked[0], masked[1], rtol=1e-5)
    if isinstance(metric, MappedMetric):
        maps = [rl.distance_map(x, many, cast(Any, metric)) for x in (X[0], copies)]
        np.testing.assert_allclose(maps[0], maps[1], rtol=1e-4, atol=1e-6)


def test_calling_it_is_its_distance(metric: Any) -> None:
    draws = {"key": jax.random.key(0), "samples": 2} if is_random(metric) else {}
    np.testing.assert_array_equal(cast(Any, metric)(X, Y, **draws), distance(metric, X, Y))


def test_gradients_are_finite(metric: Any) -> None:
    slope = jax.jit(jax.vmap(jax.grad(lambda y, x: distance(metric, x, y))))
    pairs = [np.stack(images) for images in zip(*FLAT.values(), (X[0], Y[0]), strict=True)]
    gradients = np.asarray(slope(pairs[1], pairs[0]))
    assert np.all(np.isfinite(gradients))
    assert np.any(gradients[-1])
    # Identical images are at a minimum; what is left there is rounding.
    assert np.abs(gradients[0]).max() < 1e-4 * np.abs(gradients[-1]).max()


@pytest.mark.slow
def test_gradient_of_gradient(family: str) -> None:
    """The product of the Hessian with a direction, which is that of finite differences of the gradient."""
    with jax.enable_x64(True):
        metric = make(family, dtype="float64")
        x, y, direction = (images[0].astype(np.float64) for images in (X, Y, RNG.normal(size=X.shape)))
        slope = jax.jit(jax.grad(lambda y: distance(metric, x, y)))
        found = jax.jit(jax.grad(lambda y: jnp.vdot(jax.grad(lambda y: distance(metric, x, y))(y), direction)))(y)
        step = 1e-6
        expected = (slope(y + step * direction) - slope(y - step * direction)) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_other_types_of_numbers(metric: Any, family: str) -> None:
    found = np.asarray(jitted(metric, X, Y))
    coarse = make(family, dtype="bfloat16")
    rounded = jitted(coarse, X, Y)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, found, rtol=0, atol=0.1 * found.max())
    assert np.all(jitted(coarse, X, X.copy()) == 0)
    with jax.enable_x64(True):
        exact = distance(make(family, dtype="float64"), X, Y)
        assert exact.dtype == jnp.float64
    if not is_random(metric):  # Whose draws depend on the width of numbers.
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * found.max())


def test_a_mask(metric: Any) -> None:
    able: object = metric
    if not isinstance(able, MaskedMetric):
        pytest.skip("a mask has no meaning for it")
    mask = np.zeros(X.shape[:-1], bool)
    mask[:, :, :7] = True
    found = rl.distance(X, Y, metric, mask=mask)
    other = np.where(mask[..., None], Y, 1 - Y)
    np.testing.assert_array_equal(rl.distance(X, other, metric, mask=mask), found)
    everything = np.ones_like(mask)
    np.testing.assert_allclose(rl.distance(X, Y, metric, mask=everything), rl.distance(X, Y, metric), rtol=1e-5)
    assert np.all(rl.distance(X, Y, metric, mask=~everything) == 0)
    gradient = jax.grad(lambda y: rl.distance(X, y, metric, mask=mask).sum())(jnp.asarray(Y))
    assert np.all(np.isfinite(gradient))
    assert not np.any(np.asarray(gradient)[~mask])


def test_it_is_stored_and_comes_back(metric: Any, family: str, tmp_path: Path) -> None:
    expected = jitted(metric, X, Y)
    assert metric.name in metric.signature
    again: list[Callable[[], Any]] = [
        lambda: pickle.loads(pickle.dumps(metric)),
        lambda: flax.serialization.from_bytes(metric, flax.serialization.to_bytes(metric)),
        lambda: jax.tree.unflatten(jax.tree.structure(metric), jax.tree.leaves(metric)),
    ]
    for restored in (make() for make in again):
        assert restored.signature == metric.signature
        np.testing.assert_array_equal(jitted(restored, X, Y), expected)
    changed = jax.tree.map(lambda leaf: leaf * 1.01, metric)
    assert changed.signature != metric.signature


def test_a_named_one_is_saved_and_loaded(
    metric: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: Any = FAMILIES[family].recipes
    monkeypatch.setitem(recipes, "small", replace(small_recipe(family), name="small"))
    rl.save(metric, tmp_path / "mine.safetensors")
    loaded: Any = rl.load(tmp_path / "mine.safetensors")
    assert (type(loaded), jax.tree.structure(loaded)) == (type(metric), jax.tree.structure(metric))
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(metric), strict=True):
        np.testing.assert_array_equal(one, other)


def test_devices_share_a_batch(metric: Any) -> None:
    if is_random(metric):
        pytest.skip("draws of sharded batches are tested in test_sharding")
    mesh = jax.make_mesh((DEVICES,), ("data",), devices=jax.devices()[:DEVICES])
    x, y = (jax.device_put(images, NamedSharding(mesh, PartitionSpec("data"))) for images in (X, Y))
    found = jitted(metric, x, y)
    assert len(found.sharding.device_set) == DEVICES
    expected = jitted(metric, X, Y)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())
