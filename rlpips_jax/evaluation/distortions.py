"""Image distortions of graded strength, from barely visible to gross: one table, `DISTORTIONS`, holds them all.

Images are RGB, ``(h, w, 3)``: ``uint8``, or floats in [0, 1]. A strength s in [0, 1] is mapped geometrically
onto the unit of the kind, ``a (b / a)^s``, and results are clipped and rounded to ``uint8``. The random part of a
kind (a noise field, a sign, a flow) does not depend on the strength: draw it once and apply it at two strengths,
and the weaker result is the closer one.

    >>> import numpy as np
    >>> from rlpips_jax.evaluation.distortions import apply, draw
    >>> rng = np.random.default_rng(0)
    >>> image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    >>> field = draw("warp", image.shape, rng)
    >>> weak, strong = apply(image, "warp", 0.2, field), apply(image, "warp", 0.4, field)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8

from rlpips_jax.errors import DistortionError, ImageError

FLOW_SMOOTHING = 6.0
"""Standard deviation in pixels of the Gaussian that smooths the flow of ``warp``."""

_Image = Float32[np.ndarray, "h w 3"]
_Draw = Float32[np.ndarray, "..."]


def _no_draw(height: int, width: int, rng: np.random.Generator) -> _Draw:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class Distortion:
    """One kind of distortion: an entry of `DISTORTIONS`.

    Attributes:
        function: ``image, amount, draw -> image``, of a float32 image in [0, 1]; the result may leave [0, 1].
        weakest: the amount at strength 0.
        strongest: the amount at strength 1.
        unit: of amounts.
        sample: ``height, width, rng -> draw``, the random part for an image of this size.
        draw_shape: the shape of a draw; "h" and "w" stand for the height and the width of the image.
        trained: whether metrics are trained on this kind. Kinds that are not show how a metric does on a new one.
    """

    function: Callable[[_Image, float, _Draw], _Image]
    weakest: float
    strongest: float
    unit: str
    sample: Callable[[int, int, np.random.Generator], _Draw] = _no_draw
    draw_shape: tuple[int | str, ...] = (0,)
    trained: bool = True

    def amount(self, strength: float) -> float:
        """The strength in [0, 1] in the kind's unit: ``weakest * (strongest / weakest) ** strength``."""
        return self.weakest * (self.strongest / self.weakest) ** strength


def _to_uint8(image: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)


def _to_float(image: UInt8[np.ndarray, "h w 3"]) -> _Image:
    return image.astype(np.float32) / np.float32(255)


def _blur(image: _Image, amount: float, draw: _Draw) -> _Image:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, (amount, amount, 0), mode="reflect")


def _noise(image: _Image, amount: float, draw: _Draw) -> _Image:
    return image + np.float32(amount) * draw


def _jpeg(image: _Image, amount: float, draw: _Draw) -> _Image:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(_to_uint8(image)).save(file, "JPEG", quality=round(amount))
    return _to_float(np.asarray(Image.open(file)))


def _contrast(image: _Image, amount: float, draw: _Draw) -> _Image:
    mean = image.mean(dtype=np.float64).astype(np.float32)
    return mean + np.float32(1 - amount) * (image - mean)


def _shift(image: _Image, amount: float, draw: _Draw) -> _Image:
    return image + np.float32(amount) * draw


def _down(image: _Image, amount: float, draw: _Draw) -> _Image:
    from PIL import Image

    height, width = image.shape[:2]
    reduced = (max(1, round(width / amount)), max(1, round(height / amount)))
    # Pillow widens its bilinear filter with the reduction, so the result is antialiased.
    small = Image.fromarray(_to_uint8(image)).resize(reduced, Image.Resampling.BILINEAR)
    return _to_float(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)))


def _warp(image: _Image, amount: float, draw: _Draw) -> _Image:
    height, width = image.shape[:2]
    y = np.clip(np.arange(height, dtype=np.float32)[:, None] + amount * draw[..., 0], 0, height - 1)
    x = np.clip(np.arange(width, dtype=np.float32) + amount * draw[..., 1], 0, width - 1)
    top, left = y.astype(np.intp), x.astype(np.intp)
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    v, u = (y - top).astype(np.float32)[..., None], (x - left).astype(np.float32)[..., None]
    flat = image.reshape(-1, 3)
    top, below = top * width, below * width
    upper = flat[top + left] * (1 - u) + flat[top + right] * u
    lower = flat[below + left] * (1 - u) + flat[below + right] * u
    return upper * (1 - v) + lower * v


def _quantize(image: _Image, amount: float, draw: _Draw) -> _Image:
    steps = np.float32(round(amount) - 1)
    return np.rint(image * steps) / steps


def _salt_pepper(image: _Image, amount: float, draw: _Draw) -> _Image:
    # The magnitude of an entry decides whether the pixel is hit, its sign decides the colour.
    extreme = (draw > 0).astype(np.float32)[..., None]
    return np.where((np.abs(draw) < amount)[..., None], extreme, image)


def _normal_field(height: int, width: int, rng: np.random.Generator) -> _Draw:
    return rng.standard_normal((height, width, 3), dtype=np.float32)


def _sign(height: int, width: int, rng: np.random.Generator) -> _Draw:
    return np.full((1,), rng.choice((-1.0, 1.0)), np.float32)


def _zero_sum_direction(height: int, width: int, rng: np.random.Generator) -> _Draw:
    direction = rng.standard_normal(3)
    direction -= direction.mean()
    return (direction / np.abs(direction).max()).astype(np.float32)


def _unit_flow(height: int, width: int, rng: np.random.Generator) -> _Draw:
    from scipy.ndimage import gaussian_filter

    flow = rng.standard_normal((height, width, 2), dtype=np.float32)
    flow = gaussian_filter(flow, (FLOW_SMOOTHING, FLOW_SMOOTHING, 0), mode="reflect")
    return flow / np.sqrt(np.square(flow).sum(axis=-1).max())


def _signed_uniform_field(height: int, width: int, rng: np.random.Generator) -> _Draw:
    return rng.uniform(-1, 1, (height, width)).astype(np.float32)


DISTORTIONS: dict[str, Distortion] = {
    "blur": Distortion(_blur, 0.4, 4.0, "standard deviation in pixels"),
    "noise": Distortion(_noise, 4 / 255, 50 / 255, "standard deviation", _normal_field, ("h", "w", 3)),
    "jpeg": Distortion(_jpeg, 80.0, 5.0, "quality"),
    "contrast": Distortion(_contrast, 0.08, 0.85, "share of the contrast removed"),
    "brightness": Distortion(_shift, 0.03, 0.4, "value added or subtracted", _sign, (1,)),
    "color": Distortion(_shift, 0.03, 0.35, "largest change of a channel", _zero_sum_direction, (3,)),
    "down": Distortion(_down, 1.25, 6.0, "reduction factor"),
    "warp": Distortion(_warp, 0.5, 6.0, "largest displacement in pixels", _unit_flow, ("h", "w", 2)),
    "quantize": Distortion(_quantize, 48.0, 4.0, "levels per channel"),
    "salt_pepper": Distortion(
        _salt_pepper, 0.005, 0.2, "share of pixels hit", _signed_uniform_field, ("h", "w"), trained=False
    ),
}
"""Every kind by its name. Whatever reads or makes triplets, the command line and training read this table."""


def training_kinds() -> tuple[str, ...]:
    """The names of the kinds that metrics are trained on, in the order of the table."""
    return tuple(name for name, distortion in DISTORTIONS.items() if distortion.trained)


def _distortion(kind: str) -> Distortion:
    if kind not in DISTORTIONS:
        raise DistortionError(f"kind {kind!r} is not a distortion; choose one of {', '.join(DISTORTIONS)}")
    return DISTORTIONS[kind]


def _as_image(image: np.ndarray) -> _Image:
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ImageError(f"image has shape {image.shape}; a distortion takes one RGB image, (h, w, 3)")
    if image.dtype == np.uint8:
        return _to_float(image)
    if not np.issubdtype(image.dtype, np.floating):
        raise ImageError(f"image has dtype {image.dtype}; give uint8 (0..255) or floats in [0, 1]")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ImageError(f"image has values from {low:g} to {high:g}; floats must lie in [0, 1]")
    return image.astype(np.float32)


def draw(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> _Draw:
    """The random part of ``kind`` for an image of this shape, to be passed to `apply` at any strength.

    It is a float32 array: ``(h, w, 3)`` standard normal for noise, ``(1,)`` +-1 for brightness, ``(3,)`` for
    color (sums to zero, largest entry +-1), ``(h, w, 2)`` for warp (displacements along y and x in pixels,
    largest length 1), ``(h, w)`` uniform on [-1, 1] for salt_pepper, and empty for the kinds without a random
    part.

    Raises `DistortionError` for an unknown kind and `ImageError` for a shape other than ``(h, w, 3)``.
    """
    if len(shape) != 3 or shape[-1] != 3 or 0 in shape:
        raise ImageError(f"shape is {tuple(shape)}; a distortion takes one RGB image, (h, w, 3)")
    return _distortion(kind).sample(shape[0], shape[1], rng)


def apply(image: np.ndarray, kind: str, strength: float, draw: _Draw) -> UInt8[np.ndarray, "h w 3"]:
    """The image distorted by ``kind`` at ``strength`` in [0, 1], with what `draw` drew for its shape.

    ``image`` is ``(h, w, 3)``, uint8 or floats in [0, 1]; the result is uint8. For one draw the pixel L2 distance
    from the image grows with the strength (in steps for jpeg, down and quantize: quality, size and number of
    levels are whole numbers).

    Raises `DistortionError` for an unknown kind, a strength outside [0, 1] or a draw made for another kind or
    shape, and `ImageError` for anything that is not an RGB image in range.
    """
    distortion = _distortion(kind)
    if not 0 <= strength <= 1:
        raise DistortionError(f"strength is {strength}; it must lie in [0, 1]")
    pixels = _as_image(image)
    height, width = pixels.shape[:2]
    expected = tuple({"h": height, "w": width}.get(str(side), side) for side in distortion.draw_shape)
    if draw.shape != expected:
        raise DistortionError(
            f"draw has shape {draw.shape}, {kind} of a {height}x{width} image needs {expected}; "
            f"make it with draw({kind!r}, image.shape, rng)"
        )
    return _to_uint8(distortion.function(pixels, distortion.amount(strength), draw))


def distort(image: np.ndarray, kind: str, strength: float, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The image distorted by ``kind`` at ``strength`` in [0, 1], with a fresh draw; see `apply`."""
    return apply(image, kind, strength, draw(kind, image.shape, rng))
