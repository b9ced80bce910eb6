"""Images that the measurements use."""

import numpy as np
import pytest

from benchmarks.images import Size, images


def test_sizes() -> None:
    assert Size.parse("16x256") == Size(16, 256)
    assert str(Size(16, 256)) == "16 of 256x256"


@pytest.mark.parametrize("text", ["", "16", "0x64", "16x", "16x-4", "16x64x3", "a x b"])
def test_what_is_no_size(text) -> None:
    with pytest.raises(ValueError, match="such as 16x256"):
        Size.parse(text)


def check_images(x: np.ndarray, y: np.ndarray, size: Size) -> None:
    assert x.shape == y.shape == (size.count, size.side, size.side, 3)
    assert x.dtype == y.dtype == np.float32
    assert max(np.abs(x).max(), np.abs(y).max()) <= 1
    assert (np.abs(x - y).mean((1, 2, 3)) > 0.01).all()
    assert (x.std((1, 2, 3)) > 0.01).all()
    assert len({image.tobytes() for image in x}) == size.count


def test_images_are_drawn_where_there_are_no_photographs(tmp_path) -> None:
    size = Size(3, 40)
    pair = images(tmp_path, size)
    check_images(*pair, size)
    np.testing.assert_array_equal(pair, images(tmp_path, size))


@pytest.mark.shared
def test_images_are_crops_of_photographs(shared) -> None:
    size = Size(30, 64)
    check_images(*images(shared, size), size)
