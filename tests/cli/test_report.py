"""`rlpips report`: a page of what is measured, complete in itself, that computes nothing twice."""

import base64
import functools
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlpips_jax.cli import certify, report_sections
from rlpips_jax.evaluation import measurement, ordinal, write_npz

COUNT = 6

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(3):
        draw(folder / f"{seed}.png", seed, (80, 90))
    path = folder.parent / "triplets <b>.npz"
    write_npz(path, {"ordinal": ordinal(folder, COUNT, kinds=("blur", "noise"), size=64)})
    return path


class Page(HTMLParser):
    """What a browser would load, the headings, the cells, and whether every element is closed."""

    EMPTY = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag != "a":
            self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def report(command: Command, data: Path, folder: Path, *more: object) -> tuple[int, str, str]:
    common = ("--data", data, "--metric", "lpips-tiny", "--steps", 2, "--batch", COUNT)
    return command("report", *common, "--results", folder / "results", "--out", folder / "page.html", *more)


def test_the_page_shows_what_is_in_the_documents(command: Command, data: Path, tmp_path: Path) -> None:
    status, out, _ = report(command, data, tmp_path, "--attack", "noise", "--epsilon", "8/255", "--examples", 0)
    assert status == 0
    assert out.endswith(f"page: {tmp_path / 'page.html'}\n")
    page = page_of(tmp_path / "page.html")
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import", (tmp_path / "page.html").read_text(encoding="utf-8"))
    for source in page.sources:
        assert source == "data:," or source.startswith("data:image/png;base64,")
    for path in (tmp_path / "results").glob("*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        score = document["scores"]["two_afc"]
        assert f"{score['mean']:.3f}" in page.words
        assert f"[{score['low']:.3f}, {score['high']:.3f}]" in page.words
        assert document["signature"] in page.words
    assert {"Scores", "Under attack", "By kind of distortion", "Repeat it"} <= set(page.words)
    # The triplets were made of photographs, and all are clear.
    assert any("Nobody was asked." in words for words in page.words)
    assert not any("people disagree" in words or "judgment is clear" in words for words in page.words)
    # Of this name nothing may be taken for a tag.
    assert "b" not in page.tags or "triplets <b>.npz ordinal" in page.words


@pytest.mark.slow
def test_nothing_is_computed_twice(
    command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = functools.partial(certify.Certify, samples=40, selection_samples=10)
    monkeypatch.setattr("rlpips_jax.cli.report.Certify", few)
    options = ("--metric", "rlpips-tiny", "--examples", 1, "--certify", 2, "--epsilon", "1/255", "16/255")
    status, out, _ = report(command, data, tmp_path, *options)
    assert status == 0
    first = page_of(tmp_path / "page.html")
    assert {"Worst examples", "Certificates"} <= set(first.words)
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in first.sources[1:]]
    # For each metric reference, closer, farther, the attacked one, and the change.
    assert len(pictures) >= 10
    reference, _, _, attacked, change = (np.asarray(one).astype(int) for one in pictures[:5])
    closer = np.asarray(pictures[1]).astype(int)
    assert np.abs(attacked - closer).max() in (1, 16)
    assert (reference.shape, change.shape) == ((64, 64, 3), (64, 64, 3))

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(measurement, "attack_triplets", fails)
    monkeypatch.setattr(measurement, "triplet_distances", fails)
    monkeypatch.setattr(certify, "certify_triplets", fails)
    assert report(command, data, tmp_path, *options)[:2] == (0, out)
    again = page_of(tmp_path / "page.html")
    assert again.words[:-1] == first.words[:-1]
    assert again.sources == first.sources


def test_results_of_evaluate_are_shown_and_suffice(
    command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--data", data, "--metric", "lpips-tiny", "--steps", 2, "--batch", COUNT, "--out", tmp_path / "results")
    assert command("evaluate", *common, "--attack", "noise", "--epsilon", "8/255")[0] == 0
    # The results of another set of triplets.
    assert command("evaluate", *common, "--limit", 3)[0] == 0
    monkeypatch.setattr(measurement, "attack_triplets", None)
    monkeypatch.setattr(report_sections, "worst", lambda *_: None)
    assert report(command, data, tmp_path)[0] == 0
    words = page_of(tmp_path / "page.html").words
    assert "noise 8/255" in words
    assert not [word for word in words if word.startswith("pgd")]
    assert "2 results in" in " ".join(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "page.pdf"), "must end in .html"),
        (("--examples", -1), "--examples must be 0 or more"),
        (("--certify", 0), "--certify must be 1 or more"),
    ],
)
def test_arguments_that_make_no_sense(command: Command, data: Path, arguments: tuple[object, ...], words: str) -> None:
    status, _, err = command("report", "--data", data, "--metric", "lpips-tiny", *arguments)
    assert status == 2
    assert words in err
