"""The documentation: every public name is in the reference, links lead somewhere, and examples run."""

import ast
import functools
import importlib.util
import pkgutil
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import rlpips_jax as rl
import training.program
from rlpips_jax import cli
from training.program import PROGRAMS

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"


def module_at(path: Path) -> ModuleType:
    """A module that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = module_at(ROOT / "docs" / "pages.py")
PUBLIC: dict[str, tuple[str, str]] = PAGES.public_names()


def is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def documented_members(module: str) -> set[str]:
    """Names of a module's functions, classes and constants that have a docstring."""
    body = PAGES.syntax(module).body
    found = set()
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if ast.get_docstring(node):
                found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and is_text(following):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_public_name_is_documented() -> None:
    members = {module: documented_members(module) for module, _ in PUBLIC.values()}
    assert [shown for shown, (module, name) in PUBLIC.items() if name not in members[module]] == []


def test_every_public_name_is_in_the_reference_once() -> None:
    text = "\n".join(path.read_text() for path in REFERENCE.glob("*.md"))
    shown = [PUBLIC[name] for name in PAGES.DIRECTIVE.findall(text)]
    assert len(shown) == len(set(shown)), "shown twice"
    protocols = {f"rlpips_jax.{name}.protocol" for name in ("backbones", "distances")}  # shown whole
    missing = {name: place for name, place in PUBLIC.items() if place not in shown and place[0] not in protocols}
    assert missing == {}


# Examples


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
ELSEWHERE = {
    "docs/metrics.md": "test_own_metric.py",
    "docs/export.md": "test_exported.py",
    "docs/backbones.md": "test_the_network_of_the_page_is_that_of_the_library",
    "docs/clusters.md": "they need a cluster: tests/scoring/test_clusters.py has one",
    "CONTRIBUTING.md": "what it adds is no part of the library",
}
"""Where the Python examples of these pages are checked."""


real_load = rl.load


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def stand_in(name: object = "lpips-alex", **options: object) -> object:
    """A metric inside the package of the kind that was asked for: weights of the others are not here."""
    text = str(name)
    if Path(text).exists():
        return real_load(text)
    kind = next((kind for kind in ("rlpips", "elpips") if text.startswith(kind)), "lpips")
    prefix = "ensemble:" if text.startswith("ensemble:") else ""
    return real_load(f"{prefix}{kind}-tiny", frozen=bool(options.get("frozen")))


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name in NAMES if blocks(name, "python") and name not in ELSEWHERE])
def test_the_examples_of_a_page_run_from_the_first_line_to_the_last(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("reference.png", "a.png", "b.png", "photographs/one.png"):
        rl.save_image(name, rng.integers(0, 256, (70, 70, 3), np.uint8))
    monkeypatch.setattr(rl, "load", stand_in)
    monkeypatch.setattr("rlpips_jax.loading.load", stand_in)
    monkeypatch.setattr("rlpips_jax.distances.named.named", stand_in)
    monkeypatch.setattr(rl.evaluation, "Smoothing", functools.partial(rl.evaluation.Smoothing, samples=100))
    namespace: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), namespace)


def test_the_network_of_the_page_is_that_of_the_library() -> None:
    example = blocks("docs/backbones.md", "python")[1]
    assert example in (ROOT / "rlpips_jax" / "backbones" / "vgg19.py").read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    """The command lines of a page, as a shell splits them; those with `...` stand for several."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [
        words for line in lines if " ... " not in line and (words := shlex.split(line.replace("&&", ""), comments=True))
    ]


@pytest.mark.parametrize("page", [name for name in NAMES if blocks(name, "sh")])
def test_the_commands_of_a_page_are_accepted(
    page: str, command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in cli.COMMANDS.values():
        parsed = pkgutil.resolve_name(place)
        for kind in getattr(parsed, "actions", {"": parsed}).values():
            monkeypatch.setattr(kind, "run", lambda self: 0)
    monkeypatch.setattr(
        "training.program.PROGRAMS", {name: (kind, lambda _: None) for name, (kind, _) in PROGRAMS.items()}
    )
    for words in commands(page):
        if words[0] == "rlpips":
            assert command(*words[1:])[0] == 0, words
        elif words[:3] == ["python", "-m", "training"]:
            assert training.program.main(words[3:]) == 0, words
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None, words
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        else:
            assert words[0] in ("pip", "python", "gcloud", "source", ".ci/run"), words
