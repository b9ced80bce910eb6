"""Training images generated from a seed, with statistics similar to those of photographs.

Most are dead leaves: textured, shaded shapes that occlude one another, with radii distributed as r^-3, which
gives occlusion edges at all scales and a power spectrum near 1 / f^2 (Lee, Mumford and Huang, "Occlusion
models for natural images", IJCV 2001). The others add what dead leaves do not contain: coloured 1 / f^a noise,
gradients, gratings and strokes as in handwriting. Images are ``(size, size, 3)`` uint8.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from rlpips_jax.evaluation.pairs import seeded_map
from rlpips_jax.evaluation.patches import MINIMUM_DEVIATION, deviation, halve

CHUNK = 64
"""Number of images per task of a worker. Each task has its own seed, so changing it changes the images."""
CORNERS = 24
"""Number of points on the outline of a leaf."""


def _to_uint8(image: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _colours(rng: np.random.Generator, count: int) -> Float32[np.ndarray, "count 3"]:
    """Draws colours around a few base colours, as in one scene.

    Luminance varies most, the axis from blue to orange less, the axis from red to green least (Ruderman, Cronin and
    Chiao 1998); a minority of scenes has strong, artificial colours.
    """
    bases = int(rng.integers(2, 7))
    luminance = rng.beta(2.2, 2.6) + rng.uniform(0.04, 0.32) * rng.standard_normal(bases)
    saturation = np.exp(rng.normal(-0.2, 0.7)) * (2.5 if rng.random() < 0.12 else 1)
    yellow = rng.normal(0.01, 0.03) + saturation * rng.normal(0, 0.07, bases)
    red = rng.normal(0, 0.015) + saturation * rng.normal(0, 0.035, bases)
    chosen = rng.integers(bases, size=count)
    spread = rng.uniform(0.02, 0.12)
    light = np.clip(luminance[chosen] + rng.normal(0, spread, count), 0.03, 0.97)
    y = yellow[chosen] + rng.normal(0, 0.2 * spread, count)
    r = red[chosen] + 0.4 * y + rng.normal(0, 0.1 * spread, count)
    # Chroma grows with luminance: in a shadow all channels shrink together.
    chroma = (0.15 + 1.5 * light)[:, None] * np.stack([y + r, y - r, -2 * y], axis=1)
    return np.clip(light[:, None] + chroma, 0, 1).astype(np.float32)


def _radii(rng: np.random.Generator, count: int, smallest: float, largest: float) -> Float[np.ndarray, " count"]:
    """Draws radii with density proportional to r^-3 between the two bounds, by inverting the distribution function."""
    u = rng.random(count)
    return (smallest**-2 + u * (largest**-2 - smallest**-2)) ** -0.5


def _pink_field(rng: np.random.Generator, size: int, exponent: float, channels: int) -> Float32[np.ndarray, "c h w"]:
    """Draws periodic Gaussian fields of mean 0 and standard deviation 1 with a power spectrum ``1 / f^exponent``."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((channels, size, size)))
    field = np.fft.irfft2(white * frequency ** (-exponent / 2), s=(size, size))
    return (field / field.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def _outlines(rng: np.random.Generator, side: int, radii: Float[np.ndarray, " leaves"]) -> list[list[float]]:
    """Draws the corners x0, y0, x1, y1, ... of leaves: ellipses, polygons, bars and blobs with a wavy rim."""
    leaves = len(radii)
    kind = rng.choice(4, size=leaves, p=rng.dirichlet(np.full(4, 0.7)))[:, None]
    corners = np.where(kind == 1, rng.integers(3, 8, (leaves, 1)), np.where(kind == 2, 4, CORNERS))
    # All leaves have the same number of points; in leaves with fewer corners some points coincide.
    slot = np.arange(CORNERS) * corners // CORNERS
    jitter = np.take_along_axis(rng.uniform(0, 1, (leaves, CORNERS)), slot, axis=1)
    angle = 2 * np.pi * (slot + np.where(kind == 1, jitter, 0)) / corners
    waves = np.arange(2, 6)[:, None, None]
    amplitude = rng.normal(0, 0.3, (4, leaves, 1)) / waves
    rim = 1 + (amplitude * np.cos(waves * angle + rng.uniform(0, 2 * np.pi, (4, leaves, 1)))).sum(axis=0)
    rim = np.where(kind == 3, np.maximum(rim, 0.2), 1)
    elongation = np.exp(np.abs(rng.normal(0, np.where(kind == 2, 0.8, 0.4), (leaves, 1))))
    elongation[rng.random(leaves) < 0.3] = 1
    along = radii[:, None] * elongation**0.5 * rim * np.cos(angle)
    across = radii[:, None] * elongation**-0.5 * rim * np.sin(angle)
    turn = rng.uniform(0, 2 * np.pi, (leaves, 1))
    centre = rng.uniform(-0.15 * side, 1.15 * side, (2, leaves, 1))
    x = centre[0] + along * np.cos(turn) - across * np.sin(turn)
    y = centre[1] + along * np.sin(turn) + across * np.cos(turn)
    return np.stack([x, y], axis=-1).reshape(leaves, -1).tolist()


def _leaf_map(rng: np.random.Generator, side: int, radii: Float[np.ndarray, " leaves"]) -> Int[np.ndarray, "side side"]:
    """Returns the index, from 1, of the leaf visible at each pixel; 0 where there is no leaf."""
    canvas = Image.new("I", (side, side), 0)
    painter = ImageDraw.Draw(canvas)
    for leaf, outline in enumerate(_outlines(rng, side, radii), start=1):
        painter.polygon(outline, fill=leaf)
    return np.asarray(canvas, np.intp)


def dead_leaves(rng: np.random.Generator, size: int = 64) -> UInt8[np.ndarray, "size size 3"]:
    """Draws a dead-leaves scene: ellipses, polygons, bars and blobs with radii distributed as r^-3.

    Each leaf has its own colour, linear shading, sinusoidal grating and amount of a 1 / f^a texture; light falls on
    the whole scene from one side. The scene is painted at twice the size and box-averaged, which antialiases its
    edges; some scenes are then slightly blurred, as if out of focus, or get a little sensor noise.
    """
    side = 2 * size
    smallest = side * np.exp(rng.uniform(np.log(0.012), np.log(0.2)))
    # Painted area over canvas area; the mean of r^2 under r^-3 is 2 a^2 log(b / a) / (1 - a^2 / b^2).
    largest = 0.8 * side
    mean_area = 2 * np.pi * smallest**2 * np.log(largest / smallest) / (1 - (smallest / largest) ** 2)
    leaves = int(np.clip(rng.uniform(0.5, 3.0) * (1.3 * side) ** 2 / mean_area, 4, 500))
    index = _leaf_map(rng, side, _radii(rng, leaves, smallest, largest))

    count = leaves + 1  # index 0 is the background
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    colour = _colours(rng, count)

    def each(values: np.ndarray) -> Float32[np.ndarray, "side side"]:
        return values.astype(np.float32)[index]

    slope, direction = rng.normal(0, 0.35 * rng.random(), count), rng.uniform(0, 2 * np.pi, count)
    shade = each(slope * np.cos(direction)) * x + each(slope * np.sin(direction)) * y
    if rng.random() < 0.6:
        # In cycles per canvas, up to a quarter of the sampling rate, so that the box average does not alias.
        frequency = 2 * np.pi * np.exp(rng.uniform(np.log(4), np.log(side / 4), count))
        angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, rng.choice([0.1, 3.0]), count)
        strength = rng.exponential(0.12, count) * (rng.random(count) < 0.35)
        phase = each(frequency * np.cos(angle)) * x + each(frequency * np.sin(angle)) * y
        shade += each(strength) * np.sin(phase + each(rng.uniform(0, 2 * np.pi, count)))
    texture = _pink_field(rng, side, rng.uniform(0.6, 2.4), 1)[0]
    offset = rng.integers(side * side, size=count)
    rows = (np.arange(side)[:, None] * side + np.arange(side) + offset[index]) % (side * side)
    roughness = np.minimum(rng.exponential(rng.uniform(0.02, 0.16), count), 0.5)
    shade += each(roughness) * texture.reshape(-1)[rows]

    tilt, bearing = rng.normal(0, 0.5), rng.uniform(0, 2 * np.pi)
    light = np.exp(tilt * (np.cos(bearing) * x + np.sin(bearing) * y))
    if rng.random() < 0.3:  # dappled light
        light = light * np.exp(rng.uniform(0.05, 0.4) * _pink_field(rng, side, 3.0, 1)[0])
    scene = colour[index] * ((1 + shade) * light)[..., None]
    image = scene.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
    if rng.random() < 0.15:
        sigma = rng.uniform(0.4, 1.4)
        image = gaussian_filter(image, (sigma, sigma, 0))
    if rng.random() < 0.3:
        image = image + rng.normal(0, rng.uniform(0.003, 0.02), image.shape)
    return _to_uint8(image)


def _coloured(
    rng: np.random.Generator, fields: Float32[np.ndarray, "3 h w"], deviation: float
) -> Float32[np.ndarray, "h w 3"]:
    """Combines fields of luminance, blue-yellow and red-green into an RGB image around a random colour."""
    mean = _colours(rng, 1)[0]
    chroma = rng.uniform(0, 0.6)
    scale = deviation * np.array([1, 0.7 * chroma, 0.4 * chroma], np.float32)
    luminance, blue, red = scale[:, None, None] * fields
    return np.stack([luminance + blue + red, luminance + blue - red, luminance - 2 * blue], axis=-1) + mean


def pink_noise(
    rng: np.random.Generator, size: int = 64, exponent: float | None = None
) -> UInt8[np.ndarray, "size size 3"]:
    """Draws coloured Gaussian noise with a power spectrum ``1 / f^exponent``: clouds, bark, sand.

    The exponent is drawn from U(1, 3.2) by default. The image is a crop of a field of twice the size, because the
    field is periodic and a photograph is not.
    """
    if exponent is None:
        exponent = rng.uniform(1.0, 3.2)
    fields = _pink_field(rng, 2 * size, exponent, 3)[:, :size, :size]
    return _to_uint8(_coloured(rng, fields, rng.uniform(0.07, 0.2)))


def gradient(rng: np.random.Generator, size: int = 64) -> UInt8[np.ndarray, "size size 3"]:
    """Draws up to three smooth shadings along a line or from a point, separated by straight edges.

    They resemble sky, walls, and other surfaces on which contours and block artefacts are most visible.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    image = np.zeros((size, size, 3), np.float32)
    for region in range(int(rng.integers(1, 4))):
        ends = _colours(rng, 3)
        if rng.random() < 0.5:
            angle = rng.uniform(0, 2 * np.pi)
            position = 0.5 + 0.7 * (np.cos(angle) * x + np.sin(angle) * y)
        else:
            centre = rng.uniform(-0.7, 0.7, 2)
            position = np.hypot(y - centre[0], x - centre[1])
        stops = np.array([0, rng.uniform(0.2, 0.8), 1])
        shaded = np.stack([np.interp(position, stops, ends[:, channel]) for channel in range(3)], axis=-1)
        angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4)
        ramp = (np.cos(angle) * x + np.sin(angle) * y - shift) * size / rng.choice([1.0, 1.0, 6.0])
        cover = np.clip(ramp + 0.5, 0, 1)[..., None] if region else 1.0
        image = image + cover * (shaded - image)
    return _to_uint8(image + rng.normal(0, rng.uniform(0, 0.015), image.shape))


def grating(rng: np.random.Generator, size: int = 64) -> UInt8[np.ndarray, "size size 3"]:
    """Draws stripes, checks or rings of two colours, sharp or sinusoidal, slightly bent: fabric, fences, tiles."""
    side = 2 * size
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    bend = rng.uniform(0, 0.08) * _pink_field(rng, side, 4.0, 2)
    y, x = y + bend[0], x + bend[1]
    angle = rng.uniform(0, 2 * np.pi)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    pattern = rng.integers(4)
    if pattern == 3:
        u = np.hypot(y - rng.uniform(-0.5, 0.5), x - rng.uniform(-0.5, 0.5))
    frequency = 2 * np.pi * np.exp(rng.uniform(np.log(2), np.log(size / 5)))
    wave = np.sin(frequency * u + rng.uniform(0, 2 * np.pi))
    if pattern >= 1 and pattern != 3:
        wave = wave * np.sin(frequency * rng.choice([1.0, 0.5]) * v + rng.uniform(0, 2 * np.pi))
    sharpness = np.exp(rng.uniform(-1, 3))
    mix = (0.5 + 0.5 * np.tanh(sharpness * (wave - rng.uniform(-0.3, 0.3))) / np.tanh(sharpness))[..., None]
    first, second = _colours(rng, 2)
    image = first + mix * (second - first)
    wear = rng.uniform(0, 0.25) * _pink_field(rng, side, rng.uniform(1.0, 3.0), 1)[0]
    image = image * np.exp(wear)[..., None]
    return halve(_to_uint8(image))


def strokes(rng: np.random.Generator, size: int = 64) -> UInt8[np.ndarray, "size size 3"]:
    """Draws rows of strokes like glyphs, or scattered lines like twigs, over a gradient or noise."""
    side = 2 * size
    ground = (gradient if rng.random() < 0.7 else pink_noise)(rng, size)
    canvas = Image.fromarray(ground).resize((side, side), Image.Resampling.BICUBIC)
    painter = ImageDraw.Draw(canvas)
    inks = [tuple(np.rint(colour * 255).astype(int).tolist()) for colour in _colours(rng, 3)]
    if rng.random() < 0.4:
        inks = inks[:1]
    if rng.random() < 0.6:
        height = side * np.exp(rng.uniform(np.log(0.07), np.log(0.4)))
        width = max(1, round(height * rng.uniform(0.08, 0.22)))
        slant = rng.normal(0, 0.15)
        y = rng.uniform(-height, 0)
        while y < side:
            x = rng.uniform(-height, 0)
            while x < side:
                ink = inks[int(rng.integers(len(inks)))]
                for _ in range(int(rng.integers(1, 4))):
                    corners = rng.integers(0, 3, (2, 2)) / 2 * (0.6 * height, height)
                    corners[:, 0] += slant * corners[:, 1]
                    line = [tuple(corner) for corner in (corners + np.array([x, y])).tolist()]
                    if rng.random() < 0.6:
                        painter.line(line, fill=ink, width=width)
                    else:
                        start = int(rng.choice([0, 90, 180, 270]))
                        box = (x, y + height * rng.choice([0, 0.5]), x + 0.6 * height, y + height)
                        end = start + int(rng.choice([180, 270, 360]))
                        painter.arc(box, start, end, fill=ink, width=width)
                x += height * (0.8 if rng.random() < 0.85 else 1.5)
            y += height * 1.5
    else:
        for _ in range(int(rng.integers(5, 60))):
            steps = rng.normal(0, side * rng.uniform(0.03, 0.2), (int(rng.integers(2, 6)), 2))
            steps += rng.normal(0, 0.1 * side, 2)
            points = rng.uniform(0, side, 2) + np.cumsum(steps, axis=0)
            ink = inks[int(rng.integers(len(inks)))]
            painter.line([tuple(point) for point in points.tolist()], fill=ink, width=int(rng.integers(1, 7)))
    return halve(np.asarray(canvas))


KINDS: dict[Callable[..., UInt8[np.ndarray, "size size 3"]], float] = {
    dead_leaves: 0.66,
    pink_noise: 0.1,
    gradient: 0.06,
    grating: 0.08,
    strokes: 0.1,
}
"""The kinds of image that `images` mixes, and the fraction of each."""


def _images_chunk(count: int, size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "n size size 3"]:
    makers, shares = list(KINDS), list(KINDS.values())
    result = np.empty((count, size, size, 3), np.uint8)
    for image in result:
        maker = makers[int(rng.choice(len(makers), p=shares))]
        image[:] = maker(rng, size)
        while deviation(image) <= MINIMUM_DEVIATION:
            image[:] = maker(rng, size)
    return result


def images(
    count: int, *, size: int = 64, seed: int = 0, workers: int | None = None
) -> UInt8[np.ndarray, "count size size 3"]:
    """Draws ``count`` procedural images of the kinds in `KINDS`, in these fractions.

    The standard deviation of each is above `rlpips_jax.evaluation.patches.MINIMUM_DEVIATION`. The result depends on
    ``seed``, not on ``workers`` (see `rlpips_jax.evaluation.pairs.seeded_map`).
    """
    if count < 0 or size < 8:
        raise ValueError(f"count is {count} and size {size}; count must be at least 0 and size at least 8")
    chunks = [(min(CHUNK, count - start), size) for start in range(0, count, CHUNK)]
    made = list(seeded_map(_images_chunk, chunks, seed=seed, workers=workers))
    return np.concatenate([np.empty((0, size, size, 3), np.uint8), *made])
