"""`score`: distances of any number of pairs of image files, as they come."""

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlpips_jax.arguments import whole_number
from rlpips_jax.distances.distance import check_metric
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.errors import EnsembleError, MetricError
from rlpips_jax.files.journal import Journal
from rlpips_jax.files.reading import AS_STORED, Reading
from rlpips_jax.scoring.all_pairs import AllPairs, score_all_pairs
from rlpips_jax.scoring.batches import Programs, score_pairs
from rlpips_jax.scoring.estimates import ESTIMATES, Sampling, score_estimates
from rlpips_jax.scoring.pairs import Pair, Result
from rlpips_jax.scoring.pixel_measures import MEASURES
from rlpips_jax.scoring.readers import Readers, cores, decode
from rlpips_jax.scoring.records import RecordForm, form_of, recorded_results

Files = tuple[str | os.PathLike[str], str | os.PathLike[str]]
"""Paths of a reference and of an image."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What the numbers of a set of pairs depend on beside the metric.

    Attributes:
        reading: how files are read.
        measures: further numbers of each pair: "psnr" (decibels, in [0, 1]), "ssim".
        sampling: how far a random metric is sampled; None refuses one.

    Raises:
        MetricError: an unknown measure.
    """

    reading: Reading = AS_STORED
    measures: tuple[str, ...] = ()
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.measures) - MEASURES.keys():
            raise MetricError(f"measures must be among {', '.join(MEASURES)}, got {', '.join(sorted(unknown))}")

    def columns(self, metric: Metric | RandomMetric) -> tuple[str, ...]:
        """The names of all that a result has beside its distance."""
        return (*ESTIMATES, *self.measures) if is_random(metric) else self.measures

    def signature(self, metric: Metric | RandomMetric) -> str:
        """The metric's signature, and after it what else numbers depend on, if it is not as usual."""
        sampling = self.sampling.words if self.sampling is not None and is_random(metric) else ""
        return ", ".join(filter(None, (metric.signature, self.reading.words, sampling)))


PLAIN = Scoring()
"""Files as they are, and their distances alone."""


def score(
    pairs: Iterable[Pair | Files] | AllPairs,
    metric: Metric | RandomMetric,
    *,
    scoring: Scoring = PLAIN,
    out: str | os.PathLike[str] | None = None,
    csv_safe: bool = False,
    workers: int | None = None,
    pause: Callable[[], object] = lambda: None,
) -> Generator[Result, None, None]:
    """The distance of each pair of image files, in the order of the pairs, in flat memory.

    Files are decoded ahead in processes of their own. Pairs of one size go through the network together; by a metric
    that is a `PaddedMetric` pairs of different sizes too, padded, with the padding left out of the number (1e-6). A
    pair that cannot be compared gives a `Result` with an error, and the rest goes on.

    Args:
        pairs: paths `(reference, image)`, or a `Pair` each; taken only a little ahead of what is computed, so there may
            be any number. Or `AllPairs`, where each image goes through the network once, while features fit into
            1 GiB.
        metric: any metric; used on images of uint8, or of floats in [0, 1] from files of 16 bits. A random one needs
            `scoring=Scoring(sampling=Sampling())`, and gives estimates, `result.measures["standard_error"]` with them.
        scoring: how files are read, and what is computed besides.
        out: a results file, JSON lines (.jsonl) or CSV (.csv). Results are safe on disk before they are given. What
            the file holds already, from an interrupted run, is given first and not computed again.
        csv_safe: write an apostrophe before texts of CSV that spreadsheets would take for formulas.
        workers: processes that decode files; 0 decodes in this one, None is one per core.
        pause: called often, between two steps and while files are awaited; what it raises ends the work.

    Returns:
        The results, a generator. To end it early, close it (`contextlib.closing`), which ends the processes.

    Raises:
        EnsembleError: the metric is random, and there is no `sampling`.
        MetricError: `workers` is not 0 or more; `out` has another suffix, or is not CSV, where that is to be safe.
        RlpipsError: `out` is of another metric or of other pairs, or another run is writing to it. It stays as it was.
        OSError: `out` cannot be written.
    """
    if is_random(metric) and scoring.sampling is None:
        raise EnsembleError(
            f"{metric.name} is random: pass scoring=Scoring(sampling=Sampling()) for estimates with their errors"
        )
    count = cores() if workers is None else whole_number("workers", workers, minimum=0, error=MetricError)
    form = None
    if out is not None:
        form = form_of(Path(out), csv_safe=csv_safe)(metric, scoring.signature(metric), scoring.columns(metric))
    return _results(pairs, metric, scoring, None if out is None else Path(out), form, count, pause)


class Scorer:
    """Scores one set after the other by the programs that the first ones had compiled; files are read in this process.

    Args:
        metric: as in `score`.
        scoring: as in `score`.
    """

    def __init__(self, metric: Metric | RandomMetric, scoring: Scoring = PLAIN) -> None:
        self._metric = metric
        self._scoring = scoring
        self._programs = None if is_random(metric) else Programs(check_metric(metric))

    def __call__(self, pairs: Iterable[Pair | Files] | AllPairs, *, first: int = 0) -> list[Result]:
        """The results of a set.

        Args:
            pairs: as in `score`.
            first: place of the first pair among all pairs, on which the draws of a random metric depend.
        """
        readers = Readers(0, functools.partial(decode, reading=self._scoring.reading))
        first = first if is_random(self._metric) else 0
        stream = map(_as_pair, pairs)
        parts = _parts(pairs, stream, self._metric, self._scoring, readers, first=first, programs=self._programs)
        return [result for part in parts for result in part]


def _results(
    pairs: Iterable[Pair | Files] | AllPairs,
    metric: Metric | RandomMetric,
    scoring: Scoring,
    out: Path | None,
    form: RecordForm | None,
    workers: int,
    pause: Callable[[], object],
) -> Generator[Result, None, None]:
    stream = map(_as_pair, pairs)
    count = 0
    with contextlib.ExitStack() as stack:
        journal = None
        if out is not None and form is not None:
            journal = stack.enter_context(Journal(out, form.header))
            for count, result in enumerate(recorded_results(journal, form, stream), start=1):  # noqa: B007
                yield result
        readers = Readers(workers, functools.partial(decode, reading=scoring.reading), pause=pause)
        stack.enter_context(readers)
        parts = _parts(pairs, stream, metric, scoring, readers, first=count, pause=pause)
        for part in stack.enter_context(contextlib.closing(parts)):
            if journal is not None and form is not None:
                journal.append("".join(map(form.line, part)))
            yield from part


def _parts(
    pairs: Iterable[Pair | Files] | AllPairs,
    stream: Iterator[Pair],
    metric: Metric | RandomMetric,
    scoring: Scoring,
    readers: Readers,
    *,
    first: int,
    programs: Programs | None = None,
    pause: Callable[[], object] = lambda: None,
) -> Generator[list[Result], None, None]:
    """The results of `stream`, which is `pairs` from the place `first` on, some at a time."""
    measures = scoring.measures
    if is_random(metric):
        sampling = scoring.sampling or Sampling()
        return score_estimates(stream, metric, readers, sampling=sampling, measures=measures, skip=first, pause=pause)
    if isinstance(pairs, AllPairs) and not measures:
        return score_all_pairs(pairs, check_metric(metric), readers, skip=first, pause=pause)
    # The measures of pixels need both images, not their features.
    return score_pairs(stream, check_metric(metric), readers, measures=measures, programs=programs, pause=pause)


def _as_pair(files: Pair | Files) -> Pair:
    return files if isinstance(files, Pair) else Pair(os.fspath(files[0]), os.fspath(files[1]))
