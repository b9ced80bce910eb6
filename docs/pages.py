"""What `mkdocs` asks while it builds the site: which files are pages, and what the names of the reference stand for.

Pages keep the paths that their files have in the repository, so that the same links work on the site and where the
files are read. The README is the home page. Notebooks become pages with the outputs that are committed in them.
"""

import ast
import base64
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "rlpips_jax"

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CREDITS.md", "benchmarks/RESULTS.md")
"""Pages outside `docs/`."""

SUBPACKAGES = ("attacks", "evaluation", "ensemble", "geometry", "scoring")
"""Those whose public names are all in the reference, beside those of the package itself."""

FETCHED, SEARCH = "https://unpkg.com/iframe-worker/shim", "assets/search.js"

DIRECTIVE = re.compile(r"^::: (rl\.\S+)$", re.MULTILINE)
NOTEBOOK = re.compile(r"(\]\([^)\s]*notebooks/[\w-]+)\.ipynb\)")


@functools.cache
def public_names() -> dict[str, tuple[str, str]]:
    """Every public name as a user writes it, `rl.attacks.pgd`, with the module and the name of its definition."""
    found = dict(_names_in(ROOT / PACKAGE, PACKAGE, "rl"))
    for name in SUBPACKAGES:
        found |= dict(_names_in(ROOT / PACKAGE / name, f"{PACKAGE}.{name}", f"rl.{name}"))
    return found


def _names_in(folder: Path, package: str, prefix: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for node in ast.walk(ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module not in (None, "_version"):
            for alias in node.names:
                yield f"{prefix}.{alias.asname}", _definition(f"{package}.{node.module}", alias.name)


def _definition(module: str, name: str) -> tuple[str, str]:
    """The module that defines what this one may only import, and its name there."""
    for node in syntax(module).body:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith(PACKAGE):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _definition(str(node.module), alias.name)
    return module, name


@functools.cache
def syntax(module: str) -> ast.Module:
    """A module of the library, parsed."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def on_files(files: Any, config: Any) -> Any:
    """The files of the site, by their paths in the repository."""
    from mkdocs.structure.files import File, Files

    def at(path: str, url: str) -> Any:
        page = File(path, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=url)
        page.url = page.url  # the address is worked out of `dest_uri`
        return page

    found = [file for file in files if file.src_uri.startswith("assets/") or file.generated_by]  # mostly the theme's
    for file in files:
        if file not in found and not file.src_uri.endswith(".py"):
            found.append(at(f"docs/{file.src_uri}", file.dest_uri))
    for path in PAGES:
        found.append(at(path, "index.html" if path == "README.md" else f"{Path(path).stem.lower()}.html"))
    found.append(at("LICENSE", "LICENSE.txt"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found.extend(_notebook(path, config))
    return Files(found)


def _notebook(path: Path, config: Any) -> Iterator[Any]:
    """The page of a notebook, and its pictures."""
    import nbformat
    from mkdocs.structure.files import File

    parts, pictures = [], 0
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                pictures += 1
                name = f"{path.stem}-{pictures}.png"
                yield File.generated(config, f"notebooks/{name}", content=base64.b64decode(data["image/png"]))
                parts.append(f"![what the cell draws]({name})")
            elif printed := output.get("text", data.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{printed}\n```")
    yield File.generated(config, f"notebooks/{path.stem}.md", content="\n\n".join(parts))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages, and `::: rl.attacks.pgd` shows what is defined in `attacks/pgd.py`."""
    names = public_names()

    def directive(found: re.Match[str]) -> str:
        module, name = names[found[1]]
        return f"::: {module}.{name}\n    options:\n      heading: {found[1]}\n      toc_label: {found[1]}"

    return DIRECTIVE.sub(directive, NOTEBOOK.sub(r"\1.md)", markdown))


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """The script that searches without a server is ours: the theme's would be fetched from elsewhere."""
    from mkdocs.utils import get_relative_url

    return output.replace(FETCHED, get_relative_url(SEARCH, page.url))


def on_post_template(output_content: str, **_: Any) -> str:
    """The same in the page for addresses that do not exist."""
    return output_content.replace(FETCHED, f"/{SEARCH}")
