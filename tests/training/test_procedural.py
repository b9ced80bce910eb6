"""Procedural images: seeded, contrasted, and with the power spectrum of photographs."""

import numpy as np
import pytest

from training import procedural

MAKERS = list(procedural.KINDS)


def spectral_slope(images: list[np.ndarray]) -> float:
    """Exponent of frequency in the mean power spectrum of luminance, between 3 and 28 cycles of 64 pixels."""
    size = 64
    grey = np.stack(images).mean(axis=-1)
    window = np.outer(np.hanning(size), np.hanning(size))
    spectra = np.fft.fft2((grey - grey.mean(axis=(1, 2), keepdims=True)) * window)
    power = np.square(np.abs(spectra)).mean(axis=0)
    frequency = np.fft.fftfreq(size, 1 / size)
    radius = np.rint(np.hypot(frequency[:, None], frequency)).astype(int)
    rings = np.arange(3, 29)
    return float(np.polyfit(np.log(rings), np.log([power[radius == ring].mean() for ring in rings]), 1)[0])


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("size", [16, 64, 65])
def test_every_kind_is_uint8_of_its_size_and_seeded(maker, size):
    first, again, other = (maker(np.random.default_rng(seed), size) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == ((size, size, 3), np.uint8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_dead_leaves_have_nearly_the_power_spectrum_of_photographs():
    rng = np.random.default_rng(0)
    # Scale invariance would be -2; patches of BSDS photographs measure -2.4, steeper, as the leaves are.
    assert -2.9 < spectral_slope([procedural.dead_leaves(rng) for _ in range(80)]) < -1.8


@pytest.mark.shared
def test_dead_leaves_are_near_the_slope_and_contrast_of_real_patches(shared):
    from rlpips_jax.evaluation.patches import deviation, patches

    real = list(patches(shared / "images" / "bsds" / "val", 200, rng=np.random.default_rng(0)))
    leaves = [procedural.dead_leaves(np.random.default_rng(seed)) for seed in range(150)]
    assert abs(spectral_slope(leaves) - spectral_slope(real)) < 0.5
    contrast = np.mean([deviation(image) for image in real])
    assert np.mean([deviation(image) for image in leaves]) == pytest.approx(contrast, rel=0.25)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_noise_has_the_stated_exponent(exponent):
    rng = np.random.default_rng(0)
    images = [procedural.pink_noise(rng, exponent=exponent) for _ in range(60)]
    unclipped = [image for image in images if np.isin(image, (0, 255)).mean() < 0.002]
    assert len(unclipped) >= 8
    assert spectral_slope(unclipped) == pytest.approx(-exponent, abs=0.3)


def test_radii_fall_as_the_inverse_cube():
    radii = procedural._radii(np.random.default_rng(0), 200_000, 1.0, 8.0)
    assert radii.min() >= 1
    assert radii.max() <= 8
    edges = np.array([1.0, 2, 4, 8])
    expected = (edges[:-1] ** -2 - edges[1:] ** -2) / (1 - 8.0**-2)  # the integral of 2 r^-3
    assert np.histogram(radii, edges)[0] / len(radii) == pytest.approx(expected, abs=0.005)


def test_later_leaves_hide_earlier_ones():
    index = procedural._leaf_map(np.random.default_rng(0), 64, np.full(200, 12.0))
    seen = np.unique(index)
    assert seen.max() > 180
    assert 5 < len(seen) < 120  # most of the first are covered


@pytest.mark.slow
def test_images_have_contrast_and_do_not_depend_on_the_number_of_workers(monkeypatch):
    monkeypatch.setattr(procedural, "CHUNK", 8)
    alone = procedural.images(20, size=32, seed=3, workers=1)
    assert (alone.shape, alone.dtype) == ((20, 32, 32, 3), np.uint8)
    assert np.array_equal(alone, procedural.images(20, size=32, seed=3, workers=2))
    assert not np.array_equal(alone, procedural.images(20, size=32, seed=4, workers=1))
    assert all(image.astype(float).std() / 255 > 0.06 for image in alone)
    assert len(np.unique(alone.reshape(20, -1), axis=0)) == 20


def test_shares_of_the_kinds_sum_to_one():
    assert sum(procedural.KINDS.values()) == pytest.approx(1, abs=1e-12)


def test_no_images_and_impossible_sizes():
    assert procedural.images(0).shape == (0, 64, 64, 3)
    with pytest.raises(ValueError, match="at least 8"):
        procedural.images(1, size=4)
