"""The metric of `docs/metrics.md`, in every function and command that the page names."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rlpips_jax as rl

PAGE = (Path(__file__).parent.parent / "docs/metrics.md").read_text(encoding="utf-8")
MODULE, SETUP, *USES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the page's module and pictures in it."""
    (tmp_path / "my_metrics.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_metrics", raising=False)
    rng = np.random.default_rng(0)
    for name in ("reference.png", "a.png", "b.png", "photographs/one.png"):
        rl.save_image(name, rng.integers(0, 256, (96, 96, 3), np.uint8))
    return tmp_path


def test_a_distance_is_its_definition(folder: Path) -> None:
    page: dict[str, object] = {}
    exec(SETUP, page)
    used = SimpleNamespace(**page)
    x, y = (image[:, 1:, 1:] / 255 + image[:, :-1, :-1] / 255 for image in (used.x, used.y))
    np.testing.assert_allclose(used.d, 10 * np.square(x - y).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(np.diag(used.D), used.d, rtol=1e-5)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.split("(")[0].split()[-1])
def test_what_the_page_shows_runs(folder: Path, use: str) -> None:
    page: dict[str, object] = {}
    exec(SETUP + use, page)


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.split()[1])
def test_the_command_line_takes_it(folder: Path, command: Callable[..., tuple[int, str, str]], line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "rlpips"
    status, out, err = command(*arguments)
    assert (status, "blurred" in out) == (0, True), err
