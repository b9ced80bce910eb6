"""`score`: distances of any number of pairs of image files, as they come."""

import contextlib
import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from rlpips_jax.arguments import whole_number
from rlpips_jax.distances.protocol import Metric, is_random
from rlpips_jax.errors import EnsembleError, MetricError
from rlpips_jax.files.journal import Journal
from rlpips_jax.scoring.all_pairs import AllPairs, score_all_pairs
from rlpips_jax.scoring.batches import score_pairs
from rlpips_jax.scoring.pairs import Pair, Result
from rlpips_jax.scoring.readers import Readers, cores
from rlpips_jax.scoring.records import RecordForm, form_of, recorded_results

Files = tuple[str | os.PathLike[str], str | os.PathLike[str]]
"""Paths of a reference and of an image."""


def score(
    pairs: Iterable[Pair | Files] | AllPairs,
    metric: Metric,
    *,
    out: str | os.PathLike[str] | None = None,
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
        metric: any metric that is not random; used on images of uint8, or of floats in [0, 1] from files of 16 bits.
        out: a results file, JSON lines (.jsonl) or CSV (.csv). Results are safe on disk before they are given. What
            the file holds already, from an interrupted run, is given first and not computed again.
        workers: processes that decode files; 0 decodes in this one, None is one per core.
        pause: called often, between two steps and while files are awaited; what it raises ends the work.

    Returns:
        The results, a generator. To end it early, close it (`contextlib.closing`), which ends the processes.

    Raises:
        EnsembleError: the metric is random.
        MetricError: `workers` is not 0 or more; `out` has another suffix.
        RlpipsError: `out` is of another metric or of other pairs, or another run is writing to it. It stays as it was.
        OSError: `out` cannot be written.
    """
    if is_random(metric):
        raise EnsembleError(f"{metric.name} is random; score takes metrics that are not, such as 'lpips-alex'")
    count = cores() if workers is None else whole_number("workers", workers, minimum=0, error=MetricError)
    form = None if out is None else form_of(Path(out))(metric)
    return _results(pairs, metric, None if out is None else Path(out), form, count, pause)


def _results(
    pairs: Iterable[Pair | Files] | AllPairs,
    metric: Metric,
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
        readers = stack.enter_context(Readers(workers, pause=pause))
        if isinstance(pairs, AllPairs):
            parts = score_all_pairs(pairs, metric, readers, skip=count, pause=pause)
        else:
            parts = score_pairs(stream, metric, readers, pause=pause)
        for part in stack.enter_context(contextlib.closing(parts)):
            if journal is not None and form is not None:
                journal.append("".join(map(form.line, part)))
            yield from part


def _as_pair(files: Pair | Files) -> Pair:
    return files if isinstance(files, Pair) else Pair(os.fspath(files[0]), os.fspath(files[1]))
