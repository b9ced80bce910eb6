"""Tasks of a process of its own, on a contestant that anyone can check."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import process
from benchmarks.contestants import Contestant


@pytest.fixture
def contestant() -> Contestant:
    """Mean absolute difference, in NumPy."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.abs(x - y).mean((1, 2, 3))

    return Contestant(np.asarray, distance, lambda x, y: (distance(x, y).sum(), np.sign(y - x)), np.asarray)


def test_files_are_paired_by_name_and_read_in_batches(contestant, tmp_path) -> None:
    expected = []
    for folder in ("references", "images"):
        (tmp_path / folder).mkdir()
    for index in range(process.BATCH + 3):
        for folder, value in (("references", 0), ("images", index)):
            image = Image.fromarray(np.full((4, 5, 3), value, np.uint8))
            image.save(tmp_path / folder / f"{index:03}.png")
        expected.append(index / 127.5)
    order = {folder: str(tmp_path / folder) for folder in ("references", "images")}
    np.testing.assert_allclose(process.files(contestant, order)["distances"], expected, atol=1e-6)


@pytest.mark.parametrize("what", ["distance", "gradient"])
def test_memory_is_more_than_none(contestant, what, tmp_path) -> None:
    images = np.zeros((8, 256, 256, 3), np.float32)
    np.savez(tmp_path / "images.npz", x=images, y=images)
    found = process.memory(contestant, {"what": what, "images": str(tmp_path / "images.npz")})
    assert found["first"] is not None
    assert found["first"] >= 0
    # Between the two readings memory may grow by a page.
    assert process.resident("VmHWM") + 1 >= process.resident("VmRSS") > 1
