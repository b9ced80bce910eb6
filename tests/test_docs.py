"""The documentation: every public name is in the reference, links lead somewhere, and examples run."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

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
