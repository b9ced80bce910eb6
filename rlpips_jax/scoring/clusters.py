"""Sets of image files over a Ray cluster: `score_dataset` for Ray's data sets, `score_on_cluster` for lists of pairs.

Needs the extra "ray" (`pip install 'rlpips-jax[ray]'`). The metric is loaded once, by the process that calls; every
other process takes its parameters from Ray's object store, keeps them, and compiles for the scorer's few shapes, so
that nodes need no weights.
"""

import dataclasses
import importlib
import itertools
import os
import re
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rlpips_jax.arguments import whole_number
from rlpips_jax.distances.distance import check_metric
from rlpips_jax.distances.named import named
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.errors import EnsembleError, MetricError, RlpipsError
from rlpips_jax.scoring.all_pairs import AllPairs, Group
from rlpips_jax.scoring.file_scores import PLAIN, Scorer, Scoring
from rlpips_jax.scoring.pairs import Pair, Result
from rlpips_jax.scoring.parts import PartForm, Parts
from rlpips_jax.scoring.records import JsonLines

PAIRS = 512
"""Pairs of a part: enough to fill batches, few enough that a lost machine loses little."""

BLOCK = 64
"""Images along each side of a part of all pairs."""

RETRIES = 10
"""How often a part is computed again when the machine that computes it is lost."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What Ray sets aside for each process that scores, and thereby how many there are.

    Attributes:
        cpus: cores.
        gpus: accelerators, or a share of one.
    """

    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def options(self) -> dict[str, float]:
        """As Ray calls them."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


@runtime_checkable
class Dataset(Protocol):
    """What is asked of a `ray.data.Dataset`."""

    def map_batches(self, fn: type, **options: object) -> Any:
        """The data set with what a class makes of its batches."""
        ...


def score_dataset(
    dataset: Dataset,
    metric: Metric | RandomMetric | str,
    *,
    scoring: Scoring = PLAIN,
    actors: int | tuple[int, int] = (1, 1 << 10),
    resources: Resources | None = None,
    batch_size: int = PAIRS,
) -> Any:
    """A data set of Ray's with the distance of each of its pairs: lazy, as all of Ray's are.

    Args:
        dataset: a `ray.data.Dataset` with the columns `reference` and `image`: paths that every node can read, or
            addresses that pyarrow opens, such as "s3://bucket/a.png". Further columns stay.
        metric: any metric, or the name of one. A random one needs `scoring=Scoring(sampling=Sampling())`, and the
            column `place`, a number that no other pair has, on which its draws depend.
        scoring: how files are read, and what is computed besides.
        actors: processes that score, or the smallest and largest number of them.
        resources: of each; by default one core.
        batch_size: pairs that are given to a process together.

    Returns:
        A `ray.data.Dataset` with the further columns `distance` (NaN where there is none), `error` (empty where there
        is a distance) and those of `scoring`.

    Raises:
        RlpipsError: Ray is not installed.
        EnsembleError: the metric is random, and there is no `sampling`.
        MetricError: `batch_size` is not 1 or more.
    """
    ray, data = find_ray(), find_ray("ray.data")
    metric = _checked(metric, scoring)
    size = whole_number("batch_size", batch_size, minimum=1, error=MetricError)
    pool = (actors, actors) if isinstance(actors, int) else actors
    return dataset.map_batches(
        _PairScorer,
        fn_constructor_args=([ray.put(metric)], scoring),
        batch_size=size,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(min_size=pool[0], max_size=pool[1]),
        **(resources or Resources()).options,
    )


def score_on_cluster(
    pairs: Iterable[Pair] | AllPairs,
    metric: Metric | RandomMetric | str,
    out: str | os.PathLike[str],
    *,
    scoring: Scoring = PLAIN,
    form: PartForm = "jsonl",
    resources: Resources | None = None,
) -> Generator[list[Result], None, None]:
    """The distances of pairs of files, computed in parts by all nodes of a cluster, and kept in a folder.

    Ray must be connected (`ray.init`), or starts on this machine. A part whose node is lost is computed again on
    another. Run again after an interruption, the same call gives what is there and computes the parts that are missing.

    Args:
        pairs: taken only a little ahead of what is computed, so there may be any number. Of `AllPairs`, a part holds
            the pairs of 64 images with 64 others, whose features no machine has to keep all of.
        metric: any metric, or the name of one. A random one needs `scoring=Scoring(sampling=Sampling())`.
        out: a folder that all nodes share, of files `part-000000.jsonl` or `.parquet`: one row per pair, in the order
            of the pairs, an error where there is no distance. Their columns are those of `score`'s files.
        scoring: how files are read, and what is computed besides.
        form: of the files.
        resources: of each process; by default one core.

    Returns:
        The results of each part as it is done, in any order; a generator.

    Raises:
        RlpipsError: Ray is not installed; or `out` is of another run, or damaged.
        EnsembleError: the metric is random, and there is no `sampling`.
        OSError: `out` cannot be written.
    """
    ray = find_ray()
    metric = _checked(metric, scoring)
    columns = scoring.columns(metric)
    cut = f"{BLOCK}x{BLOCK} images" if isinstance(pairs, AllPairs) else f"{PAIRS} pairs"
    lines = JsonLines(metric, scoring.signature(metric), columns)
    parts = Parts(Path(out).absolute(), form, lines, columns, cut)
    parts.begin()
    return _computed(ray, parts, _cut(pairs), metric, scoring, resources or Resources())


def _computed(
    ray: Any,
    parts: Parts,
    cut: Iterator[tuple[int, list[Pair] | AllPairs]],
    metric: Metric | RandomMetric,
    scoring: Scoring,
    resources: Resources,
) -> Generator[list[Result], None, None]:
    """The results of all parts, of which a few more than the cluster can compute are in its queue."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    task = ray.remote(max_retries=RETRIES, **resources.options)(_score_part)
    kept = ray.put(metric)
    running: set[Any] = set()

    def done(most: int) -> Iterator[list[Result]]:
        """Results of parts until at most so many are left."""
        while len(running) > most:
            (first,), _ = ray.wait(list(running), num_returns=1)
            running.remove(first)
            yield ray.get(first)

    try:
        for number, (first, part) in enumerate(cut):
            found = parts.recorded(number, part)
            if found is not None:
                yield found
                continue
            # In a list, or Ray would unpack it anew for each part.
            running.add(task.remote([kept], scoring, parts, number, part, first))
            yield from done(2 * _places(ray, resources))
        yield from done(0)
    finally:
        for one in running:
            ray.cancel(one)


def _places(ray: Any, resources: Resources) -> int:
    """How many parts the cluster can compute at once; nodes come and go."""
    there = ray.cluster_resources()
    needed = {"CPU": resources.cpus, "GPU": resources.gpus}
    return max(1, int(min(there.get(name, 0) / each for name, each in needed.items() if each)))


def _cut(pairs: Iterable[Pair] | AllPairs) -> Iterator[tuple[int, list[Pair] | AllPairs]]:
    """The parts, and the place of the first pair of each among all."""
    if not isinstance(pairs, AllPairs):
        stream = iter(pairs)
        for first in itertools.count(0, PAIRS):
            part = list(itertools.islice(stream, PAIRS))
            if not part:
                return
            yield first, part
    else:
        first = 0
        for part in _blocks(pairs):
            yield first, part
            first += len(part)


def _blocks(pairs: AllPairs) -> Iterator[AllPairs]:
    """All pairs, cut into those of a few images with a few others."""
    if pairs.unreadable:
        yield AllPairs(pairs.unreadable, [])
    for group in pairs.groups:
        paths, split = group.paths, group.split
        if split is None:
            rows = columns = [paths[at : at + BLOCK] for at in range(0, len(paths), BLOCK)]
        else:
            rows = [paths[at : min(at + BLOCK, split)] for at in range(0, split, BLOCK)]
            columns = [paths[at : at + BLOCK] for at in range(split, len(paths), BLOCK)]
        for number, row in enumerate(rows):
            if split is None and len(row) > 1:
                yield AllPairs([], [Group(group.size, row)])
            for column in columns[number + 1 :] if split is None else columns:
                yield AllPairs([], [Group(group.size, row + column, len(row))])


_scorers: dict[Any, Scorer] = {}
"""Of this process, with the metric and the scoring that they were made for."""


def _score_part(
    kept: list[Any], scoring: Scoring, parts: Parts, number: int, pairs: list[Pair] | AllPairs, first: int
) -> list[Result]:
    """Computes a part, in a process of a node, and writes it."""
    results = _scored(_scorer(kept[0], scoring), pairs, first)
    names = [(pair.reference, pair.image) for pair in pairs]
    assert [(result.reference, result.image) for result in results] == names
    parts.write(number, results)
    return results


def _scorer(kept: Any, scoring: Scoring) -> Scorer:
    """The scorer of this process for a metric in the object store."""
    place = kept.hex(), scoring
    if place not in _scorers:
        _scorers.clear()
        _scorers[place] = Scorer(find_ray().get(kept), scoring)
    return _scorers[place]


class _PairScorer:
    """What an actor of `score_dataset` does with a batch."""

    def __init__(self, kept: list[Any], scoring: Scoring) -> None:
        metric = find_ray().get(kept[0])
        self._score = Scorer(metric, scoring)
        self._columns = scoring.columns(metric)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        pairs = [Pair(str(x), str(y)) for x, y in zip(batch["reference"], batch["image"], strict=True)]
        if "place" in batch:
            places = map(int, batch["place"])
            results = [_scored(self._score, [pair], at)[0] for pair, at in zip(pairs, places, strict=True)]
        else:
            results = _scored(self._score, pairs)
        nan = np.float64("nan")
        found = {
            "distance": np.array([nan if r.distance is None else r.distance for r in results], np.float64),
            "error": np.array([r.error or "" for r in results]),
        }
        for name in self._columns:
            found[name] = np.array([r.measures.get(name, nan) for r in results], np.float64)
        return batch | found


def _scored(score: Scorer, pairs: list[Pair] | AllPairs, first: int = 0) -> list[Result]:
    """The results of pairs, whose files at addresses such as s3://bucket/a.png are on this machine for the moment."""
    if isinstance(pairs, AllPairs) or not any("://" in path for pair in pairs for path in pair.paths):
        return score(pairs, first=first)
    with tempfile.TemporaryDirectory() as folder:
        brought: dict[str, str] = {}
        results = score([_brought(pair, Path(folder), brought) for pair in pairs], first=first)
    address = {here: path for path, here in brought.items()}
    names = re.compile("|".join(map(re.escape, address)))
    return [
        dataclasses.replace(result, error=names.sub(lambda found: address[found[0]], result.error))
        if result.error
        else result
        for result in results
    ]


def _brought(pair: Pair, folder: Path, brought: dict[str, str]) -> Pair:
    """A pair of files on this machine under its own names; one with an error where a file cannot be had."""
    from pyarrow import fs

    for path in pair.paths:
        if path in brought:
            continue
        if "://" not in path:
            brought[path] = path
            continue
        here = folder / f"{len(brought)}{Path(path).suffix}"
        try:
            system, place = fs.FileSystem.from_uri(path)
            with system.open_input_stream(place) as source:
                here.write_bytes(source.read())
        except (OSError, ValueError) as error:
            return dataclasses.replace(pair, error=f"{path} cannot be read: {error}", files=None)
        brought[path] = str(here)
    files = tuple(brought[path] for path in pair.paths)
    return dataclasses.replace(pair, files=(files[0], files[1])) if files else pair


def _checked(metric: Metric | RandomMetric | str, scoring: Scoring) -> Metric | RandomMetric:
    """The metric, if `scoring` fits it."""
    if isinstance(metric, str):
        metric = named(metric)
    if not is_random(metric):
        return check_metric(metric)
    if scoring.sampling is None:
        raise EnsembleError(
            f"{metric.name} is random: pass scoring=Scoring(sampling=Sampling()) for estimates with their errors"
        )
    return metric


def find_ray(module: str = "ray") -> Any:
    """One of Ray's modules.

    Raises:
        RlpipsError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RlpipsError(f"a cluster needs Ray: pip install 'rlpips-jax[ray]' ({error})") from error
