"""The gallery of attacks, small."""

from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import attack_gallery
from benchmarks.attack_gallery import Gallery, as_far, measured, middles, noise_of, pixel_l2, rounded, triplets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photographs of different sizes."""
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(40, 60, 3), (60, 40, 3), (48, 48, 3)]):
        drawn = rng.uniform(-0.5, 0.5, shape).cumsum(axis=0).cumsum(axis=1)
        rl.save_image(tmp_path / f"{number}.png", ((drawn - drawn.min()) / np.ptp(drawn)).astype(np.float32))
    return tmp_path


@pytest.mark.slow
def test_three_pictures_are_saved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out" / "of"
    attack_gallery.main(Gallery(folder, out, metric="lpips-tiny", size=32, count=3, shown=2, steps=2))
    assert sorted(path.name for path in out.iterdir()) == ["distances.png", "flows.png", "impostors.png"]
    for path in out.iterdir():
        picture = rl.load_image(path)
        assert min(picture.shape[:2]) > 200
        assert np.ptp(picture) > 200
    printed = capsys.readouterr().out
    assert "of 2 orders reversed by 0.3 px" in printed
    assert printed.count("times as far") == 2


def test_photographs_are_cut_to_squares(folder: Path) -> None:
    assert middles(folder, 2, 24).shape == (2, 24, 24, 3)
    whole = middles(folder, 3, 48)[2]
    np.testing.assert_array_equal(whole, rl.load_image(folder / "2.png"))


def test_what_is_shown_beside_an_attack_is_as_large_or_as_far(folder: Path) -> None:
    photographs = middles(folder, 3, 32)
    rng = np.random.default_rng(0)
    assert np.all(np.abs(noise_of("linf", 0.1, photographs.shape, rng)) == 0.1)
    np.testing.assert_allclose(np.square(noise_of("l2", 2.0, photographs.shape, rng)).sum(axis=(1, 2, 3)), 4)

    metric = rl.load("lpips-tiny")
    far = as_far(metric, photographs, lambda amount: rounded(photographs / 255 * (1 - amount)), 0.02)
    distance = measured(metric, far, photographs)
    assert np.all(distance <= 0.02)
    assert np.all(distance > 0.01)


def test_closer_images_are_closer(folder: Path) -> None:
    photographs = middles(folder, 3, 32)
    closer, farther, kinds = triplets(photographs, 0)
    assert len(kinds) == 3
    assert np.all(pixel_l2(closer, photographs) < pixel_l2(farther, photographs))
