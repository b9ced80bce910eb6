"""DISTS: the reference numbers on real weights, and its definition in NumPy on drawn ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import convolve

import rlpips_jax as rl
from rlpips_jax.backbones import Convolution, Pool, Sequential
from rlpips_jax.distances.dists import VGG_L2, Dists, layout
from rlpips_jax.errors import MetricError
from rlpips_jax.ops.pooling import Pooling, pool
from rlpips_jax.weights import native
from rlpips_jax.weights.parameters import Layout, from_pytorch, unflatten
from rlpips_jax.weights.pytorch import read_checkpoint
from tests.goldens.compare import assert_gradient

SMALL = Sequential("small", (Convolution(0, 4, 3, padding=1), Pool(1), Convolution(2, 5, 3, padding=1)),
                   Pooling("l2", 3, 2), tapped=(0, 2))  # fmt: skip
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(size=(2, 3, 11, 14, 3)).astype(np.float32)

TID2013 = {"I03": 0.4742, "I04": 0.1424, "I06": 0.06825, "I08": 0.02867, "I19": 0.3123}
"""As pyiqa's table of official results has them."""


@pytest.fixture(scope="module")
def small() -> Dists:
    rng = np.random.default_rng(1)
    tensors = {name: rng.uniform(-0.3, 0.3, shape) for name, shape in layout(SMALL).shapes.items()}
    tensors |= {name: np.abs(tensors[name]) for name in ("alpha", "beta")}
    parameters = unflatten(tensors, layout(SMALL), "drawn")
    return Dists(jax.tree.map(jnp.asarray, parameters), "drawn-dists", SMALL)


def taps_in_numpy(image: np.ndarray, metric: Dists) -> list[np.ndarray]:
    """The image and the activations, in float64, from the definition."""
    found = [image.astype(np.float64)]
    scaling = metric.backbone.scaling
    x = (found[0] - scaling.mean) / scaling.deviation
    window = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for index in (0, 2):
        if index == 2:
            blurred = [convolve(x[..., c] ** 2, window, mode="constant")[::2, ::2] for c in range(x.shape[-1])]
            x = np.sqrt(np.stack(blurred, axis=-1) + 1e-12)
        weights = metric.parameters["backbone"][f"features_{index}"]
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
        x = np.einsum("ijcuv,uvcd->ijd", windows, np.asarray(weights["kernel"], np.float64)) + weights["bias"]
        x = np.maximum(x, 0)
        found.append(x)
    return found


def in_numpy(x: np.ndarray, y: np.ndarray, metric: Dists) -> float:
    """1 minus the weighted similarities, as they were published."""
    alpha, beta = (np.asarray(metric.parameters[name], np.float64) for name in ("alpha", "beta"))
    similarity, start = 0.0, 0
    for f, g in zip(taps_in_numpy(x, metric), taps_in_numpy(y, metric), strict=True):
        f, g = (each.reshape(-1, each.shape[-1]) for each in (f, g))
        here = slice(start, start := start + f.shape[-1])
        covariance = (f * g).mean(axis=0) - f.mean(axis=0) * g.mean(axis=0)
        first = (2 * f.mean(axis=0) * g.mean(axis=0) + 1e-6) / (f.mean(axis=0) ** 2 + g.mean(axis=0) ** 2 + 1e-6)
        second = (2 * covariance + 1e-6) / (f.var(axis=0) + g.var(axis=0) + 1e-6)
        similarity += alpha[here] @ first + beta[here] @ second
    return 1 - similarity / (alpha.sum() + beta.sum())


def test_it_is_the_published_formula(small: Dists) -> None:
    expected = [in_numpy(x, y, small) for x, y in zip(X, Y, strict=True)]
    np.testing.assert_allclose(rl.distance(X, Y, small), expected, rtol=1e-5)
    np.testing.assert_allclose(rl.layer_distances(X, Y, small).sum(axis=-1), expected, rtol=1e-5)
    matrix = rl.pairwise(X, Y[:2], small)
    np.testing.assert_allclose(matrix, [[in_numpy(x, y, small) for y in Y[:2]] for x in X], rtol=1e-5)


def test_products_lose_no_digits(small: Dists) -> None:
    """Equal images, some near and some far: the matrix and its gradient are those of the pairs one by one."""
    near = np.clip(X[:2] + RNG.normal(scale=1e-3, size=X[:2].shape), 0, 1).astype(np.float32)
    columns = jnp.asarray([X[0], *near, Y[0]])
    weights = RNG.uniform(-1, 1, (len(X), len(columns)))

    def one_by_one(columns: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: rl.distance(jnp.broadcast_to(x, columns.shape), columns, small))(jnp.asarray(X))

    found = jax.jit(lambda columns: rl.pairwise(X, columns, small))(columns)
    assert found[0, 0] == 0
    np.testing.assert_allclose(found, one_by_one(columns), rtol=2e-4)
    gradients = [
        jax.grad(lambda columns, of=of: jnp.sum(weights * of(columns)))(columns)
        for of in (lambda columns: rl.pairwise(X, columns, small), one_by_one)
    ]
    np.testing.assert_allclose(*gradients, atol=1e-4 * np.abs(gradients[1]).max())


def test_a_pair_is_the_same_alone_and_beside_larger_ones(small: Dists) -> None:
    sizes = np.array([(11, 14), (8, 9), (1, 2)])
    found = small.padded_distance(X, Y, sizes)
    for index, (height, width) in enumerate(sizes):
        alone = rl.distance(X[index, :height, :width], Y[index, :height, :width], small)
        np.testing.assert_allclose(found[index], alone, rtol=1e-5)


def test_a_mask_over_whole_columns_of_the_image_alone_is_a_smaller_image(small: Dists) -> None:
    """The first tap is the image, whose statistics under a mask are those of its part inside."""
    mask = np.zeros(X.shape[1:3], bool)
    mask[:, :6] = True
    masked = rl.layer_distances(X, Y, small, mask=mask)
    np.testing.assert_allclose(masked[:, 0], rl.layer_distances(X[:, :, :6], Y[:, :, :6], small)[:, 0], rtol=1e-5)
    everywhere = rl.layer_distances(X, Y, small, mask=np.ones_like(mask))
    np.testing.assert_allclose(everywhere, rl.layer_distances(X, Y, small), rtol=1e-5)


def test_no_map(small: Dists) -> None:
    with pytest.raises(MetricError, match="does not support distance_map: it has no map_between"):
        rl.distance_map(X, Y, small)


@pytest.mark.parametrize(
    "shape", [(7, 8), pytest.param((8, 5), marks=pytest.mark.slow), pytest.param((1, 1), marks=pytest.mark.slow)]
)
def test_l2_pooling_and_its_gradient(shape: tuple[int, int]) -> None:
    x = RNG.normal(size=(1, *shape, 2)).astype(np.float32)
    weights = RNG.normal(size=(1, -(-shape[0] // 2), -(-shape[1] // 2), 2)).astype(np.float32)
    pooling = Pooling("l2", 3, 2)
    pooled, pull = jax.vjp(lambda x: pool(x, pooling), jnp.asarray(x))
    window = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = [convolve(x[0, ..., c].astype(np.float64) ** 2, window, mode="constant")[::2, ::2] for c in range(2)]
    np.testing.assert_allclose(pooled[0], np.sqrt(np.stack(expected, axis=-1) + 1e-12), rtol=1e-5)
    plain = jax.grad(lambda x: jnp.sum(weights * pool(x, pooling, forward_mode=True)))(jnp.asarray(x))
    np.testing.assert_allclose(pull(jnp.asarray(weights))[0], plain, rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(jax.grad(lambda x: pool(x, pooling).sum())(jnp.zeros_like(x))) == 0)


def test_l2_pooling_has_one_window() -> None:
    with pytest.raises(MetricError, match="got l2-2-2-floor"):
        Pooling("l2", 2, 2)


@pytest.fixture(scope="module")
def real(shared: Path) -> dict[str, Any]:
    files = ("vgg16-features.pth", "dists/weights.pt")
    parts = (from_pytorch(read_checkpoint(shared / "weights" / file), layout(VGG_L2), file) for file in files)
    return {group: tensors for part in parts for group, tensors in part.items()}


@pytest.mark.shared
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-9)])
def test_reference_numbers(dtype: str, tolerance: float, real: dict[str, Any], shared: Path) -> None:
    with np.load(shared / "goldens" / "families.npz") as file:
        goldens = dict(file)
    with jax.enable_x64(dtype == "float64"):
        metric = Dists(jax.tree.map(jnp.asarray, real), "dists", VGG_L2, dtype=dtype)
        for index in range(int(goldens["n"])):
            x, y = goldens[f"x{index}"], goldens[f"y{index}"]
            expected = goldens[f"dists-vgg/{index}"]
            np.testing.assert_allclose(rl.distance(x, y, metric), expected, rtol=tolerance, atol=1e-11)
            if f"dists-vgg/grad_y{index}" in goldens:
                x, y = ((image / 255).astype(dtype) for image in (x, y))
                gradient = jax.grad(lambda y, x=x: rl.distance(x, y, metric))(jnp.asarray(y))
                assert_gradient(gradient, goldens[f"dists-vgg/grad_y{index}"])


@pytest.mark.shared
def test_published_numbers_from_the_command_line(
    real: dict[str, Any], shared: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.write(tmp_path / "vgg.safetensors", {"backbone": real["backbone"]}, Layout(VGG_L2))
    (tmp_path / "dists").symlink_to(shared / "weights" / "dists")
    folders = [shared / "images" / "tid2013" / name for name in ("reference", "distorted")]
    status, out, _ = command("distance", "--json", "--metric", "dists", "--weights-dir", tmp_path, "--dirs", *folders)
    assert status == 0
    found = [result["distance"] for result in json.loads(out)["results"]]
    np.testing.assert_allclose(found, list(TID2013.values()), rtol=4e-4)
