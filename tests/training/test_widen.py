"""A wider network starts where a trained one stands."""

from pathlib import Path

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import ALEX, TINY_WIDE
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import TrainingError
from training.widen import Widen, widen, widened

SIDE = 63
"""Of images on which mirrored kernels meet the same places: (63 + 2 * 2 - 11) / 4 is whole."""


@pytest.fixture(scope="module")
def first() -> Lpips:
    return rl.load("rlpips-tiny@1")


def layers(metric: Lpips, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(metric.layers_between(metric.features(x), metric.features(y)))


def test_the_first_part_is_that_of_three_orientations_and_the_others_stay(first) -> None:
    x, y = np.random.default_rng(0).uniform(0, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    y = 0.9 * x + 0.1 * y
    wide, narrow = (layers(metric, x, y) for metric in (widened(first), first))
    np.testing.assert_allclose(wide[1:], narrow[1:], rtol=1e-4)
    mirrored = x[:, ::-1], y[:, ::-1]
    turned = tuple(image.swapaxes(0, 1) for image in mirrored)
    each = [layers(first, *pair)[0] for pair in ((x, y), mirrored, turned)]
    # Not exactly: lengths are now those of three times as many channels.
    assert wide[0] == pytest.approx(np.mean(each), rel=0.05)


def test_the_file_is_loaded_as_the_metric_with_the_wide_network(first, tmp_path: Path) -> None:
    rl.save(first, tmp_path / "narrow.safetensors")
    assert rl.load(tmp_path / "narrow.safetensors").backbone == first.backbone
    path = tmp_path / "out" / "rlpips-tiny.safetensors"
    widen(Widen(metric=str(tmp_path / "narrow.safetensors"), out=path))
    found = rl.load(path)
    assert found.backbone == TINY_WIDE
    jax.tree.map(np.testing.assert_array_equal, found.parameters, widened(first).parameters)


@pytest.mark.parametrize("name", ["alex", "elpips-tiny"])
def test_another_network_and_ensembles_are_refused(drawn, name: str) -> None:
    metric = drawn(ALEX) if name == "alex" else rl.load("elpips-tiny")
    with pytest.raises(TrainingError, match="is not one; start from lpips-tiny"):
        widened(metric)
