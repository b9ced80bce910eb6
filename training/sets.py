"""The judged triplets of a run: what it learns from, and what it is evaluated on."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

import rlpips_jax as rl
from rlpips_jax.errors import TrainingError
from rlpips_jax.evaluation import triplet_files
from rlpips_jax.evaluation.distortions import DISTORTIONS
from rlpips_jax.evaluation.sources import read, source_of
from rlpips_jax.evaluation.triplets import AnyTriplets, crossed, ordinal
from rlpips_jax.files.array_hash import array_hash
from rlpips_jax.weights.download import sha256_of
from training.config import Training
from training.data.sources import MemorySource, RecordSource, Source, materialise
from training.step import JUDGED, ORDINAL

AnyTraining = TypeVar("AnyTraining", bound=Training)

SIZE = 64
"""Height and width of images that are made or resized, where none is given: BAPPS's."""
TRAINING_SPLITS = ("train_traditional", "train_cnn", "train_mix")
VALIDATION_TRIPLETS = 600
"""Triplets of each sort that are made of photographs to evaluate on."""
VALIDATION_SPLITS = ("val_traditional", "val_cnn", "val_superres", "val_deblur", "val_color", "val_frameinterp")


class Origin(NamedTuple):
    """Where the triplets of a source come from.

    Attributes:
        group: of `training.step`, to which the source belongs.
        described: what they are, for the model card, as JSON has it.
        identity: what tells their content from others', for going on with the same.
    """

    group: str
    described: dict[str, Any]
    identity: str


class Sets(NamedTuple):
    """What a run is about.

    Attributes:
        sources: to learn from, by `training.step`'s groups: ordinal ones, judged ones, or both.
        validation: to evaluate on, by their names.
        origins: of the sources.
    """

    sources: dict[str, tuple[Source, ...]]
    validation: dict[str, AnyTriplets]
    origins: tuple[Origin, ...] = ()

    @property
    def described(self) -> list[dict[str, Any]]:
        """What the sources are, for the model card."""
        return [origin.described for origin in self.origins]

    @property
    def identities(self) -> list[str]:
        """What tells the sources from others."""
        return [origin.identity for origin in self.origins]

    def only(self, groups: Collection[str]) -> "Sets":
        """Without the sources of other groups."""
        sources = {group: self.sources[group] for group in self.sources if group in groups}
        return Sets(sources, self.validation, tuple(origin for origin in self.origins if origin.group in groups))


def sized(config: AnyTraining) -> AnyTraining:
    """The configuration with the size that its images have; of images that are no squares, the shorter side.

    Raises:
        TrainingError: the images of an `.npz` file have another size than was given, or several.
        TripletsError: the file cannot be read.
    """
    size = SIZE if config.size is None else config.size
    if config.data not in ("bapps", "photographs") and Path(config.data).is_file():
        shapes = [summary.shape for summary in triplet_files.summarise_npz(config.data).values()]
        # Whoever reads what is no images says so.
        sizes = sorted({min(shape[1:3]) for shape in shapes if len(shape) == 4})
        if len(sizes) > 1:
            raise TrainingError(f"{config.data} has images of {', '.join(map(str, sizes))} pixels; one size is needed")
        size = sizes[0] if sizes else size
        if config.size not in (None, size):
            raise TrainingError(
                f"--size is {config.size}, but the images of {config.data} have {size} pixels, and are taken as they "
                f"are; give --size {size}, or none"
            )
    return dataclasses.replace(config, size=size)


def load_sets(config: Training) -> Sets:
    """Reads or makes the triplets that a configuration names.

    Raises:
        TrainingError: it names none, or the images of an `.npz` file have another size than it.
        TripletsError: they cannot be read.
    """
    config = sized(config)
    if config.data == "bapps":
        return _bapps(config)
    groups: dict[str, tuple[Source, ...]] = {}
    origins = []
    file = {"file_sha256": sha256_of(Path(config.data))} if Path(config.data).is_file() else {}
    for triplets in _learnt(config):
        # One distortion at two strengths, about whose order there is no doubt anywhere.
        certain = triplets.sure is None and bool(np.isin(triplets.judgment, (0, 1)).all())
        ordinal = certain and set(triplets.kinds) <= DISTORTIONS.keys()
        group = ORDINAL if ordinal else JUDGED
        groups[group] = (*groups.get(group, ()), MemorySource(triplets))
        described = {"triplets": f"{len(triplets)} of {triplets.name}", "source": _by_names(triplets.source)} | file
        origins.append(Origin(group, described, _identity(triplets)))
    return Sets(groups, _validation(config), tuple(origins))


def _by_names(source: Mapping[str, Any]) -> dict[str, Any]:
    """Where triplets come from, with files and folders by their names alone."""
    plain = {}
    for name, value in source.items():
        if isinstance(value, Mapping):
            plain[name] = _by_names(value)
        else:
            plain[name] = Path(value).name if name in ("file", "folder") else value
    return plain


def _identity(triplets: AnyTriplets) -> str:
    """What tells triplets from others, on every machine alike."""
    teacher = triplets.source.get("teacher")
    if teacher is None:
        return str(triplets.source.get("sha256"))
    # Processors differ in the last bits of opinions that are computed here; who holds them says as much.
    return f"{array_hash(triplets.reference, triplets.p0, triplets.p1, labels=triplets.kinds)} by {teacher}"


def _bapps(config: Training) -> Sets:
    # TensorFlow Datasets takes seconds to import, and only BAPPS needs it.
    from training.data.bapps.bapps_dataset_builder import prepare

    folder = prepare(config.data_dir.expanduser(), manual_dir=config.manual_dir)
    splits = config.split or TRAINING_SPLITS
    sources = tuple(RecordSource(folder, split, size=config.size) for split in splits)
    validation = _validation(config)
    if config.validation is None:
        validation = {
            split.removeprefix("val_"): _at_most(
                materialise(RecordSource(folder, split, size=config.size)), config.validation_triplets
            )
            for split in VALIDATION_SPLITS
        }
    origins = tuple(
        Origin(JUDGED, {"triplets": f"{len(source)} of BAPPS {split}"}, f"{split}: {len(source)}")
        for split, source in zip(splits, sources, strict=True)
    )
    return Sets({JUDGED: sources}, validation, origins)


def _learnt(config: Training) -> Sequence[AnyTriplets]:
    if config.data != "photographs":
        if len(config.split) > 1:
            raise TrainingError(f"--split names one part of {config.data}, not {len(config.split)}")
        return read(config.data, size=config.size, split=config.split[0] if config.split else "train")
    if config.photographs is None:
        raise TrainingError("--data photographs needs --photographs, a folder of them; or give --data bapps or a path")
    return _made(config, config.photographs, config.triplets, config.seed)


def _validation(config: Training) -> dict[str, AnyTriplets]:
    """The validation sets that --validation names, by their names."""
    if config.validation is None:
        return {}
    if source_of(config.validation) == "photographs":
        # A seed of its own, though the photographs should be others too.
        sets = _made(config, config.validation, config.validation_triplets or VALIDATION_TRIPLETS, config.seed + 1)
    else:
        size = None if config.validation.is_file() else config.size
        sets = read(config.validation, size=size, split="test")
    return {triplets.name: _at_most(triplets, config.validation_triplets) for triplets in sets}


def _at_most(triplets: AnyTriplets, most: int | None) -> AnyTriplets:
    """Triplets spread over the whole set, whose kinds may come one after another."""
    if most is None or len(triplets) <= most:
        return triplets
    return triplets.select(np.linspace(0, len(triplets) - 1, most).astype(int))


def _made(config: Training, folder: Path, count: int, seed: int) -> list[AnyTriplets]:
    teacher = rl.load(config.teacher, weights_dir=config.weights_dir)
    size = SIZE if config.size is None else config.size
    made = [
        ordinal(folder, count, seed=2 * seed, size=size),
        crossed(folder, count, seed=2 * seed + 1, size=size, teacher=teacher),
    ]
    return [dataclasses.replace(triplets, name=f"{Path(folder).name} {triplets.name}") for triplets in made]
