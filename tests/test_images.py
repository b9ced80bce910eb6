"""Wrong images are refused with a message that says what would be right."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.errors import ImageError, ValueRangeWarning
from rlpips_jax.images import check_images, check_value_range, to_symmetric

GREY = np.full((40, 48, 3), 0.5, np.float32)
RAMP = np.broadcast_to(np.linspace(0, 1, 48, dtype=np.float32)[:, None], (40, 48, 3))
ONE_NAN = GREY.copy()
ONE_NAN[3, 5, 1] = np.nan


@pytest.mark.parametrize(
    ("image", "value_range", "message"),
    [
        (
            GREY * 2 - 1.5,
            (0, 1),
            r"from -0.5 to -0.5, outside value_range=\(0, 1\); value_range=\(-1, 1\) would fit",
        ),
        (GREY * 300, (0, 1), r"value_range=\(0, 255\) would fit"),
        (GREY * 300, (-1, 1), r"value_range=\(0, 255\) would fit"),
        (GREY * 1e4, (0, 1), r"no common range fits: clip the image \(numpy.clip\(x, 0, 1\)\), rescale it"),
        (GREY * 9, (0, 1), r"no common range fits: clip the image \(numpy.clip\(x, 0, 1\)\)"),
        (RAMP * 1.00002, (0, 1), r"overshoot the range.*clip them: pass numpy.clip\(x, 0, 1\)$"),
        (RAMP * 1.03, (0, 1), r"pass numpy.clip\(x, 0, 1\)$"),
        (RAMP * 1.01 - 0.02, (0, 1), r"pass numpy.clip\(x, 0, 1\)$"),
        (RAMP * 2.1 - 1.05, (-1, 1), r"pass numpy.clip\(x, -1, 1\)$"),
        (RAMP * 261 - 3, (0, 255), r"pass numpy.clip\(x, 0, 255\)$"),
        (RAMP * 2 - 1, (0, 255), r"value_range=\(-1, 1\) would fit"),
        (GREY * np.nan, (0, 1), "x contains NaN"),
        (ONE_NAN, (0, 1), "x contains NaN"),
        (GREY * np.inf, (0, 1), "x contains infinity"),
        (GREY.astype(np.int32), (0, 1), r"int32.*astype\('uint8'\)"),
        (GREY > 0, (0, 1), "dtype bool"),
        (GREY.astype(complex), (0, 1), "dtype complex"),
        (np.moveaxis(GREY, -1, 0), (0, 1), r"channels first: pass numpy.moveaxis\(x, -3, -1\)"),
        (GREY[..., :1], (0, 1), "1 channels where 3 are needed; grey"),
        (np.concatenate([GREY, GREY[..., :1]], -1), (0, 1), "drop the alpha channel"),
        (GREY[..., :2], (0, 1), "2 channels"),
        (GREY[0], (0, 1), r"shape \(48, 3\); an image is \(h, w, 3\)"),
        (GREY[:20], (0, 1), "20x48 pixels; the test needs at least 31x31"),
        (GREY.tolist(), (0, 1), "got list.*numpy.asarray"),
        ("photo.png", (0, 1), "got str; rlpips_jax.load_image"),
    ],
)
@pytest.mark.parametrize("where", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_a_wrong_image_is_refused(image, value_range, message, where) -> None:
    if isinstance(image, np.ndarray):
        image = where(image)
    with pytest.raises(ImageError, match=message):
        check_images(value_range, minimum_size=31, user="the test", x=image)


def test_images_of_different_sizes_are_refused() -> None:
    with pytest.raises(ImageError, match=r"differ in size: x \(40, 48, 3\) and y \(40, 47, 3\); resize or crop"):
        check_images(x=GREY, y=GREY[:, 1:])


def test_grey_images_are_answered_with_the_line_that_mends_them() -> None:
    for shape, line in (
        ((8, 9), r"numpy\.stack\(\[x\] \* 3, axis=-1\)"),
        ((5, 8, 9), r"numpy\.stack\(\[x\] \* 3, axis=-1\)"),
    ):
        with pytest.raises(ImageError, match=line):
            check_images(x=np.zeros(shape, np.uint8))


def test_different_leading_axes_are_refused_and_point_to_between() -> None:
    with pytest.raises(ImageError, match=r"leading axes differ.*Metric.between"):
        check_images(x=GREY, y=GREY[None])


@pytest.mark.parametrize("value_range", [None, 1, (0,), (1, 0), (0, 0), (0, float("nan")), "01x", (0, 1, 2)])
def test_a_wrong_range_is_refused(value_range) -> None:
    with pytest.raises(ImageError, match="value_range must be"):
        check_value_range(value_range)


def test_rounding_just_outside_the_range_is_no_error() -> None:
    check_images(x=GREY * np.float32(2 + 1e-6))
    check_images((-1, 1), x=GREY.astype(jnp.bfloat16) * 2)


def test_values_are_not_looked_at_under_jit() -> None:
    assert jax.jit(lambda x: check_images(x=x)[0])(GREY * 9).max() == 4.5


@pytest.mark.parametrize(
    ("image", "value_range"),
    [(RAMP, (-1, 1)), (RAMP, (0, 255)), (RAMP * 1.03, (0, 255)), (RAMP * 1.01 - 0.02, (-1, 1))],
)
def test_an_image_that_seems_to_be_in_another_range_warns_at_the_callers_line(image, value_range) -> None:
    with pytest.warns(ValueRangeWarning, match=r"pass value_range=\(0, 1\)") as caught:
        check_images(value_range, x=image, y=image)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("image", [np.zeros_like(GREY), np.ones_like(GREY), GREY * 2 - 1, GREY * 2])
def test_true_images_do_not_warn(image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_images((-1, 1), x=image)


@pytest.mark.parametrize("where", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_a_concrete_image_beside_a_traced_one_is_looked_at(where) -> None:
    """As when a jitted loss closes over its target."""
    right, wrong = where(GREY), where(GREY * 300)
    jax.jit(lambda y: check_images(x=right, y=y)[1])(GREY * 9)
    with pytest.raises(ImageError, match=r"value_range=\(0, 255\) would fit"):
        jax.jit(lambda y: check_images(x=wrong, y=y)[1])(GREY)


def test_every_way_to_write_an_image_means_the_same() -> None:
    image = np.random.RandomState(0).randint(0, 256, (2, 3, 3), np.uint8)
    symmetric = image / 127.5 - 1
    for array, value_range in (
        (image, (0, 1)),
        (image, (-1, 1)),
        (image.astype(np.float32), (0, 255)),
        ((image / 255).astype(np.float32), (0, 1)),
        (symmetric.astype(np.float32), (-1, 1)),
    ):
        np.testing.assert_allclose(to_symmetric(array, value_range), symmetric, atol=2e-7)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2", "<f4", ">u1"])
def test_arrays_of_the_other_byte_order_are_converted(dtype: str) -> None:
    image = (RAMP * 255).astype(dtype) if dtype == ">u1" else RAMP.astype(dtype)
    (array,) = check_images(x=image)
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, image)


@pytest.mark.parametrize("mask", [False, True])
def test_a_masked_array_is_refused_whatever_was_called_before(mask: bool) -> None:
    masked = np.ma.masked_array(RAMP[:, :40], np.broadcast_to(mask, (40, 40, 3)))
    metric = rl.load("lpips-tiny")
    calls = {
        "x": lambda x: rl.distance(x, GREY[:, :40], metric),
        "y": lambda y: rl.distance(GREY[:, :40], y, metric),
        "xs": lambda xs: rl.pairwise(xs[None], GREY[None, :, :40], metric),
        "images": metric.features,
    }
    for name, call in calls.items():
        call(masked.data)
        for _ in range(2):
            with pytest.raises(ImageError, match=rf"^{name} is a masked array .*{name}.filled\(0\).* as mask= "):
                call(masked)
