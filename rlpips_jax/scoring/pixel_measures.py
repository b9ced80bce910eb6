"""PSNR and SSIM, the measures of pixels that results can have beside the distance."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Shaped

Picture = Shaped[np.ndarray, "h w 3"]

SIGMA, WINDOW = 1.5, 11
"""Of the Gaussian window of SSIM, in pixels."""


def psnr(x: Picture, y: Picture) -> np.floating:
    """Peak signal-to-noise ratio in decibels, 10 log10(1 / mean squared error) in [0, 1]; infinite for equal images.

    Args:
        x, y: `(h, w, 3)`, both uint8 or both floats in [0, 1].
    """
    with np.errstate(divide="ignore"):
        return np.float32(-10 * np.log10(np.mean(np.square(_unit(x) - _unit(y)))))


def ssim(x: Picture, y: Picture) -> np.floating:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004), 1 for equal images: the mean over channels and over
    the positions where the window, a Gaussian of 11x11 and sigma 1.5, lies inside the image; K1 .01, K2 .03.

    Images smaller than the window have none: NaN. Arguments as in `psnr`.
    """
    from scipy import ndimage

    if min(x.shape[:2]) < WINDOW:
        return np.float32(np.nan)
    inside = (slice(WINDOW // 2, -(WINDOW // 2)),) * 2

    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, SIGMA, axes=(0, 1), radius=WINDOW // 2)[inside]

    x, y = _unit(x), _unit(y)
    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return np.float32(np.mean(luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)))


MEASURES: dict[str, Callable[[Picture, Picture], np.floating]] = {"psnr": psnr, "ssim": ssim}
"""The measures by their names in results."""


def measured(names: Sequence[str], images: Sequence[Picture]) -> dict[str, np.floating]:
    """The measures of a pair of images, by their names in `MEASURES`."""
    return {name: MEASURES[name](*images) for name in names}


def _unit(image: Picture) -> np.ndarray:
    return image.astype(np.float64) / (255 if image.dtype == np.uint8 else 1)
