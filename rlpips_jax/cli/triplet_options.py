"""Arguments of the subcommands that ask metrics about judged triplets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from rlpips_jax.cli.options import Folder, load_metric
from rlpips_jax.distances.lpips import DEFAULT
from rlpips_jax.distances.protocol import Metric, is_random
from rlpips_jax.ensemble import Ensemble
from rlpips_jax.errors import EnsembleError, TripletsError
from rlpips_jax.evaluation.distortions import DISTORTIONS
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
    PACKAGE.MODULE:NAME. May be given several times; files of one name are told apart by their folders'."""

    weights_dir: Folder = None
    """Folder to look for weights in first."""

    size: Annotated[
        int | None, tyro.conf.arg(metavar="PX", help_behavior_hint="(default: BAPPS 64, others as stored)")
    ] = None
    """Resize images in folders to this shorter side; height and width of patches of photographs."""

    split: str = "test"
    """Part of a folder of images and votes."""

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
    """Only the first N triplets of each set."""

    def sets(self) -> list[AnyTriplets]:
        """The triplets.

        Raises:
            TripletsError: there is no --data, or it cannot be read.
        """
        if not self.data:
            raise TripletsError(f"--data is missing; give judged triplets: {_forms()}")
        for name, number in (("limit", self.limit), ("count", self.count), ("size", self.size)):
            if number is not None and number < 1:
                raise TripletsError(f"--{name} must be 1 or more, got {number}")
        sets = [triplets for path in self.data for triplets in self._read(path)]
        _check_names("--data", "sets", [triplets.name for triplets in sets])
        for triplets in sets:
            if not len(triplets):
                raise TripletsError(f"{triplets.name} has no triplets")
        if self.limit is None:
            return sets
        return [triplets.select(np.arange(min(self.limit, len(triplets)))) for triplets in sets]

    def _read(self, path: Path) -> list[AnyTriplets]:
        source = TRIPLET_SOURCES[source_of(path)]
        teacher = None if self.teacher is None else self.certain(self.teacher, "--teacher")
        options = ReadOptions(
            size=self.size, split=self.split, count=self.count, kinds=self.kinds or None, teacher=teacher
        )
        sets = list(source.read(path, options))
        if self.size is None or not source.resizes:
            return sets
        return [replace(triplets, name=f"{triplets.name} at {self.size}") for triplets in sets]

    def metrics(self, *, random: bool = False) -> list[Any]:
        """The metrics, loaded: each a Metric or, where they may be random, an Ensemble.

        Raises:
            EnsembleError: one is an ensemble and may not be.
        """
        names = self.metric or (DEFAULT,)
        if random:
            metrics: list[Any] = [load_metric(name, self.weights_dir) for name in names]
        else:
            metrics = [self.certain(name, "--metric") for name in names]
        metrics = _told_apart(names, metrics)
        _check_names("--metric", "metrics", [metric.name for metric in metrics])
        return metrics

    def certain(self, name: str, option: str) -> Metric:
        """A metric that is not random.

        Raises:
            EnsembleError: it is an ensemble.
        """
        metric = load_metric(name, self.weights_dir)
        if is_random(metric):
            raise EnsembleError(f"{option} {name} is random, and a metric that is not is needed, such as lpips-alex")
        return metric


def _forms() -> str:
    """The forms of triplets that can be given."""
    return "; ".join(source.description for source in TRIPLET_SOURCES.values())


def _told_apart(given: Sequence[str], metrics: Sequence[Any]) -> list[Any]:
    """The metrics, those of a file that share their name with another under their folder's too."""
    names = [metric.name for metric in metrics]
    found = []
    for text, metric in zip(given, metrics, strict=True):
        if names.count(metric.name) > 1 and text.endswith(native.SUFFIX):
            metric = _renamed(metric, "/".join(Path(text.removeprefix(PREFIX)).absolute().with_suffix("").parts[-2:]))
        found.append(metric)
    return found


def _renamed(metric: Any, name: str) -> Any:
    inside = {"metric": replace(metric.metric, name=name)} if isinstance(metric, Ensemble) else {"name": name}
    return replace(metric, **inside)


def _check_names(option: str, what: str, names: list[str]) -> None:
    """Raises a TripletsError if a table could not tell two apart."""
    if len(set(names)) < len(names):
        raise TripletsError(
            f"{option}: {what} must differ in their names, got {', '.join(names)}; rename a file or a folder"
        )
