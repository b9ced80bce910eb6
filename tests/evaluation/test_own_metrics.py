"""A user's own metric, a pytree with the members of the protocol, works wherever one of the library does."""

import functools
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax import geometry
from rlpips_jax.attacks import pgd
from rlpips_jax.evaluation import Smoothing, certify_triplets, crossed, evaluate, shift_robustness
from rlpips_jax.evaluation.triplets import IndexedTriplets, Triplets, triplet_distances

Command = Callable[..., tuple[int, str, str]]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=[])
@dataclass(frozen=True)
class Pixels:
    """The weighted mean of squared differences of pixels."""

    weights: Any = field(default_factory=lambda: jnp.array([0.5, 1.0, 1.5]))
    name, signature, minimum_size = "pixels", "pixels 0.5 1 1.5", 2

    def features(self, images: Any, *, value_range: tuple[float, float] = (0, 1)) -> Any:
        black, white = (0, 255) if images.dtype == jnp.uint8 else value_range
        return {"unit": (jnp.asarray(images, jnp.float32) - black) / (white - black)}

    def between(self, features: Any, others: Any) -> Any:
        return jnp.mean(self.weights * jnp.square(features["unit"] - others["unit"]), axis=(-3, -2, -1))


@pytest.fixture(scope="module")
def triplets() -> Triplets:
    """Images, and the same with a little noise and with three times as much."""
    rng = np.random.default_rng(0)
    reference = rng.integers(60, 200, (4, 8, 8, 3), np.uint8)
    noise = rng.normal(0, 8, reference.shape)
    near, far = (np.clip(reference + times * noise, 0, 255).astype(np.uint8) for times in (1, 3))
    judgment = np.array([0, 1, 0, 1], np.float32)
    swapped = (judgment == 1)[:, None, None, None]
    p0, p1 = np.where(swapped, far, near), np.where(swapped, near, far)
    return Triplets(reference, p0, p1, judgment, ("noise",) * 4, name="noisy")


def by_hand(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.array([0.5, 1.0, 1.5]) * ((x.astype(float) - y.astype(float)) / 255) ** 2).mean(axis=(-3, -2, -1))


def test_it_is_evaluated_attacked_and_shifted(triplets: Triplets) -> None:
    attack = functools.partial(pgd, steps=2)
    natural, attacked = evaluate(Pixels(), triplets, attack, [40 / 255], batch=3)
    np.testing.assert_allclose(natural.distances.d0, by_hand(triplets.reference, triplets.p0), rtol=1e-5)
    assert natural.scores.two_afc.mean == 1
    assert attacked.scores.two_afc.mean == 0
    _, shifted = shift_robustness(Pixels(), triplets, (1,), batch=3)
    moved = by_hand(triplets.reference[:, :-1, :-1], triplets.p0[:, 1:, 1:])
    np.testing.assert_allclose(shifted.distances.d0, moved, rtol=1e-5)


@pytest.mark.parametrize("side", ["farther", "both", "reference"])
def test_it_is_attacked_from_every_side(triplets: Triplets, side: str) -> None:
    _, attacked = evaluate(Pixels(), triplets, functools.partial(pgd, steps=20), [60 / 255], attacked=side, batch=4)
    assert attacked.scores.two_afc.mean < 1


def test_triplets_that_share_images_have_the_same_distances(triplets: Triplets) -> None:
    images = np.concatenate([triplets.reference, triplets.p0, triplets.p1])
    indices = np.arange(12).reshape(3, 4).T
    shared = IndexedTriplets(images, indices, np.ones((4, 2), int), triplets.kinds)
    for one, other in zip(triplet_distances(Pixels(), shared), triplet_distances(Pixels(), triplets), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_it_is_certified_and_teaches(triplets: Triplets, tmp_path: Path) -> None:
    smoothing = Smoothing(sigma=0.05, samples=30, selection_samples=5, alpha=0.01)
    found = certify_triplets(Pixels(), triplets, smoothing, key=jax.random.key(0))
    assert not found.reversed.any()
    rl.save_image(tmp_path / "0.png", np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8))
    made = crossed(tmp_path, 3, teacher=Pixels(), size=16)
    assert made.source["teacher"] == Pixels.signature


def test_it_has_averages_and_paths(triplets: Triplets, tmp_path: Path) -> None:
    images = triplets.reference[:2]
    descent = geometry.Descent(steps=300, coarsest=8, exponent=1, begin=0, pace=5, snapshot=tmp_path / "state.npz")
    result = geometry.average(images, Pixels(), start=images[0], descent=descent)
    np.testing.assert_allclose(result.image, images.mean(axis=0) / 255, atol=0.02)
    with pytest.raises(rl.SnapshotError, match="distance is"):
        geometry.average(images, Heavier(), start=images[0], descent=descent)
    path = geometry.geodesic(images[0], images[1], 3, Pixels(), descent=replace(descent, snapshot=None, steps=20))
    np.testing.assert_allclose(path.distances, by_hand(images[0], images[1]) / 4, rtol=0.05)


class Heavier(Pixels):
    signature = "pixels 1 1 1"


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Options by which commands find the metric."""
    module = types.ModuleType("own_pixels")
    module.Pixels = Pixels  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_pixels", module)
    return ("--metric", "own_pixels:Pixels")


def test_commands_evaluate_and_certify_it(
    command: Command, triplets: Triplets, named: tuple[str, ...], tmp_path: Path
) -> None:
    rl.evaluation.write_npz(tmp_path / "set.npz", {"all": triplets})
    data = ("--data", tmp_path / "set.npz", *named)
    attack = ("--attack", "pgd", "--steps", 2, "--epsilon", "40/255")
    status, out, _ = command("evaluate", *data, *attack, "--batch", 4, "--out", tmp_path / "report")
    assert status == 0
    # Wilson's interval of four of four, and of none.
    assert "1.000 [0.510, 1.000]" in out
    assert "0.000 [0.000, 0.490]" in out
    smoothing = ("--sigma", 0.05, "--samples", 30, "--alpha", 0.01, "--selection-samples", 5, "--radius", 0)
    status, out, _ = command("certify", *data, *smoothing, "--out", tmp_path / "certificates")
    assert status == 0
    assert out.splitlines()[-1].split()[2:4] == ["pixels", "0.05"]


@pytest.mark.parametrize("name", ["average", "geodesic"])
def test_commands_descend_by_it(
    command: Command, triplets: Triplets, named: tuple[str, ...], tmp_path: Path, name: str
) -> None:
    pictures = [tmp_path / "0.png", tmp_path / "1.png"]
    for path, picture in zip(pictures, triplets.reference, strict=False):
        rl.save_image(path, picture)
    more = ("--frames", 3) if name == "geodesic" else ()
    status, out, _ = command(name, *pictures, *named, *more, "--steps", 5, "--out", tmp_path / "out")
    assert status == 0
    assert out.startswith("# pixels 0.5 1 1.5")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["metric"] == "pixels"
