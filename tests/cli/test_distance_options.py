"""What `rlpips distance` takes: files of other suffixes and names, other tables, animations, pipes, further columns."""

import csv
import io
import json
import os
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl
from rlpips_jax.errors import ImageFileError, PairsWarning
from rlpips_jax.scoring import Reading, pairs_in_folders, pairs_in_list
from rlpips_jax.scoring.pixel_measures import psnr, ssim

from .conftest import Draw, Rlpips


def paired(tmp_path: Path, references: list[str], images: list[str], **options: bool) -> list[tuple[str, str]]:
    """Which of these files are paired, by their names; errors in place of a pair's reference."""
    for folder, names in (("a", references), ("b", images)):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
    pairs = pairs_in_folders(tmp_path / "a", tmp_path / "b", **options)
    return [
        (str(pair.error) if pair.files is None else os.path.relpath(pair.files[0], tmp_path / "a"), pair.image)
        for pair in pairs
    ]


def test_other_suffixes_are_paired_where_there_is_one_of_a_name(tmp_path: Path) -> None:
    found = paired(tmp_path, ["a.png", "1.PNG", "in/b.png", "c.png"], ["a.jpg", "1.png", "in/b.webp", "c.png", "c.jpg"])
    assert found[:2] == [("1.PNG", "1.png"), ("a.png", "a.jpg")]
    assert found[3:] == [("c.png", "c.png"), ("in/b.png", "in/b.webp")]
    assert found[2][1] == "c.jpg"
    assert "1 image is only in" in found[2][0]


def test_names_of_another_normalisation_are_the_same(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "größe.png") for form in ("NFC", "NFD")]
    assert paired(tmp_path, names[:1], names[1:]) == [(names[0], names[1])]


def test_leading_zeros_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"1\.png and 01\.png differ in leading zeros"):
        paired(tmp_path, ["1.png", "2.png"], ["01.png", "02.png"])


def test_suffixes_that_are_left_out_are_counted(tmp_path: Path) -> None:
    with pytest.warns(PairsWarning, match=r"b: files that are not images .*: 2 \.txt, 1 no suffix"):
        assert paired(tmp_path, ["a.png"], ["a.png", "a.txt", "b.txt", "README"]) == [("a.png", "a.png")]


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        ("score,image,what,reference\n.5,i.png,x,r.png\n", None),
        ("reference;image\nr.png;i.png\n", "semicolons"),
        ("r.png\ti.png\n", "tabs"),
        ("\ufeffr.png,i.png\r\n", None),
    ],
)
def test_lists_of_other_tables(tmp_path: Path, content: str, warning: str | None) -> None:
    path = tmp_path / "list.csv"
    path.write_text(content, newline="", encoding="utf-8")
    if warning is None:
        (pair,) = pairs_in_list(path)
    else:
        with pytest.warns(PairsWarning, match=f"separated by {warning}, not commas"):
            (pair,) = pairs_in_list(path)
    assert (pair.reference, pair.image, pair.error) == ("r.png", "i.png", None)


def test_another_encoding_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("r.png,i.png\n" * 9, encoding="utf-16")
    with pytest.raises(ImageFileError, match="UTF-16"):
        list(pairs_in_list(tmp_path / "list.csv"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw: Draw) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [draw(folder / f"{number}.png", number) for number in range(5)]


def test_measures_and_their_columns(rlpips: Rlpips, pictures: list[Path], tmp_path: Path) -> None:
    x, y = (rl.load_image(path) for path in pictures[:2])
    expected = {"psnr": psnr(x, y), "ssim": ssim(x, y)}
    pair = (pictures[0], pictures[1], pictures[0])
    (row, same) = csv.DictReader(io.StringIO(rlpips(*pair, "--psnr", "--ssim", "--csv").out))
    assert {name: np.float32(row[name]) for name in expected} == expected
    assert (same["psnr"], float(same["ssim"])) == ("inf", 1)
    document = json.loads(rlpips(*pair, "--psnr", "--json").out)
    assert [entry["psnr"] for entry in document["results"]] == [pytest.approx(float(expected["psnr"])), None]
    listed = tmp_path / "list.csv"
    listed.write_text("".join(f"{pictures[0]},{path}\n" for path in pair))
    for suffix in ("jsonl", "csv"):
        out = tmp_path / f"out.{suffix}"
        first = [rlpips("--pairs", listed, "--psnr", "--out", out).status, out.read_bytes()]
        assert [rlpips("--pairs", listed, "--psnr", "--out", out).status, out.read_bytes()] == first
        refused = rlpips("--pairs", listed, "--out", out)
        assert (refused.status, "is of another run" in refused.err) == (2, True)


def test_the_measures_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (2, 15, 17, 3), np.uint8)
    error = np.mean((x / 255 - y / 255) ** 2)
    np.testing.assert_allclose(psnr(x, y), 10 * np.log10(1 / error), rtol=1e-6)
    # One position of one channel, by the letter.
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for top, left, channel in np.ndindex(5, 7, 3):
        a, b = (image[top : top + 11, left : left + 11, channel] / 255 for image in (x, y))
        m, n = (window * a).sum(), (window * b).sum()
        v, w, c = ((window * (p * q)).sum() for p, q in ((a - m, a - m), (b - n, b - n), (a - m, b - n)))
        values.append((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4)))
    np.testing.assert_allclose(ssim(x, y), np.mean(values), rtol=1e-5)


def test_resizing_and_cropping(
    rlpips: Rlpips, pictures: list[Path], tiny: rl.Lpips, draw: Draw, tmp_path: Path
) -> None:
    larger = draw(tmp_path / "larger.png", 9, (64, 100))
    document = json.loads(rlpips(pictures[0], larger, "--resize", "32", "--crop", "40x32", "--json").out)
    reading = Reading(resize=32, crop=(32, 40))
    expected = rl.distance(reading.image(pictures[0]), reading.image(larger), tiny)
    assert document["results"][0]["distance"] == pytest.approx(float(expected), abs=1e-6)
    assert document["signature"] == f"{tiny.signature}, resize 32, crop 40x32"
    assert np.array_equal(reading.image(pictures[0]), rl.load_image(pictures[0]))
    assert "must be a number of pixels" in rlpips(*pictures[:2], "--resize", "big").err
    assert "too small to crop 99x99" in rlpips(*pictures[:2], "--crop", "99").err


def test_animations_are_compared_frame_by_frame(rlpips: Rlpips, pictures: list[Path], tmp_path: Path) -> None:
    for name, order in (("a", [0, 1, 2]), ("b", [0, 2, 1, 3])):
        first, *others = (Image.open(pictures[number]) for number in order)
        first.save(tmp_path / f"{name}.png", save_all=True, append_images=others)
    run = rlpips(tmp_path / "a.png", tmp_path / "b.png")
    assert run.status == 1
    assert "b.png has more frames than" in run.err
    rows = [line.split() for line in run.out.splitlines()[3:]]
    assert [row[0] for row in rows[:3]] == [f"{tmp_path}/b.png#{number}" for number in range(3)]
    assert rows[3][:6] == ["mean", "of", "3", "of", "4", "pairs"]
    alone = rlpips(pictures[1], pictures[2]).out.split()
    assert rows[1][1] == alone[-1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_images_too(rlpips: Rlpips, pictures: list[Path], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(pictures[1].read_bytes()))
    thread.start()
    run = rlpips(pictures[0], pipe, pictures[1], "--csv")
    thread.join()
    first, second = csv.DictReader(io.StringIO(run.out))
    assert first["distance"] == second["distance"]


@pytest.mark.slow
def test_all_pairs_of_two_folders(rlpips: Rlpips, tmp_path: Path, draw: Draw, tiny: rl.Lpips) -> None:
    sets = [
        [draw(tmp_path / folder / f"{number}.png", seed + number) for number in range(count)]
        for folder, count, seed in (("a", 3, 0), ("b", 7, 50))
    ]
    run = rlpips("--all-pairs", tmp_path / "a", tmp_path / "b", "--jsonl")
    assert run.status == 0
    results = [json.loads(line) for line in run.out.splitlines()[1:]]
    assert [(entry["reference"], entry["image"]) for entry in results] == [
        (str(one), str(other)) for one in sets[0] for other in sets[1]
    ]
    images = [np.stack([rl.load_image(path) for path in paths]) for paths in sets]
    expected = np.asarray(rl.pairwise(images[0], images[1], tiny)).ravel()
    np.testing.assert_allclose([entry["distance"] for entry in results], expected, atol=1e-6)


@pytest.mark.slow
def test_a_random_metric_gives_estimates(command, pictures: list[Path]) -> None:
    words = ("distance", *pictures[:2], "--metric", "ensemble:lpips-tiny", "--max-samples", 16, "--json")
    found, other = (json.loads(command(*words, "--seed", seed)[1]) for seed in (0, 1))
    assert found["results"] != other["results"]
    (entry,) = found["results"]
    assert 0 < entry["standard_error"] < entry["distance"]
    assert entry["samples"] == 16
    assert found["signature"].endswith(", seed 0, relative_error 0.025, absolute_error 0.01, max_samples 16")


def test_large_images_within_a_bound_of_memory(tmp_path: Path, rlpips: Rlpips, draw) -> None:
    paths = [draw(tmp_path / name, seed, (200, 187)) for seed, name in enumerate(("a.png", "b.png", "c.png"))]
    whole, tiles = (json.loads(rlpips(*paths, "--json", *more).out) for more in ((), ("--max-memory", "4.5MB")))
    assert whole["signature"] == tiles["signature"]
    found, expected = ([entry["distance"] for entry in each["results"]] for each in (tiles, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    run = rlpips("--all-pairs", tmp_path, "--max-memory", "4.5MB")
    assert run.status == 2
    assert "--max-memory is for --pairs and --dirs" in run.err
    assert "--ray writes a folder of files" in rlpips(*paths, "--ray", "local", "--out", tmp_path / "a.csv").err
    assert "--parquet and --gpus are for --ray" in rlpips(*paths, "--parquet").err
