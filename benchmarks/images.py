"""Pairs of images to measure on: crops of photographs and noisy copies, in [-1, 1]."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

import rlpips_jax as rl


class Size(NamedTuple):
    """A number of square images."""

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    side: int

    @staticmethod
    def parse(text: str) -> "Size":
        """Reads "16x256".

        Raises:
            ValueError: it is nothing of the kind.
        """
        if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
            raise ValueError(f"a size is a number of images and their side, such as 16x256, got {text!r}")
        return Size(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.count} of {self.side}x{self.side}"


def images(shared: Path, size: Size) -> tuple[Float[np.ndarray, "n h w 3"], Float[np.ndarray, "n h w 3"]]:
    """Crops of photographs and noisy copies, in [-1, 1]; drawn waves where there are no photographs that large."""
    rng = np.random.default_rng(0)
    folder = shared / "images" / "kodak"
    photographs = [rl.load_image(path) for path in rl.image_paths(folder)] if folder.is_dir() else []
    photographs = [photograph for photograph in photographs if min(photograph.shape[:2]) >= size.side]
    crops = []
    for index in range(size.count):
        if photographs:
            photograph = photographs[index % len(photographs)]
            top, left = (rng.integers(length - size.side + 1) for length in photograph.shape[:2])
            crops.append(photograph[top : top + size.side, left : left + size.side] / 127.5 - 1)
        else:
            rows, columns = np.indices((size.side, size.side))[..., None] / rng.uniform(3, 30, (2, 1, 1, 3))
            crops.append(np.sin(rows + columns) * np.cos(rows - columns))
    x = np.stack(crops)
    y = np.clip(x + rng.normal(0, 0.1, x.shape), -1, 1)
    return x.astype(np.float32), y.astype(np.float32)
