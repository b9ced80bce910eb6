"""Photographs to show things with: those of scikit-image, or the reader's own."""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from rlpips_jax.errors import ImageFileError
from rlpips_jax.files.image_files import image_paths, load_image

BUNDLED = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
MOST = 8
SIZE = 256

Photograph = UInt8[np.ndarray, "h w 3"]


def photographs(folder: Path | None) -> dict[str, Photograph]:
    """Photographs by name, each the middle of a file, 256x256.

    Args:
        folder: takes the first eight images in it; None takes those of scikit-image.

    Raises:
        ImageFileError: there is no image, or one cannot be read.
    """
    if folder is not None:
        paths = image_paths(folder)[:MOST]
        if not paths:
            raise ImageFileError(f"{folder} holds no images; give a folder with some photographs")
    else:
        package = importlib.util.find_spec("skimage")
        if package is None or package.origin is None:
            raise ImageFileError(
                "there are no photographs to show: pip install scikit-image, which contains some, or give a "
                "folder by --images"
            )
        data = Path(package.origin).parent / "data"
        paths = [path for name in BUNDLED if (path := data / name).is_file()]
        if not paths:
            raise ImageFileError(f"{data} lacks scikit-image's photographs; give a folder by --images")
    named = {path.stem.removesuffix("_left") if folder is None else path.name: path for path in paths}
    return {name: _middle(load_image(path)) for name, path in named.items()}


def _middle(image: np.ndarray) -> Photograph:
    from PIL import Image

    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.uint8)
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.array(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def pixel_error(x: Photograph, y: Photograph) -> float:
    """Root mean square difference, as a share of the range from black to white."""
    return float(np.sqrt(np.mean(np.square(x / 255 - y / 255))))
