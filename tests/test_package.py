"""What is installed, what an import costs, and which module may know which."""

import ast
import graphlib
import importlib.metadata
import importlib.util
import inspect
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from email.parser import Parser
from pathlib import Path, PurePosixPath
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rlpips_jax

ROOT = Path(__file__).parent.parent
PACKAGE = "rlpips_jax"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

LAYERS = (
    ("errors", "_version", "warning", "arguments"),
    ("images",),
    ("files",),
    ("ops",),
    ("backbones",),
    ("weights",),
    ("distances",),
    ("ensemble",),
    ("loading",),
    ("judgment",),
    ("attacks",),
    ("evaluation", "exported", "geometry", "scoring"),
    ("reports", "cli"),
    ("",),  # the package itself: the public names
    ("__main__",),
)
"""Low to high. A module knows its own layer and those below, and no two modules know each other."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

FAMILIES = ("distances", "ensemble", "weights", "loading", "")
"""Parts of the package that may name a concrete metric class; all others know the protocols alone."""

LATE = ("PIL", "jinja2", "matplotlib", "pooch", "requests", "scipy", "tensorflow", "torch", "tqdm", "tyro")
"""What `import rlpips_jax` must not import: each is slow, or needed by few."""

WITHOUT_JAX = (PACKAGE, f"{PACKAGE}.cli", f"{PACKAGE}.files.decoding", f"{PACKAGE}.scoring.readers")
"""What a process that only reads images imports."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_library_alone(wheel: zipfile.ZipFile) -> None:
    dist_info = f"{PACKAGE}-{rlpips_jax.__version__}.dist-info"
    assert {PurePosixPath(name).parts[0] for name in wheel.namelist()} == {PACKAGE, dist_info}


def test_wheel_holds_the_whole_library(wheel: zipfile.ZipFile) -> None:
    source = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("**/*.py", "**/*.pyi", "py.typed", "data/*", "reports/templates/*")
        for path in (ROOT / PACKAGE).glob(pattern)
    }
    assert f"{PACKAGE}/py.typed" in source
    assert source == {name for name in wheel.namelist() if name.startswith(f"{PACKAGE}/")}


def test_wheel_describes_itself(wheel: zipfile.ZipFile) -> None:
    dist_info = f"{PACKAGE}-{rlpips_jax.__version__}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{dist_info}/METADATA").decode())
    assert metadata["Version"] == rlpips_jax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["CREDITS.md", "LICENSE"]
    assert f"rlpips = {PACKAGE}.cli:main" in wheel.read(f"{dist_info}/entry_points.txt").decode()
    required = {Requirement(line).name for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert "jax" in required
    assert not required & {"torch", "tensorflow", "matplotlib", "orbax-checkpoint"}


def test_the_changelog_and_the_citation_have_this_version() -> None:
    assert f"\nversion: {rlpips_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == rlpips_jax.__version__.partition(".dev")[0]


def test_source_distribution_can_be_worked_on(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {PurePosixPath(name) for name in archive.getnames()}
    inside = {PurePosixPath(*name.parts[1:]) for name in names}
    assert {name.parts[0] for name in names} == {f"{PACKAGE}-{rlpips_jax.__version__}"}
    for needed in ("pyproject.toml", "constraints.txt", "Makefile", "LICENSE", f"{PACKAGE}/py.typed"):
        assert PurePosixPath(needed) in inside
    assert PurePosixPath("tests") / Path(__file__).name in inside
    assert not [name for name in inside if {"__pycache__", ".venv", ".git"} & set(name.parts)]


def imported_by(program: str) -> set[str]:
    """Top-level modules that a program has imported at its end."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{program}; import sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return {name.partition(".")[0] for name in run.stdout.split()}


def test_import_leaves_out_what_few_need() -> None:
    loaded = imported_by(f"from {PACKAGE} import *")
    assert "jax" in loaded
    assert sorted(loaded & set(LATE)) == []


def test_reading_images_needs_no_jax() -> None:
    assert not imported_by(f"import {', '.join(WITHOUT_JAX)}") & {"jax", "flax", "optax"}


def test_every_public_name_is_there() -> None:
    assert set(rlpips_jax.__all__) <= set(dir(rlpips_jax))
    assert all(hasattr(rlpips_jax, name) for name in rlpips_jax.__all__)
    with pytest.raises(AttributeError, match="attribute lpips"):
        getattr(rlpips_jax, "lpips")  # noqa: B009


def test_every_dependency_is_pinned() -> None:
    """Each distribution that the extra `dev` brings into this environment has one line in the constraints."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert len(here) == len(set(here)), "pinned twice"
    for pin in pins:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is not one version"

    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"], *extras["docs"], *extras["train"]]
    queue = [(Requirement(line), "") for line in wanted if not line.startswith(f"{PROJECT['name']}[")]
    reached: set[str] = set()
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in reached:
            continue
        reached.add(name)
        for line in importlib.metadata.requires(name) or []:
            queue.extend((Requirement(line), wanted_extra) for wanted_extra in requirement.extras or {""})
    assert sorted(reached - set(here)) == []


@pytest.mark.parametrize(("folder", "extras"), [(PACKAGE, ["ray", "viz"]), ("training", ["train"])])
def test_every_import_is_declared(folder: str, extras: list[str]) -> None:
    """Third-party modules come from distributions that the project names, not from what those happen to bring."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    known = modules(folder)
    own = {PACKAGE, "training", "__future__", *sys.stdlib_module_names}
    names = {module.partition(".")[0] for name, path in known.items() for module in imports(name, path, known)} - own
    providers = importlib.metadata.packages_distributions()
    undeclared = {
        name: providers.get(name, [])
        for name in sorted(names)
        if not declared & {canonicalize_name(one) for one in providers.get(name, [name])}
    }
    assert undeclared == {}


def modules(folder: str) -> dict[str, Path]:
    """Every module under a folder of the checkout, by its full name."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Full names of what a module imports, anywhere in it; a submodule counts as itself, not as its package."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    nodes = list(ast.walk(ast.parse(path.read_text(), path)))
    members: list[tuple[str, str]] = []
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name != PACKAGE)
            bound = {alias.asname or PACKAGE for alias in node.names if alias.name == PACKAGE}
            members.extend(
                (PACKAGE, use.attr)
                for use in nodes
                if isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name) and use.value.id in bound
            )
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            members.extend((source, alias.name) for alias in node.names)
    for source, member in members:
        found.add(f"{source}.{member}" if f"{source}.{member}" in known else source)
    return found


def test_library_imports_no_program() -> None:
    known = modules(PACKAGE)
    programs = {"training", "convert", "benchmarks", "examples", "tests", "notebooks"}
    guilty = {
        name: sorted(wrong)
        for name, path in known.items()
        if (wrong := {module.partition(".")[0] for module in imports(name, path, known)} & programs)
    }
    assert guilty == {}


def test_modules_know_only_lower_layers() -> None:
    known = modules(PACKAGE)
    part = {name: name.split(".")[1] if "." in name else "" for name in known}
    assert sorted(set(part.values()) - set(LEVEL)) == [], "give these a layer"
    graph = {
        name: {module for module in imports(name, path, known) if module in known and module != name}
        for name, path in known.items()
    }
    upward = {
        f"{name} -> {module}"
        for name, targets in graph.items()
        for module in targets
        if LEVEL[part[name]] < LEVEL[part[module]]
    }
    assert sorted(upward) == []
    # Raises CycleError, which names the cycle.
    graphlib.TopologicalSorter(graph).prepare()


def metric_classes(known: dict[str, Path]) -> set[str]:
    """Names of the metrics' classes: those with `between` or `expectation`, or of a base that has; protocols aside."""
    found = set()
    for name, path in known.items():
        if name.startswith((f"{PACKAGE}.distances.", f"{PACKAGE}.ensemble.")) and path.stem != "protocol":
            for node in ast.walk(ast.parse(path.read_text(), path)):
                if isinstance(node, ast.ClassDef):
                    members = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
                    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                    if {"between", "expectation"} & members or "NetworkMetric" in bases:
                        found.add(node.name)
    return found


def test_only_the_families_name_their_classes() -> None:
    """What takes a metric takes any object with its members, hence imports no class of one."""
    known = modules(PACKAGE)
    concrete = metric_classes(known)
    assert {"Lpips", "Ensemble"} <= concrete
    guilty = {}
    for name, path in known.items():
        part = name.split(".")[1] if "." in name else ""
        if part not in FAMILIES:
            used = set()
            for node in ast.walk(ast.parse(path.read_text(), path)):
                if isinstance(node, ast.ImportFrom | ast.Import):
                    used |= {alias.name for alias in node.names}
                elif isinstance(node, ast.Attribute):
                    used.add(node.attr)
            if wrong := sorted(used & concrete):
                guilty[name] = wrong
    assert guilty == {}


def public_callables() -> dict[str, Callable[..., object]]:
    """The public functions of the package and of its public subpackages, and the public methods of their classes."""
    objects: dict[str, object] = {}
    for name in rlpips_jax.__all__:
        member = getattr(rlpips_jax, name)
        if inspect.ismodule(member):
            names = getattr(member, "__all__", [other for other in vars(member) if not other.startswith("_")])
            objects.update({f"{name}.{other}": getattr(member, other) for other in names})
        else:
            objects[name] = member
    found: dict[str, Callable[..., object]] = {}
    for name, value in objects.items():
        if not str(getattr(value, "__module__", "")).startswith(PACKAGE):
            continue
        if inspect.isclass(value):
            methods = {key: member for key, member in vars(value).items() if inspect.isfunction(member)}
            found.update({f"{name}.{key}": member for key, member in methods.items() if not key.startswith("_")})
        elif callable(value):
            found[name] = value
    return found


def contains_any(hint: object) -> bool:
    if isinstance(hint, list | tuple):
        return any(map(contains_any, hint))
    # type[Any] is how JAX itself says what dtypes may be given as.
    return hint is Any or (get_origin(hint) is not type and any(map(contains_any, get_args(hint))))


def test_every_public_parameter_has_a_type() -> None:
    guilty = {}
    for name, function in public_callables().items():
        hints = get_type_hints(inspect.unwrap(function))
        if wrong := [key for key, hint in hints.items() if key != "return" and contains_any(hint)]:
            guilty[name] = wrong
    assert guilty == {}
