"""Options of the subcommands that evaluate metrics on judged triplets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from rlpips_jax.cli.options import Folder, load_metric
from rlpips_jax.distances.named import DEFAULT
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.errors import EnsembleError, TripletsError
from rlpips_jax.evaluation.distortions import DISTORTIONS
from rlpips_jax.evaluation.judged_pairs import JudgedPairs
from rlpips_jax.evaluation.pair_sources import read_pairs
from rlpips_jax.evaluation.sources import TRIPLET_SOURCES, ReadOptions, source_of
from rlpips_jax.evaluation.triplets import AnyTriplets
from rlpips_jax.loading import PREFIX
from rlpips_jax.weights import native


@dataclass(frozen=True, kw_only=True)
class TripletOptions:
    """Which triplets, and which metrics."""

    data: Annotated[
        tuple[Path, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="PATH", help_behavior_hint=lambda default: f"({_forms()})"),
    ]
    """Judged triplets. May be given several times."""

    metric: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="NAME", help_behavior_hint=f"(default: {DEFAULT})"),
    ] = ()
    """Name of a metric ('rlpips weights list' shows all), path of a .safetensors file, or your own metric as
    PACKAGE.MODULE:NAME. May be given several times; files with the same name are shown with their folders."""

    weights_dir: Folder = None
    """Folder to look for weights in first."""

    size: Annotated[
        int | None, tyro.conf.arg(metavar="PX", help_behavior_hint="(default: BAPPS 64, NIGHTS 224, others as stored)")
    ] = None
    """Resize images in folders to this shorter side; height and width of patches of photographs."""

    split: str = "test"
    """Part of a folder of images and votes, or of NIGHTS: train, val, test, test_imagenet or test_no_imagenet."""

    count: int = 600
    """Triplets made from a folder of photographs: two strengths of one distortion, of which the weaker is closer."""

    kinds: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="KIND [KIND ...]", help_behavior_hint=lambda default: f"(from {', '.join(DISTORTIONS)})"),
    ] = ()
    """Distortions to make triplets with, if not those that metrics are trained on."""

    teacher: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none)")] = None
    """Metric that judges as many triplets of two different distortions, also made from photographs."""

    limit: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Only the first N triplets, or pairs, of each set."""

    def sets(self, paths: Sequence[Path] | None = None) -> list[AnyTriplets]:
        """The triplets.

        Args:
            paths: some of --data; None for all.

        Raises:
            TripletsError: there is no --data, or it cannot be read.
        """
        if not self.data:
            raise TripletsError(f"--data is missing; give judged triplets: {_forms()}")
        self._check_numbers()
        sets = [triplets for path in (self.data if paths is None else paths) for triplets in self._read(path)]
        _check_names("--data", "sets", [triplets.name for triplets in sets])
        for triplets in sets:
            if not len(triplets):
                raise TripletsError(f"{triplets.name} has no triplets")
        if self.limit is None:
            return sets
        return [triplets.select(np.arange(min(self.limit, len(triplets)))) for triplets in sets]

    def pairs(self, paths: Sequence[Path]) -> list[JudgedPairs]:
        """The judged pairs in some of --data.

        Raises:
            TripletsError: they cannot be read.
        """
        self._check_numbers()
        sets = [read_pairs(path, size=self.size) for path in paths]
        if self.size is not None:
            sets = [replace(pairs, name=f"{pairs.name} at {self.size}") for pairs in sets]
        _check_names("--data", "sets", [pairs.name for pairs in sets])
        if self.limit is None:
            return sets
        return [pairs.select(np.arange(min(self.limit, len(pairs)))) for pairs in sets]

    def _check_numbers(self) -> None:
        for name, number in (("limit", self.limit), ("count", self.count), ("size", self.size)):
            if number is not None and number < 1:
                raise TripletsError(f"--{name} must be 1 or more, got {number}")

    def _read(self, path: Path) -> list[AnyTriplets]:
        source = TRIPLET_SOURCES[source_of(path)]
        options = ReadOptions(
            size=self.size, split=self.split, count=self.count, kinds=self.kinds or None, teacher=self._teacher()
        )
        sets = list(source.read(path, options))
        if self.size is None or not source.resizes:
            return sets
        return [replace(triplets, name=f"{triplets.name} at {self.size}") for triplets in sets]

    def metrics(self) -> dict[str, Metric | RandomMetric]:
        """The metrics by their labels: their names, or folder and name for files with the same name.

        Raises:
            TripletsError: two have the same label.
        """
        names = self.metric or (DEFAULT,)
        metrics: list[Any] = [load_metric(name, self.weights_dir) for name in names]
        plain = [metric.name for metric in metrics]
        labels = [
            _label(given, name) if plain.count(name) > 1 else name for given, name in zip(names, plain, strict=True)
        ]
        _check_names("--metric", "metrics", labels)
        return dict(zip(labels, metrics, strict=True))

    def _teacher(self) -> Metric | None:
        """The metric of --teacher, if there is one.

        Raises:
            EnsembleError: it is randomised.
        """
        if self.teacher is None:
            return None
        metric = load_metric(self.teacher, self.weights_dir)
        if is_random(metric):
            raise EnsembleError(
                f"--teacher {self.teacher} is randomised; a metric without random draws is needed, such as lpips-alex"
            )
        return metric


def _forms() -> str:
    """The forms of triplets that can be given."""
    return "; ".join(source.description for source in TRIPLET_SOURCES.values())


def _label(given: str, name: str) -> str:
    """Folder and name of a weight file, by which it differs from another of the same name."""
    if not given.endswith(native.SUFFIX):
        return name
    prefix = PREFIX if given.startswith(PREFIX) else ""
    return prefix + "/".join(Path(given.removeprefix(PREFIX)).absolute().with_suffix("").parts[-2:])


def _check_names(option: str, what: str, names: list[str]) -> None:
    """Raises a TripletsError if two have the same name in a table."""
    if len(set(names)) < len(names):
        raise TripletsError(
            f"{option}: {what} must have different names, got {', '.join(names)}; rename a file or a folder"
        )
