"""The judged triplets of a run: those that it learns from, and those that it is evaluated on."""

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
"""Default height and width of images that are made or resized; BAPPS's."""
TRAINING_SPLITS = ("train_traditional", "train_cnn", "train_mix")
VALIDATION_TRIPLETS = 600
"""Triplets of each sort to make from photographs for evaluation."""
VALIDATION_SPLITS = ("val_traditional", "val_cnn", "val_superres", "val_deblur", "val_color", "val_frameinterp")


class Origin(NamedTuple):
    """Where the triplets of a source come from.

    Attributes:
        group: the group of `training.step` to which the source belongs.
        described: their description in the model card, as JSON values.
        identity: identifies their content, so that a run resumes with the same triplets only.
    """

    group: str
    described: dict[str, Any]
    identity: str


class Sets(NamedTuple):
    """The triplets of a run.

    Attributes:
        sources: to learn from, by the groups of `training.step`: ordinal, judged, or both.
        validation: to evaluate on, by name.
        origins: of the sources.
    """

    sources: dict[str, tuple[Source, ...]]
    validation: dict[str, AnyTriplets]
    origins: tuple[Origin, ...] = ()

    @property
    def described(self) -> list[dict[str, Any]]:
        """The descriptions of the sources for the model card."""
        return [origin.described for origin in self.origins]

    @property
    def identities(self) -> list[str]:
        """The identities of the sources."""
        return [origin.identity for origin in self.origins]

    def only(self, groups: Collection[str]) -> "Sets":
        """The same without the sources of other groups."""
        sources = {group: self.sources[group] for group in self.sources if group in groups}
        return Sets(sources, self.validation, tuple(origin for origin in self.origins if origin.group in groups))


def sized(config: AnyTraining) -> AnyTraining:
    """The configuration with the size of its images; of images that are not square, the shorter side.

    Raises:
        TrainingError: the images of an `.npz` file have several sizes, or another size than was given.
        TripletsError: the file cannot be read.
    """
    size = SIZE if config.size is None else config.size
    if config.data not in ("bapps", "photographs") and Path(config.data).is_file():
        shapes = [summary.shape for summary in triplet_files.summarise_npz(config.data).values()]
        # Arrays that are not images are refused where they are read.
        sizes = sorted({min(shape[1:3]) for shape in shapes if len(shape) == 4})
        if len(sizes) > 1:
            raise TrainingError(f"{config.data} has images of {', '.join(map(str, sizes))} pixels; one size is needed")
        size = sizes[0] if sizes else size
        if config.size not in (None, size):
            raise TrainingError(
                f"--size is {config.size}, but the images of {config.data} have {size} pixels, and are not "
                f"resized; give --size {size}, or leave the option out"
            )
    return dataclasses.replace(config, size=size)


def load_sets(config: Training) -> Sets:
    """Reads or makes the triplets that a configuration names.

    Raises:
        TrainingError: it names none, or the images of an `.npz` file have another size.
        TripletsError: they cannot be read.
    """
    config = sized(config)
    if config.data == "bapps":
        return _bapps(config)
    groups: dict[str, tuple[Source, ...]] = {}
    origins = []
    file = {"file_sha256": sha256_of(Path(config.data))} if Path(config.data).is_file() else {}
    learnt = [(triplets, file) for triplets in _learnt(config)] + [(triplets, {}) for triplets in _votes(config)]
    for triplets, of_file in learnt:
        # One distortion at two strengths: the order is beyond doubt in every triplet.
        certain = triplets.sure is None and bool(np.isin(triplets.judgment, (0, 1)).all())
        ordinal = certain and set(triplets.kinds) <= DISTORTIONS.keys()
        group = ORDINAL if ordinal else JUDGED
        groups[group] = (*groups.get(group, ()), MemorySource(triplets))
        described = {"triplets": f"{len(triplets)} of {triplets.name}", "source": _by_names(triplets.source)} | of_file
        origins.append(Origin(group, described, _identity(triplets)))
    return Sets(groups, _validation(config), tuple(origins))


def _by_names(source: Mapping[str, Any]) -> dict[str, Any]:
    """The origin of triplets, with files and folders by name, without their paths."""
    plain = {}
    for name, value in source.items():
        if isinstance(value, Mapping):
            plain[name] = _by_names(value)
        else:
            plain[name] = Path(value).name if name in ("file", "folder") else value
    return plain


def _identity(triplets: AnyTriplets) -> str:
    """Identifies the content of triplets, alike on every machine."""
    teacher = triplets.source.get("teacher")
    if teacher is None:
        return str(triplets.source.get("sha256"))
    # Processors differ in the last bits of a teacher's judgments; the images and the teacher determine them.
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


def _votes(config: Training) -> list[AnyTriplets]:
    """What --votes adds to the judged triplets."""
    if config.votes is None:
        return []
    return [_at_most(triplets, config.triplets) for triplets in read(config.votes, size=config.size, split="train")]


def _validation(config: Training) -> dict[str, AnyTriplets]:
    """The validation sets that --validation names, by name."""
    if config.validation is None:
        return {}
    if source_of(config.validation) == "photographs":
        # Another seed, in case the photographs are the same.
        sets = _made(config, config.validation, config.validation_triplets or VALIDATION_TRIPLETS, config.seed + 1)
    else:
        size = None if config.validation.is_file() else config.size
        sets = read(config.validation, size=size, split="test")
    return {triplets.name: _at_most(triplets, config.validation_triplets) for triplets in sets}


def _at_most(triplets: AnyTriplets, most: int | None) -> AnyTriplets:
    """Triplets spread over the whole set, as its kinds may be in blocks."""
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
