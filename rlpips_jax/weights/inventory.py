"""Which weights of each metric are on this machine, where, and whether they are whole."""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rlpips_jax.errors import WeightsCorrupt, WeightsError
from rlpips_jax.weights import native, store
from rlpips_jax.weights.download import megabytes, sha256_of
from rlpips_jax.weights.pickle_reader import printable
from rlpips_jax.weights.registry import Official, Part, Recipe

OFFICIAL = "official"
"""The origin of parameters whose digest is that of the published ones."""


@dataclass(frozen=True)
class Found:
    """A file that holds a part.

    Attributes:
        part: what it holds.
        path: where it lies.
        kind: what sort of place that is, in a word or two.
        origin: whose parameters they are, where that was looked at: `OFFICIAL`, or what the file claims.
    """

    part: Part
    path: Path
    kind: str
    origin: str = ""


@dataclass(frozen=True)
class Availability:
    """How a metric could be loaded now.

    Attributes:
        found: the files that would be read.
        to_download: official files of the parts that are not here.
        missing: parts that are not here and have no download.
        damage: why the metric cannot be loaded, although there are files.
    """

    found: tuple[Found, ...] = ()
    to_download: tuple[Official, ...] = ()
    missing: tuple[Part, ...] = ()
    damage: str | None = None

    @property
    def ready(self) -> bool:
        return self.damage is None and not self.to_download and not self.missing

    @property
    def state(self) -> str:
        if self.damage:
            return "damaged"
        if self.missing:
            return "not here"
        if self.to_download:
            return f"download {megabytes(sum(official.size for official in self.to_download))}"
        return "ready"

    @property
    def places(self) -> str:
        """Where the files lie, or why the metric cannot be loaded."""
        if self.damage:
            return self.damage
        if any(part.converted for part in self.missing):
            return "python -m convert makes it of a file that you have: docs/embeddings.md"
        if self.missing:
            return "it ships with this library, so the installation is incomplete: install rlpips-jax again"
        return ", ".join(
            f"{found.part.name}: {found.kind}" + (f" ({found.origin})" if found.origin != OFFICIAL else "")
            for found in self.found
        )


def availability(recipe: Recipe, weights_dir: Path | None) -> Availability:
    """Looks for the files that `rlpips_jax.load` would read, and reads them; downloads nothing."""
    found, to_download, missing = [], [], []
    try:
        for part in _needed(recipe, weights_dir):
            if place := first(part, weights_dir):
                found.append(replace(place, origin=_verified_once(place, place.path.stat().st_mtime_ns)))
            elif part.official:
                to_download.append(part.official)
            else:
                missing.append(part)
    except (WeightsError, OSError) as error:
        return Availability(damage=str(error))
    return Availability(tuple(found), tuple(to_download), tuple(missing))


def _needed(recipe: Recipe, weights_dir: Path | None) -> Iterator[Part]:
    """The parts of a metric. One may bring the groups of a later one, which only its file can tell."""
    groups: set[str] = set()
    for part in recipe.parts:
        if groups.issuperset(part.holds):
            continue
        yield part
        path = store.locate(part, weights_dir) if part is not recipe.parts[-1] else None
        if path and path.suffix == native.SUFFIX:
            groups.update(store.read(path, part)[0])
        groups.update(part.holds)


def first(part: Part, weights_dir: Path | None) -> Found | None:
    """The file of a part that would be read."""
    return next(everywhere(part, weights_dir), None)


def everywhere(part: Part, weights_dir: Path | None) -> Iterator[Found]:
    """Every file of a part, in search order."""
    for path in store.candidates(part, weights_dir):
        if path.is_file():
            yield Found(part, path, kind_of(path, weights_dir))


def places(weights_dir: Path | None) -> list[tuple[str, Path]]:
    """The folders that are searched, by the words that stand for them."""
    folders = {
        "--weights-dir": weights_dir,
        f"${store.WEIGHTS_DIR}": os.environ.get(store.WEIGHTS_DIR),
        "shipped": store.SHIPPED,
        "cache": store.cache_folder(),
        "torch cache": store.torch_cache_folder(),
    }
    return [(kind, Path(folder).expanduser()) for kind, folder in folders.items() if folder]


def kind_of(path: Path, weights_dir: Path | None) -> str:
    """The sort of place where a file lies, in a word or two."""
    kinds = (kind for kind, folder in places(weights_dir) if path.is_relative_to(folder))
    return next(kinds, "lpips package")


def verified(found: Found) -> str:
    """The origin of a file, once it has been read and checked completely: `OFFICIAL`, or what the file claims.

    Raises:
        WeightsError: it is damaged, or not what it says it is.
        OSError: it cannot be read.
    """
    official = found.part.official
    if official and found.path.suffix != native.SUFFIX:
        if (digits := sha256_of(found.path)) != official.sha256:
            raise WeightsCorrupt(store.not_official(found.path, digits, official))
        return OFFICIAL
    _, metadata = store.read(found.path, found.part)
    if store.is_official(found.part, metadata):
        return OFFICIAL
    source, sha256 = metadata.get("source"), metadata.get("source_sha256", "not stated")
    if official and source == official.url and sha256 != official.sha256:
        raise WeightsCorrupt(
            f"{found.path} says it was made from {official.url}, but from a file with sha256 {printable(sha256)}, not "
            f"{official.sha256}; delete it and get it again"
        )
    source = source or _trained_on(metadata)
    return f"claims {printable(source)}" if source else "claims nothing of its origin"


def _trained_on(metadata: Mapping[str, str]) -> str:
    """The origin that the card of `python -m training` holds: steps, and what they learnt from; "" without a card."""
    try:
        card = json.loads(metadata["card"])
        data = " and ".join(str(part["triplets"]) for part in card["data"])
        return f"{card['steps']} steps of training on {data}"
    except (KeyError, TypeError, ValueError):
        return ""


@functools.lru_cache
def _verified_once(found: Found, modified: int) -> str:
    """`verified` of a file as it was at a time: several metrics share a network."""
    return verified(found)
