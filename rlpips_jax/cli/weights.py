"""`rlpips weights`: what there is, what is here, and whether it is whole."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from rlpips_jax import reports
from rlpips_jax.backbones import BACKBONES
from rlpips_jax.cli import say
from rlpips_jax.cli.options import Flag, Folder
from rlpips_jax.errors import UnknownMetric, WeightsError, WeightsMismatch, WeightsNotFound
from rlpips_jax.files.regular import read_regular
from rlpips_jax.loading import find, parts, recipes
from rlpips_jax.weights import native, store
from rlpips_jax.weights.download import megabytes
from rlpips_jax.weights.inventory import Found, availability, everywhere, first, kind_of, places, verified
from rlpips_jax.weights.parameters import Parameters, digest, from_pytorch, needed_by
from rlpips_jax.weights.pytorch import read_checkpoint
from rlpips_jax.weights.registry import BACKBONE, Part

KEPT = ("source", "source_sha256", "licence", "citation", "held_out", "model_card")
"""What an imported weight file of this library goes on saying of itself."""


@dataclass(frozen=True, kw_only=True)
class List:
    """List every metric, where its weights are, who made them, and under which licence.

    Examples:
        rlpips weights list
        rlpips weights list --weights-dir weights/
    """

    weights_dir: Folder = None
    """Folder to look into first."""

    def run(self) -> int:
        first(parts()["lpips-tiny"], self.weights_dir)  # Raises if a path is not a folder, once for all metrics.
        rows = []
        for recipe in recipes().values():
            here = availability(recipe, self.weights_dir)
            rows.append((recipe.name, here.state, here.places))
        print(reports.table(("metric", "weights", "where"), rows))
        print()
        print(reports.table(("place", "path"), [(kind, str(path)) for kind, path in places(self.weights_dir)]))
        print("\nOfficial files, downloaded by 'rlpips weights fetch METRIC' or at the first use of a metric:\n")
        officials = [(name, part.official) for name, part in parts().items() if part.official]
        citations = list(dict.fromkeys(official.citation for _, official in officials))
        files = [
            (name, megabytes(official.size), official.licence, f"[{citations.index(official.citation) + 1}]")
            for name, official in officials
        ]
        print(reports.table(("file", "size", "licence", "please cite"), files))
        print()
        for number, citation in enumerate(citations, start=1):
            print(f"[{number}] {citation}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download the official weights of metrics, unless they are here.

    Examples:
        rlpips weights fetch lpips-vgg elpips-squeeze
    """

    metrics: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="METRIC...", help_behavior_hint="")
    ] = ()
    """Names of metrics, such as lpips-vgg."""

    def run(self) -> int:
        if not self.metrics:
            raise WeightsNotFound("name the metrics to fetch, such as lpips-alex; 'rlpips weights list' shows all")
        recipes = [find(name) for name in self.metrics]
        for recipe in recipes:
            groups: set[str] = set()
            for part in recipe.parts:
                if groups.issuperset(part.holds):  # Heads of a tuned metric bring their backbone.
                    continue
                here = first(part, None)
                groups.update(store.obtain(part)[0])
                place = here or first(part, None)
                state = "is here" if here else "downloaded"
                print(f"{recipe.name}: {part.name} {state}: {place.path if place else 'not kept'}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Import:
    """Keep weights from files that are here: official ones, known by their sha256, or others that fit.

    Reads PyTorch checkpoints (.pth, .pt), E-LPIPS's .npy, and weight files of this library; needs no PyTorch.

    Examples:
        rlpips weights import alexnet-owt-7be5be79.pth
        rlpips weights import mine.pth --as lpips-alex --weights-dir weights/ --replace
    """

    files: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...", help_behavior_hint="")
    ] = ()
    """The files."""

    part: Annotated[
        str | None, tyro.conf.arg(name="as", metavar="PART", help_behavior_hint="(default: what alone fits)")
    ] = None
    """What a file is to be: a backbone (alex, vgg, squeeze) or the heads of a metric (as rlpips-alex)."""

    weights_dir: Annotated[Folder, tyro.conf.arg(help_behavior_hint="(default: the user cache)")] = None
    """Folder to keep them in; made if missing."""

    replace: Flag = False
    """Replace weights that are there already and differ."""

    def run(self) -> int:
        if not self.files:
            raise WeightsNotFound("name the files to import; 'rlpips weights list' shows which are official")
        if self.part is not None and len(self.files) > 1:
            raise WeightsMismatch(f"--as names what one file is, but there are {len(self.files)}: import one at a time")
        if self.part is not None and self.part not in parts():
            raise WeightsMismatch(f"--as {self.part}: there is no such part; there are {', '.join(parts())}")
        folder = self.weights_dir.expanduser() if self.weights_dir else store.cache_folder()
        for file in self.files:
            part, parameters, metadata, remark = _recognised(file, self.part)
            target = folder / (part.name + native.SUFFIX)
            verb = self._write(target, part, parameters, metadata)
            print(f"{file}: {part.name} ({remark}) {verb} {target}")
        return 0

    def _write(self, target: Path, part: Part, parameters: Parameters, metadata: dict[str, str]) -> str:
        if target.exists() and not self.replace:
            try:
                kept, _ = native.read(target, part.layout)
            except WeightsError:
                kept = None
            if kept is not None and digest(kept) == digest(parameters):
                return "was already kept as"
            raise WeightsMismatch(
                f"{target} exists already and {'is damaged' if kept is None else 'holds other weights'}; "
                "--replace writes over it"
            )
        # Heads can be loaded by their path as well, if they say of which metric they are.
        metric = {"metric": part.name} if part.name in recipes() else {}
        native.write(target, parameters, part.layout, **metadata | metric)
        return "kept as"


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read every weight file that is here, and check that it is whole and what it says it is.

    Checks the sha256 of all content, names and shapes, that every number is finite and no head is negative,
    and whether the parameters are the published ones, whose hash this library knows; of other files it tells what they
    claim to be. The exit status is 1 if a file is damaged or claims what is not so. Files of other programs that have
    an official name, but are not the official file, are listed; they are never read.

    Examples:
        rlpips weights verify
        rlpips weights verify --weights-dir runs/lin/    # says what a trained metric learnt from
    """

    weights_dir: Folder = None
    """Folder to look into first."""

    def run(self) -> int:
        rows = []
        damaged = []
        for found in _all(self.weights_dir):
            try:
                origin = verified(found)
            except (WeightsError, OSError) as error:
                damaged.append(str(error))
                rows.append((found.part.name, "damaged", found.kind, str(found.path)))
            else:
                rows.append((found.part.name, f"whole, {origin}", found.kind, str(found.path)))
        for part in parts().values():
            for path in store.passed_over(part):
                rows.append((part.name, "another file, not used", kind_of(path, self.weights_dir), str(path)))
        print(reports.table(("file", "state", "where", "path"), rows))
        for reason in damaged:
            say(reason)
        return 1 if damaged else 0


def _recognised(file: Path, name: str | None) -> tuple[Part, Parameters, dict[str, str], str]:
    """What a file is: its part, parameters, metadata to keep, and a remark on how that is known."""
    if not file.is_file():
        raise WeightsNotFound(f"{file} does not exist, or is no file")
    if file.suffix == native.SUFFIX:
        metadata = native.read_metadata(file)
        part, parameters = _fitting(
            file,
            [parts()[name]] if name else _named_inside(file, metadata),
            lambda part: native.read(file, part.layout)[0],
        )
        remark = metadata.get("source", "a weight file of this library")
        # The rest of the metadata is written anew.
        kept = {key: metadata[key] for key in KEPT if key in metadata}
        return part, parameters, kept, remark
    content = read_regular(file)
    tensors = read_checkpoint(file, keep=needed_by(BACKBONES.values()), content=content)
    official = store.identify(content, parts().values())
    if official and official.official and name in (None, official.name):
        parameters = from_pytorch(tensors, official.layout, str(file))
        return official, parameters, store.provenance(official.official), "the official file"
    part, parameters = _fitting(
        file,
        [parts()[name]] if name else list(parts().values()),
        lambda part: from_pytorch(tensors, part.layout, str(file)),
    )
    metadata = {"source": f"imported from {file.name}", "source_sha256": hashlib.sha256(content).hexdigest()}
    remark = "as told" if name else "it fits nothing else"
    if official:
        remark += f", though it is the official file of {official.name}"
    elif part.official:
        remark += "; not the official file"
    return part, parameters, metadata, remark


def _named_inside(file: Path, metadata: dict[str, str]) -> list[Part]:
    """The parts that a weight file of this library may be: the one its metadata or its name tells, or any."""
    try:
        first_part, *_ = find(metadata.get("metric", "")).parts
    except UnknownMetric:
        first_part = None
    told = first_part if first_part and first_part.holds != BACKBONE else parts().get(file.stem)
    return [told] if told else list(parts().values())


def _fitting(file: Path, candidates: list[Part], read: Callable[[Part], Parameters]) -> tuple[Part, Parameters]:
    """The only part that a file fits, and its parameters.

    Raises:
        WeightsMismatch: it fits none, or several.
    """
    fitting: list[tuple[Part, Parameters]] = []
    for part in candidates:
        try:
            parameters = read(part)
        except WeightsMismatch:
            if len(candidates) == 1:
                raise
            continue
        if set(part.holds) <= parameters.keys():
            fitting.append((part, parameters))
        elif len(candidates) == 1:
            raise WeightsMismatch(
                f"{file} holds {' and '.join(parameters)} alone, but '{part.name}' needs {' and '.join(part.holds)}"
            )
    if not fitting:
        raise WeightsMismatch(
            f"{file} fits none of {', '.join(part.name for part in candidates)}; --as PART tells why not PART"
        )
    if len(fitting) > 1:
        raise WeightsMismatch(
            f"{file} fits several: {', '.join(part.name for part, _ in fitting)}; say which by --as PART"
        )
    return fitting[0]


def _all(weights_dir: Path | None) -> Iterator[Found]:
    """Every weight file that this library would read, each once."""
    seen = set()
    for part in parts().values():
        for found in everywhere(part, weights_dir):
            if found.path not in seen:
                seen.add(found.path)
                yield found


ACTIONS: Mapping[str, type] = {"list": List, "fetch": Fetch, "import": Import, "verify": Verify}

Action = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Fetch, tyro.conf.subcommand("fetch")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)


@dataclass(frozen=True)
class Weights:
    """List, fetch, import and verify weights.

    Examples:
        rlpips weights list
        rlpips weights fetch lpips-vgg
        rlpips weights verify --help
    """

    actions: ClassVar[Mapping[str, type]] = ACTIONS

    action: Annotated[Action, tyro.conf.arg(name="")]
    """What to do."""

    def run(self) -> int:
        return self.action.run()
