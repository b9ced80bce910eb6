"""The gallery of averages and paths, small."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import geometry_gallery
from benchmarks.geometry_gallery import COPIES, NOISE, Gallery, copies


@pytest.mark.parametrize("picture", ["shift", pytest.param("geodesic", marks=pytest.mark.slow)])
def test_a_picture_is_written(
    picture: Literal["shift", "geodesic"], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.png"
    config = Gallery(picture, out, ("lpips-tiny",), "lpips-tiny", size=32, frames=3, steps=3)
    geometry_gallery.main(config)
    assert min(rl.load_image(out).shape[:2]) > 100
    printed = capsys.readouterr().out
    assert ("mean of pixels" if picture == "shift" else "of the crossfade") in printed


def test_copies_are_shifted_or_noisy() -> None:
    picture = np.random.default_rng(0).uniform(0.3, 0.7, (24, 24, 3)).astype(np.float32)
    shifted = copies(picture, "shift", 0)
    assert shifted.shape == (COPIES, 24, 24, 3)
    for copy in shifted:
        # Somewhere within two pixels, all that the border does not touch is the picture.
        inner = [copy[2 + y : 22 + y, 2 + x : 22 + x] for y in range(-2, 3) for x in range(-2, 3)]
        assert any(np.array_equal(part, picture[2:22, 2:22]) for part in inner)
    noisy = copies(picture, "noise", 0)
    assert np.std(noisy - picture) == pytest.approx(NOISE, rel=0.02)
