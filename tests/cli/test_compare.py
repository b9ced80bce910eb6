"""`rlpips compare`: what it prints, by which status it exits, and what is left when it is interrupted."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.cli import compare
from tests.ensemble.test_ensemble import pairs

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def usual_handler() -> Iterator[None]:
    """Python's own, which a test run in the background of a shell script is without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """A reference, one that is as far from it as its mirror image, that, and one that is nearer."""
    x, y = (np.asarray(each[0, :64, :64]) for each in pairs(1))
    x = (x + x[:, ::-1]) / 2
    images = {"reference": x, "noisy": y, "mirrored": y[:, ::-1], "cleaner": y + 0.5 * (x - y)}
    for name, image in images.items():
        rl.save_image(tmp_path / f"{name}.png", np.rint(255 * image).astype(np.uint8))
    return [tmp_path / f"{name}.png" for name in images]


def test_the_closest_is_told(command: Command, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "QUIET", -1.0)
    reference, noisy, _, cleaner = paths
    status, out, err = command("compare", reference, noisy, cleaner, "--metric", "elpips-tiny")
    assert status == 0
    budget, progress = err.splitlines()
    assert budget == "rlpips: at most 4096 samples, 12288 passes of an image; ends when 0.95 is sure"
    assert progress.startswith("rlpips: 64 samples of 4096, confidence ")
    assert f"{cleaner} is closest after 64 samples, with confidence " in out
    status, out, _ = command("compare", reference, noisy, cleaner, "--metric", "elpips-tiny", "--json")
    document = json.loads(out)
    assert (document["closest"], document["sure"], document["interrupted"]) == (str(cleaner), True, False)
    status, _, err = command("map", reference, noisy, "--metric", "elpips-tiny")
    assert status == 2
    assert "elpips-tiny is random; 'rlpips distance', compare, evaluate, average and geodesic take it" in err


def test_identical_files_are_named_at_once(command: Command, paths: list[Path], tmp_path: Path) -> None:
    reference, noisy, _, _ = paths
    copy = tmp_path / "copy.png"
    copy.write_bytes(noisy.read_bytes())
    status, out, _ = command("compare", reference, noisy, copy, "--metric", "elpips-tiny")
    assert status == 1
    assert f"It is open which is closest; {noisy} is closest by the numbers after 64 samples" in out
    assert out.endswith(f"{copy} is identical to {noisy}.\n")


def test_files_of_8_and_of_16_bits(command: Command, draw: Callable[..., Path], tmp_path: Path) -> None:
    reference, other = draw(tmp_path / "reference.png"), draw(tmp_path / "other.png", seed=1)
    deep = draw(tmp_path / "deep.png", seed=2, deep=True)
    status, out, _ = command("compare", reference, deep, other, "--metric", "lpips-tiny", "--json")
    assert status == 0
    found = [row["distances"] for row in json.loads(out)["images"]]
    expected = [rl.distance(rl.load_image(reference), rl.load_image(other), rl.load("lpips-tiny"))]
    np.testing.assert_allclose(found[1:], expected, rtol=1e-5)


@pytest.mark.usefixtures("usual_handler")
def test_an_interrupted_comparison_prints_what_is_known(
    command: Command, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = rl.compare

    def pressed(*arguments: Any, progress: Callable[[rl.Comparison], None], **options: Any) -> rl.Comparison:
        def press(found: rl.Comparison) -> None:
            if found.samples == 128:
                signal.raise_signal(signal.SIGINT)
            progress(found)

        return search(*arguments, progress=press, **options)

    monkeypatch.setattr(compare, "compare", pressed)
    words = ("compare", *paths[:3], "--metric", "elpips-tiny", "--confidence", "0.9999")
    status, out, _ = command(*words)
    assert status == 130
    assert "Interrupted. It is open which is closest; " in out
    assert " after 128 samples, with confidence " in out
    status, out, _ = command(*words, "--json")
    document = json.loads(out)
    assert status == 130
    assert (document["interrupted"], document["sure"], document["samples"]) == (True, False, 128)


@pytest.mark.usefixtures("usual_handler")
def test_nothing_is_printed_where_nothing_is_known(
    command: Command, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "compare", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert command("compare", *paths[:3], "--metric", "elpips-tiny")[:2] == (130, "")
