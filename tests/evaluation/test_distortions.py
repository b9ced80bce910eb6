"""Distortions: ordered strengths, the stated units, and one result for one seed."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

import rlpips_jax as rl
from rlpips_jax.errors import DistortionError, ImageError
from rlpips_jax.evaluation.distortions import DISTORTIONS, Distortion, apply, distort, draw, training_kinds

KINDS = tuple(DISTORTIONS)
STEPPED = ("jpeg", "down", "quantize")  # whole qualities, sizes and levels


def smooth_image(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Texture at several scales over the middle of the range, as uint8."""
    rng = np.random.default_rng(seed)
    layers = [gaussian_filter(rng.standard_normal((height, width, 3)), (s, s, 0)) for s in (1, 3, 9)]
    texture = sum(layer / layer.std() for layer in layers)
    return np.rint(np.clip(127 + 35 * texture, 0, 255)).astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) - b.astype(np.float64)) / 255


def test_the_table_is_the_stated_one():
    bounds = {name: (kind.weakest, kind.strongest) for name, kind in DISTORTIONS.items()}
    assert bounds == {
        "blur": (0.4, 4),
        "noise": (4 / 255, 50 / 255),
        "jpeg": (80, 5),
        "contrast": (0.08, 0.85),
        "brightness": (0.03, 0.4),
        "color": (0.03, 0.35),
        "down": (1.25, 6),
        "warp": (0.5, 6),
        "quantize": (48, 4),
        "salt_pepper": (0.005, 0.2),
    }
    assert set(KINDS) - set(training_kinds()) == {"salt_pepper"}


def test_strength_is_geometric():
    assert DISTORTIONS["jpeg"].amount(0.0) == 80
    assert DISTORTIONS["jpeg"].amount(1.0) == pytest.approx(5, rel=1e-12)
    assert DISTORTIONS["jpeg"].amount(0.5) == pytest.approx(20, rel=1e-12)  # sqrt(80 * 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_stronger_is_farther_for_one_draw(kind, seed):
    image = smooth_image(seed)
    field = draw(kind, image.shape, np.random.default_rng(seed))
    strengths = np.linspace(0, 1, 9)
    distances = [np.linalg.norm(difference(apply(image, kind, float(s), field), image)) for s in strengths]
    steps = np.diff(distances)
    assert distances[0] > 0
    assert (steps >= 0).all() if kind in STEPPED else (steps > 0).all(), distances


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 64), (40, 57), (1, 1), (3, 200)])
def test_any_size_gives_uint8_of_the_same_shape(kind, shape):
    image = smooth_image(0, *shape)
    before = image.copy()
    result = distort(image, kind, 1.0, np.random.default_rng(1))
    assert (result.dtype, result.shape) == (np.uint8, image.shape)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", KINDS)
def test_floats_and_bytes_agree_and_seeds_decide(kind):
    image = smooth_image(0)
    first = distort(image, kind, 0.6, np.random.default_rng(7))
    assert np.array_equal(first, distort(image, kind, 0.6, np.random.default_rng(7)))
    assert np.array_equal(first, distort(image / 255.0, kind, 0.6, np.random.default_rng(7)))
    other = distort(image, kind, 0.6, np.random.default_rng(8))
    random = kind in ("noise", "color", "warp", "salt_pepper")
    assert np.array_equal(first, other) != random or kind == "brightness"


def test_brightness_takes_both_signs():
    rng = np.random.default_rng(0)
    assert {float(draw("brightness", (4, 4, 3), rng)[0]) for _ in range(32)} == {-1.0, 1.0}


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_blur_is_a_gaussian_with_mirrored_edges(strength):
    image = smooth_image(3, 24, 31)
    sigma = 0.4 * 10**strength
    # A dense matrix per axis: the truncated Gaussian folded at the edges as ... c b a | a b c ...
    wide = int(4 * sigma + 0.5)
    offsets = np.arange(-wide, wide + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()

    def matrix(n: int) -> np.ndarray:
        m = np.zeros((n, n))
        for i in range(n):
            for offset, weight in zip(offsets, kernel, strict=True):
                j = (i + offset) % (2 * n)
                m[i, j if j < n else 2 * n - 1 - j] += weight
        return m

    exact = np.einsum("yi,xj,ijc->yxc", matrix(24), matrix(31), image.astype(np.float64))
    result = apply(image, "blur", strength, draw("blur", image.shape, np.random.default_rng(0)))
    assert np.abs(result - exact).max() < 0.5 + 1e-3  # half a step of rounding, and float32


@pytest.mark.parametrize(("strength", "expected"), [(0.0, 4 / 255), (1.0, 50 / 255)])
def test_noise_has_the_stated_deviation(strength, expected):
    grey = np.full((256, 256, 3), 0.5)
    change = distort(grey, "noise", strength, np.random.default_rng(0)) / 255 - 0.5
    # Rounding adds 1/12 of a squared step; clipping at 2.55 sigma takes 1.1 % away at most.
    assert change.std() == pytest.approx(np.hypot(expected, 1 / 255 / 12**0.5), rel=0.012)
    assert abs(change.mean()) < 5 * expected / 256 / 3**0.5 + 0.5 / 255


def test_jpeg_has_the_quantisation_tables_of_its_quality():
    image = smooth_image(0)
    for strength, quality in [(0.0, 80), (0.5, 20), (1.0, 5)]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        result = distort(image, "jpeg", strength, np.random.default_rng(0))
        assert np.array_equal(result, np.asarray(Image.open(file)))


def test_contrast_shrinks_about_the_mean():
    image = smooth_image(0) / 255.0
    result = distort(image, "contrast", 1.0, np.random.default_rng(0)) / 255
    assert result.mean() == pytest.approx(image.mean(), abs=1e-3)
    assert result.std() / image.std() == pytest.approx(0.15, rel=0.01)


def test_brightness_adds_one_value_everywhere():
    grey = smooth_image(0) / 255.0 * 0.1 + 0.45  # nothing clips
    change = distort(grey, "brightness", 1.0, np.random.default_rng(0)) / 255 - grey
    assert np.abs(np.abs(change) - 0.4).max() <= 0.5 / 255 + 1e-6
    assert len(np.unique(np.sign(change))) == 1


def test_color_moves_along_a_zero_sum_direction():
    directions = np.array([draw("color", (8, 8, 3), np.random.default_rng(seed)) for seed in range(50)])
    assert np.abs(directions.sum(axis=1)).max() < 1e-6
    assert np.abs(np.abs(directions).max(axis=1) - 1).max() == 0
    assert (np.abs(directions).argmax(axis=1)[:, None] == [0, 1, 2]).any(axis=0).all()
    grey = np.full((8, 8, 3), 0.5)
    change = apply(grey, "color", 1.0, directions[0]) / 255 - 0.5
    assert np.abs(change - 0.35 * directions[0]).max() <= 0.5 / 255 + 1e-6


def test_down_removes_what_a_smaller_image_cannot_hold():
    checks = np.indices((64, 64)).sum(axis=0)[..., None].repeat(3, axis=2) % 2 * 0.5 + 0.25
    result = distort(checks, "down", 1.0, np.random.default_rng(0)) / 255
    assert result[8:-8, 8:-8].std() < 0.02  # antialiased: grey, not a moire pattern
    ramp = np.linspace(0.2, 0.8, 60)[None, :, None] * np.ones((60, 60, 3))
    kept = distort(ramp, "down", 1.0, np.random.default_rng(0)) / 255
    assert np.abs(kept - ramp)[:, 10:-10].max() < 0.01


@pytest.mark.parametrize("shape", [(64, 64, 3), (30, 90, 3)])
def test_the_longest_displacement_of_a_warp_is_nominal(shape):
    flow = draw("warp", shape, np.random.default_rng(0))
    assert np.hypot(flow[..., 0], flow[..., 1]).max() == pytest.approx(1, abs=1e-6)
    assert DISTORTIONS["warp"].amount(1.0) == pytest.approx(6, rel=1e-12)


def test_warp_moves_a_ramp_by_its_flow():
    # On a linear ramp bilinear sampling is exact: the change is the displacement, up to the edges' clamping.
    ramp = np.linspace(0, 1, 101)[None, :, None] * np.ones((80, 101, 3))
    flow = draw("warp", ramp.shape, np.random.default_rng(0))
    moved = (apply(ramp, "warp", 1.0, flow) / 255 - ramp) * 100
    rounding = 50 / 255  # half a step of the result, in pixels
    assert np.abs(moved - 6 * flow[..., 1:])[:, 6:-6].max() <= rounding + 1e-3
    assert np.abs(6 * flow[..., 1]).max() > 1


def test_warp_flow_is_smooth_at_the_stated_scale():
    flow = draw("warp", (400, 400, 3), np.random.default_rng(0)).astype(np.float64)
    # Smoothed white noise has the correlation exp(-d^2 / (4 sigma^2)).
    lag = 6
    correlation = (flow[lag:] * flow[:-lag]).mean() / np.square(flow).mean()
    assert correlation == pytest.approx(np.exp(-(lag**2) / (4 * 6.0**2)), abs=0.03)


@pytest.mark.parametrize(("strength", "levels"), [(0.0, 48), (0.5, 14), (1.0, 4)])  # sqrt(48 * 4) = 13.86
def test_quantize_leaves_the_nominal_number_of_levels(strength, levels):
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    result = distort(ramp, "quantize", strength, np.random.default_rng(0))
    assert len(np.unique(result)) == levels
    assert np.abs(difference(result, ramp)).max() <= 0.5 / (levels - 1) + 0.5 / 255


@pytest.mark.parametrize(("strength", "share"), [(0.0, 0.005), (1.0, 0.2)])
def test_salt_and_pepper_hit_the_stated_share(strength, share):
    grey = np.full((400, 400, 3), 128, np.uint8)
    result = distort(grey, "salt_pepper", strength, np.random.default_rng(0))
    hit = (result != 128).any(axis=-1)
    sigma = (share * (1 - share) / hit.size) ** 0.5
    assert hit.mean() == pytest.approx(share, abs=5 * sigma)
    assert set(map(tuple, np.unique(result[hit], axis=0).tolist())) == {(0, 0, 0), (255, 255, 255)}
    assert (result[hit] == 255).mean() == pytest.approx(0.5, abs=5 * 0.5 / hit.sum() ** 0.5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kind": "blurr"}, DistortionError, "choose one of blur"),
        ({"strength": 1.5}, DistortionError, r"\[0, 1\]"),
        ({"strength": float("nan")}, DistortionError, r"\[0, 1\]"),
        ({"image": np.zeros((4, 4), np.uint8)}, ImageError, r"\(h, w, 3\)"),
        ({"image": np.zeros((2, 4, 4, 3), np.uint8)}, ImageError, r"\(h, w, 3\)"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, ImageError, r"\(h, w, 3\)"),
        ({"image": np.zeros((4, 4, 3), np.int32)}, ImageError, "uint8"),
        ({"image": np.full((4, 4, 3), 2.0)}, ImageError, r"\[0, 1\]"),
        ({"image": np.full((4, 4, 3), np.nan)}, ImageError, r"\[0, 1\]"),
    ],
)
def test_bad_input_says_what_would_be_right(change, error, words):
    arguments = {"image": np.zeros((4, 4, 3), np.uint8), "kind": "noise", "strength": 0.5} | change
    with pytest.raises(error, match=words):
        distort(**arguments, rng=np.random.default_rng(0))


def test_a_draw_for_another_shape_is_refused():
    field = draw("noise", (8, 8, 3), np.random.default_rng(0))
    with pytest.raises(DistortionError, match="9x8 image needs"):
        apply(np.zeros((9, 8, 3), np.uint8), "noise", 0.5, field)
    with pytest.raises(DistortionError, match="image needs"):
        apply(np.zeros((8, 8, 3), np.uint8), "brightness", 0.5, field)


@pytest.mark.shared
def test_strengths_match_the_fixed_test_set(shared):
    """The mean change of every kind over the ordinal triplets, made elsewhere, is met within its sampling
    error."""
    triplets = np.load(shared / "triplets" / "kodak.npz")
    references, kinds = triplets["ordinal/ref"], triplets["ordinal/kind"]
    changes = [np.abs(difference(triplets[f"ordinal/{name}"], references)) for name in ("p0", "p1")]
    theirs = np.log([change.mean(axis=(1, 2, 3)) for change in changes]).mean(axis=0)
    assert tuple(triplets["kinds"]) == KINDS
    rng = np.random.default_rng(0)
    for number, kind in enumerate(KINDS):
        chosen = np.flatnonzero(kinds == number)
        ours = []
        for index in chosen:
            image = references[index]
            field = draw(kind, image.shape, rng)
            weak = rng.uniform(0.05, 0.75)
            strong = weak + rng.uniform(0.12, 0.25)
            pair = [np.abs(difference(apply(image, kind, s, field), image)).mean() for s in (weak, strong)]
            ours.append(np.log(pair).mean())
        gap = np.array(ours) - theirs[chosen]
        assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5, (kind, gap.mean())


def test_a_distortion_is_one_entry(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tint(image: np.ndarray, amount: float, draw: np.ndarray) -> np.ndarray:
        return image * (1 - np.float32(amount) * draw)

    def sample(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        return rng.random((width, 3), np.float32)

    photographs = tmp_path / "photographs"
    rl.save_image(photographs / "0.png", smooth_image(0))
    entry = Distortion(tint, 0.1, 0.6, "largest share of light removed", sample, ("w", 3))
    monkeypatch.setitem(DISTORTIONS, "tint", entry)
    assert training_kinds()[-1] == "tint"
    image = np.full((4, 6, 3), 200, np.uint8)
    with pytest.raises(DistortionError, match=r"tint of a 4x6 image needs \(6, 3\)"):
        apply(image, "tint", 0.5, draw("tint", (6, 4, 3), np.random.default_rng(0)))
    for shape in ((40, 57), (1, 1)):
        test_any_size_gives_uint8_of_the_same_shape("tint", shape)
    test_stronger_is_farther_for_one_draw("tint", 0)
    status, out, _ = command("evaluate", "--help")
    assert status == 0
    assert "tint" in out
    arguments = ("--count", 2, "--size", 32, "--kinds", "tint", "--metric", "lpips-tiny", "--out", tmp_path / "out")
    status, out, _ = command("evaluate", "--data", photographs, *arguments)
    assert status == 0
    assert "photographs ordinal: tint" in (tmp_path / "out" / "table.txt").read_text()
    status, _, err = command("evaluate", "--data", photographs, *arguments, "--kinds", "tnt")
    assert status == 2
    assert "'tnt' is not a distortion; choose of blur" in err
    assert "tint" in err
