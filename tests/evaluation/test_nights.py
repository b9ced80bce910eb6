"""NIGHTS: a small archive in the layout of the real one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl
from rlpips_jax.evaluation import read, read_nights
from rlpips_jax.evaluation.sources import source_of

HEADER = "id,left_vote,right_vote,votes,ref_path,left_path,right_path,prompt,split,is_imagenet"

# The second row has too few votes.
ROWS = (
    (0, 1, 0, 8, "test", "True"),
    (1, 0, 1, 5, "test", "True"),
    (2, 0, 1, 6, "test", "False"),
    (3, 0, 1, 9, "train", "False"),
    (7, 1, 0, 7, "val", "TRUE"),
)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "nights"
    rng = np.random.default_rng(0)
    lines = [HEADER]
    for number, left, right, votes, split, imagenet in ROWS:
        names = [f"ref/000/{number:03d}.png", *(f"distort/000/{number:03d}_{side}.png" for side in (0, 1))]
        for name in names:
            rl.save_image(folder / name, rng.integers(0, 256, (64, 64, 3), np.uint8))
        prompt = '"An image of a ""red, ripe"" apple"'
        lines.append(",".join(map(str, (number, left, right, votes, *names, prompt, split, imagenet))))
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_votes_files_and_kinds(nights: Path) -> None:
    triplets = read_nights(nights, size=None)
    np.testing.assert_array_equal(triplets.judgment, [0, 1])
    assert triplets.kinds == ("imagenet", "no_imagenet")
    assert (triplets.name, triplets.source["split"]) == ("nights test", "test")
    for images, name in ((triplets.reference, "ref/000/002"), (triplets.p1, "distort/000/002_1")):
        np.testing.assert_array_equal(images[1], np.asarray(Image.open(nights / f"{name}.png")))


def test_resized_bicubically_as_published(nights: Path) -> None:
    (triplets,) = read(nights)
    with Image.open(nights / "ref/000/000.png") as image:
        expected = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(triplets.reference[0], expected)


@pytest.mark.parametrize(
    ("split", "count"), [("train", 1), ("val", 1), ("test", 2), ("test_imagenet", 1), ("test_no_imagenet", 1)]
)
def test_splits(nights: Path, split: str, count: int) -> None:
    (triplets,) = read(nights, split=split, size=16)
    assert len(triplets) == count


def test_what_is_wrong_is_named(nights: Path, tmp_path: Path) -> None:
    assert source_of(nights) == "nights"
    with pytest.raises(rl.TripletsError, match="no split 'dev'; it has train, val, test, test_imagenet"):
        read_nights(nights, split="dev")
    table = tmp_path / "data.csv"
    table.write_text("id,left_vote\n")
    with pytest.raises(rl.TripletsError, match="no column right_vote, votes, ref_path"):
        read_nights(tmp_path)
    table.write_text(f"{HEADER}\n0,0,0,8,a.png,b.png,c.png,x,test,True\n")
    with pytest.raises(rl.TripletsError, match="line 2: left_vote '0', right_vote '0'"):
        read_nights(tmp_path)
    table.write_text(f"{HEADER}\n0,0,1,8,a.png,b.png,c.png,x,train,True\n")
    with pytest.raises(rl.TripletsError, match="no triplet of the split 'test'"):
        read_nights(tmp_path)


def test_from_the_command_line(command: Callable[..., tuple[int, str, str]], nights: Path, tmp_path: Path) -> None:
    arguments = ("--data", nights, "--size", 32, "--split", "test", "--metric", "lpips-tiny", "--out", tmp_path)
    status, out, _ = command("evaluate", *arguments)
    assert status == 0
    assert out.splitlines()[-2].startswith("nights test at 32")
    table = (tmp_path / "table.txt").read_text()
    assert "nights test at 32: imagenet" in table
    assert "nights test at 32: no_imagenet" in table
