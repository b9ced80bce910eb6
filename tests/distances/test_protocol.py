"""Any object with the members of a metric is one; and what LPIPS can do beyond that."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import rlpips_jax as rl
from rlpips_jax import loading
from rlpips_jax.backbones import TINY
from rlpips_jax.distances.family import Family
from rlpips_jax.errors import EnsembleError, ImageError, MetricError
from rlpips_jax.images import to_unit
from rlpips_jax.weights.parameters import Layout
from rlpips_jax.weights.registry import Recipe


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=[])
@dataclass(frozen=True)
class Blurred:
    """A metric of a user: weighted squares of 4x4 averages; not symmetric, so that the order of arguments shows."""

    weight: Any = 1.0
    name = "blurred-l2"
    signature = "blurred-l2 1"
    minimum_size = 4

    def features(self, images: Any, *, value_range: Any = (0, 1)) -> Any:
        images = to_unit(images, value_range)
        h, w = (length // 4 * 4 for length in images.shape[-3:-1])
        return images[..., :h, :w, :].reshape(*images.shape[:-3], h // 4, 4, w // 4, 4, 3).mean(axis=(-4, -2))

    def between(self, features: Any, others: Any) -> Any:
        square = jnp.square(features - others) * (1 + features)
        return self.weight * square.mean(axis=(-3, -2, -1))


RNG = np.random.default_rng(0)
X, Y = (RNG.uniform(size=(3, 40, 36, 3)).astype(np.float32) for _ in range(2))
MINE = Blurred()


@pytest.fixture(scope="module")
def tiny() -> rl.Lpips:
    return rl.load("lpips-tiny")


def direct(x: np.ndarray, y: np.ndarray) -> float:
    f, g = (each.reshape(10, 4, 9, 4, 3).mean(axis=(1, 3)) for each in (x, y))
    return float((np.square(f - g) * (1 + f)).mean())


def test_a_metric_of_a_user_has_distances() -> None:
    assert isinstance(MINE, rl.Metric)
    found = jax.jit(rl.distance)(X, Y, MINE)
    np.testing.assert_allclose(found, [direct(x, y) for x, y in zip(X, Y, strict=True)], rtol=1e-5)
    assert np.all(rl.distance(X, X, MINE) == 0)
    bytes_, centred = (X * 255).astype(np.uint8), 2 * X - 1
    np.testing.assert_allclose(rl.distance(centred, 2 * Y - 1, MINE, value_range=(-1, 1)), found, rtol=1e-4)
    assert rl.distance(bytes_, bytes_, MINE).shape == (3,)
    gradient = jax.grad(lambda y: rl.distance(X, y, MINE).sum())(jnp.asarray(X))
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_metric_of_a_user_has_a_matrix(swapped: bool) -> None:
    xs, ys = (X, Y[:2]) if swapped else (X[:2], Y)
    expected = [[direct(x, y) for y in ys] for x in xs]
    np.testing.assert_allclose(rl.pairwise(xs, ys, MINE), expected, rtol=1e-5)
    np.testing.assert_allclose(rl.pairwise(xs, ys, MINE, max_memory=8000), expected, rtol=1e-5)
    assert np.all(rl.pairwise(X, X, MINE).diagonal() == 0)


@pytest.mark.slow
def test_a_metric_of_a_user_has_an_ensemble() -> None:
    ensemble = rl.Ensemble(MINE)
    key = jax.random.key(0)
    for x, y in ((X, Y), (X[:, :36], Y[:, :36])):  # one that is not square, one that is
        found = rl.distance(x, y, ensemble, key=key, samples=64)
        assert found.shape == (3,)
        # Colours are scaled by 0.2 to 1, whose square is 0.41 in the mean.
        assert np.all((found > 0.2 * rl.distance(x, y, MINE)) & (found < rl.distance(x, y, MINE)))
        assert np.all(rl.distance(x, x, ensemble, key=key, samples=8) == 0)
    assert "keep=1" in ensemble.signature
    estimate = rl.estimate(X[:1], Y[:1], ensemble, key=key, relative_error=0.2)
    assert abs(estimate.mean[0] - found[0]) < 0.3 * found[0]
    assert rl.compare(X[0], np.stack([Y[0], 0.9 * X[0] + 0.1 * Y[0]]), ensemble, key=key).closest == 1


def test_what_a_metric_cannot_do_is_said(wrong_types: None) -> None:
    with pytest.raises(MetricError, match="blurred-l2 does not support layer_distances: it has no layers_between"):
        rl.layer_distances(X, Y, MINE)
    with pytest.raises(MetricError, match="it has no map_between"):
        rl.distance_map(X, Y, MINE)
    with pytest.raises(MetricError, match="it has no masked_between"):
        rl.distance(X, Y, MINE, mask=np.ones((40, 36), bool))
    with pytest.raises(EnsembleError, match="blurred-l2 is not random"):
        rl.distance(X, Y, MINE, key=jax.random.key(0))
    with pytest.raises(MetricError, match="members name, signature, minimum_size, features and between; got PosixPath"):
        rl.distance(X, Y, Path())  # pyright: ignore[reportArgumentType]


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch, tiny: rl.Lpips) -> None:
    recipe = Recipe("blurred-l2", Layout(tiny.backbone), ())
    monkeypatch.setitem(loading.FAMILIES, "blurred", Family({"blurred-l2": recipe}, lambda *_: Blurred(), Blurred))


@pytest.mark.usefixtures("family")
def test_a_family_is_one_entry_of_a_table(command: Any, tmp_path: Path) -> None:
    assert rl.load("blurred-l2").name == "blurred-l2"
    assert rl.load("ensemble:blurred-l2").name == "ensemble:blurred-l2"
    for name, picture in (("a", X[0]), ("b", Y[0])):
        rl.save_image(tmp_path / f"{name}.png", picture)
    status, out, _ = command("distance", tmp_path / "a.png", tmp_path / "b.png", "--metric", "blurred-l2")
    assert status == 0
    assert float(out.split()[-1]) == pytest.approx(direct(X[0], Y[0]), rel=0.02)
    status, out, _ = command("weights", "list")
    assert "blurred-l2" in out


def test_a_mask_leaves_out_what_lies_outside(tiny: rl.Lpips) -> None:
    mask = np.zeros((3, 40, 36), bool)
    mask[:, :, :18] = True
    everything, nothing = np.ones((40, 36), bool), np.zeros((40, 36), bool)
    plain = rl.distance(X, Y, tiny)
    np.testing.assert_allclose(rl.distance(X, Y, tiny, mask=everything), plain, rtol=1e-6)
    assert np.all(rl.distance(X, Y, tiny, mask=nothing) == 0)
    found = rl.distance(X, Y, tiny, mask=mask)
    # What lies outside has no influence at all.
    other = np.where(mask[..., None], Y, RNG.uniform(size=Y.shape).astype(np.float32))
    np.testing.assert_array_equal(rl.distance(X, other, tiny, mask=mask), found)
    layers = rl.layer_distances(X, Y, tiny, mask=mask)
    np.testing.assert_allclose(layers.sum(axis=-1), found, rtol=1e-6)
    where = rl.distance_map(X, Y, tiny, mask=mask)
    assert np.all(np.asarray(where)[~mask] == 0)
    assert np.asarray(where)[mask].max() > 0
    gradient = jax.grad(lambda y: rl.distance(X, y, tiny, mask=mask).sum())(jnp.asarray(Y))
    assert np.all(np.asarray(gradient)[~mask] == 0)
    assert np.all(np.isfinite(gradient))


def test_the_mean_of_a_layer_is_weighted_by_the_area_of_the_mask(tiny: rl.Lpips) -> None:
    """By the sum over positions, in NumPy."""
    mask = RNG.uniform(size=(40, 36)) < 0.5
    y = np.where(mask[..., None], Y[0], X[0])
    f, g = tiny.features(X[0]), tiny.features(y)
    fine = np.kron(mask, np.ones((9 * 4, 9 * 4)))  # every tap's positions are whole numbers of these
    checked = 0
    for layer, (one, other) in enumerate(zip(f, g, strict=True)):
        rows, columns = one.shape[:2]
        high, wide = fine.shape[0] // rows, fine.shape[1] // columns
        if rows * high != fine.shape[0] or columns * wide != fine.shape[1]:
            continue
        checked += 1
        area = fine.reshape(rows, high, columns, wide).mean(axis=(1, 3))
        differences = np.sum(np.square(one - other) * tiny.parameters["heads"][layer], axis=-1)
        expected = np.sum(differences * area) / np.sum(area)
        np.testing.assert_allclose(rl.layer_distances(X[0], Y[0], tiny, mask=mask)[layer], expected, rtol=1e-5)
    assert checked > 1


def test_masks_that_do_not_fit_are_refused(tiny: rl.Lpips, wrong_types: None) -> None:
    for mask, message in (
        (np.ones((40, 36)), r"booleans.*float64: use \.astype"),
        (np.ones((36, 40), bool), r"\(36, 40\); for these images it must be \(3, 40, 36\) or \(40, 36\)"),
        (np.ma.masked_array(np.ones((40, 36), bool)), "a masked array"),
    ):
        with pytest.raises(ImageError, match=message):
            rl.distance(X, Y, tiny, mask=mask)


def test_a_name_compiles_nothing_again(tiny: rl.Lpips) -> None:
    calls = 0

    @jax.jit
    def total(metric: rl.Lpips) -> jax.Array:
        nonlocal calls
        calls += 1
        return metric.parameters["heads"][0].sum()

    total(tiny)
    total(replace(tiny, name="another"))
    assert calls == 1
    assert jax.tree.map(lambda leaf: leaf, replace(tiny, name="another")).name == "another"
    total(replace(tiny, precision="high"))
    assert calls == 2


def test_frozen_parameters_have_no_gradient(tiny: rl.Lpips) -> None:
    def slope(metric: rl.Lpips) -> float:
        gradient = jax.grad(lambda metric: rl.distance(X[0], Y[0], metric))(metric)
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))

    assert slope(tiny) > 0
    assert slope(rl.load("lpips-tiny", frozen=True)) == 0


def test_a_metric_is_stored_as_a_state_by_flax(tiny: rl.Lpips) -> None:
    for metric in (tiny, rl.Ensemble(tiny)):
        stored = flax.serialization.to_bytes({"metric": metric, "step": 3})
        empty = {"metric": jax.tree.map(jnp.zeros_like, metric), "step": 0}
        restored = flax.serialization.from_bytes(empty, stored)
        assert restored["step"] == 3
        assert restored["metric"].signature == metric.signature


def test_a_metric_crosses_an_exported_program(tiny: rl.Lpips) -> None:
    program = export.export(jax.jit(rl.distance))(X, Y, tiny)
    again = export.deserialize(program.serialize())
    np.testing.assert_allclose(again.call(X, Y, tiny), rl.distance(X, Y, tiny), rtol=1e-6)


def test_a_saved_metric_is_read_back(tiny: rl.Lpips, tmp_path: Path) -> None:
    heads = tuple(2 * head for head in tiny.parameters["heads"])
    doubled = replace(tiny, parameters=tiny.parameters | {"heads": heads}, name="doubled")
    rl.save(doubled, tmp_path / "doubled.safetensors", licence="CC0-1.0")
    assert rl.load(tmp_path / "doubled.safetensors").signature == doubled.signature
    rl.save(rl.Ensemble(tiny), str(tmp_path / "random.safetensors"))
    assert isinstance(rl.load(tmp_path / "random.safetensors"), rl.Ensemble)
    with pytest.raises(MetricError, match=r"suffix \.safetensors"):
        rl.save(tiny, tmp_path / "tiny.pth")
    other = replace(tiny, backbone=replace(TINY, tapped=TINY.tapped[:2]))
    with pytest.raises(MetricError, match="no named metric has"):
        rl.save(other, tmp_path / "other.safetensors")
