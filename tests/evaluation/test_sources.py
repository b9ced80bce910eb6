"""Sources of triplets: an entry of the table is listed, read and offered by the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.evaluation.sources import TRIPLET_SOURCES, ReadOptions, TripletSource, read, source_of
from rlpips_jax.evaluation.triplets import AnyTriplets, Triplets

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photographs"
    for number in range(2):
        rl.save_image(folder / f"{number}.png", rng.integers(0, 256, (40, 40, 3), np.uint8))
    return folder


def test_a_source_is_one_entry(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_grey(path: Path, options: ReadOptions) -> list[AnyTriplets]:
        levels = np.array([[int(word) for word in line.split()] for line in path.read_text().splitlines()], np.uint8)
        images = levels.T[:, :, None, None, None].repeat(32, 2).repeat(32, 3).repeat(3, 4)
        judgment = np.ones(len(levels), np.float32)
        reference, p0, p1 = images
        return [Triplets(reference, p0, p1, judgment, ("grey",) * len(levels), name="three greys")]

    file = tmp_path / "levels.txt"
    file.write_text("10 200 20\n10 150 20\n")
    with pytest.raises(rl.TripletsError, match=r"holds no judged triplets; give one of: an [.]npz file"):
        source_of(file)
    entry = TripletSource("a .txt file of grey levels", lambda path: path.suffix == ".txt", read_grey)
    monkeypatch.setitem(TRIPLET_SOURCES, "grey", entry)
    assert source_of(file) == "grey"
    assert [triplets.name for triplets in read(file)] == ["three greys"]
    assert "a .txt file of grey levels" in " ".join(command("evaluate", "--help")[1].replace("│", " ").split())
    status, out, _ = command("evaluate", "--data", file, "--metric", "lpips-tiny", "--out", tmp_path / "out")
    assert status == 0
    assert out.splitlines()[-2].startswith("three greys")


def test_photographs_need_a_count(photographs: Path) -> None:
    assert source_of(photographs) == "photographs"
    with pytest.raises(rl.TripletsError, match="count=600"):
        read(photographs)
    (ordinal,) = read(photographs, count=2, size=32, kinds=("salt_pepper",))
    assert ordinal.kinds == ("salt_pepper",) * 2


@pytest.mark.parametrize("name", ["evaluate", "certify"])
def test_triplets_must_be_given(command: Command, tmp_path: Path, name: str) -> None:
    status, out, err = command(name, "--metric", "lpips-tiny", "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert "--data is missing; give judged triplets: an .npz file;" in err
    assert not (tmp_path / "out").exists()
