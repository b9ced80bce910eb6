"""Examples in docstrings run, and say what they print."""

import ast
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef
CODE = re.compile(r"^ *(?:import \w+$|from [\w.]+ import |\w+(?:, \w+)* = [\w.]+\()", re.MULTILINE)
"""A line of an example without a prompt."""


def docstrings() -> dict[str, str]:
    """Every docstring of the library, by file and name: read, not imported, since collection should be fast."""
    found = {}
    for path in sorted((ROOT / "rlpips_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), path)):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                found[f"{path.relative_to(ROOT)}::{getattr(node, 'name', '')}"] = text
    return found


DOCSTRINGS = docstrings()


@pytest.mark.parametrize("place", [place for place, text in DOCSTRINGS.items() if ">>>" in text])
def test_an_example_prints_what_it_says(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(DOCSTRINGS[place], {"__name__": "__main__"}, place, place, 0)
    printed: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)


def test_every_example_is_run() -> None:
    plain = [place for place, text in DOCSTRINGS.items() if ">>>" not in text and CODE.search(text)]
    assert plain == [], "write these examples with >>>"
