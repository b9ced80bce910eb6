"""`rlpips distance`: of images to a reference, or of the pairs in two folders, in a list or in one folder."""

import contextlib
import io
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from rlpips_jax import reports
from rlpips_jax.cli import all_pairs, interrupts, pair_lists, say
from rlpips_jax.cli.all_pairs import AllPairs
from rlpips_jax.cli.options import Folder, MetricOptions
from rlpips_jax.distances.lpips import Metric
from rlpips_jax.errors import ImageFileError, MetricError
from rlpips_jax.scoring.batches import Pair, Result, score
from rlpips_jax.scoring.readers import Readers, cores
from rlpips_jax.scoring.records import CsvRows, JsonLines, PlainRows, Printed, Recorded, form_of

Sink = Callable[[list[Result]], object]


@dataclass(frozen=True, kw_only=True)
class Distance(MetricOptions):
    """Print the distance of each image to a reference, or of each pair in folders or in a list.

    A file that cannot be compared is reported on stderr and in the results, and the exit status is 1.
    """

    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="REF IMAGE...", help_behavior_hint="")
    ] = ()
    """The reference, then the images to compare with it."""

    dirs: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="REFS IMAGES", help_behavior_hint="")] = None
    """Two folders, in place of REF IMAGE: compares what has the same path in both, also in their folders."""

    pairs: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A CSV file, in place of REF IMAGE: a row for each pair, the paths of the reference and of the image; a first row
    'reference,image' is a header. Relative paths start at the current directory. May have any number of rows."""

    all_pairs: Annotated[Folder, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """A folder, in place of REF IMAGE: compares every two images of one size in it, also in its folders."""

    json: bool = False
    """Print one JSON object, distances with all their digits."""

    jsonl: bool = False
    """Print JSON lines as results come: a header with the signature, then an object for each pair."""

    csv: bool = False
    """Print CSV with a header as results come, distances with all their digits."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write JSON lines (.jsonl) or CSV (.csv) to this file. Interrupted, the same command goes on where it stood."""

    workers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one a core)")] = None
    """Processes that read images; 0 reads them in between. A few images are always read without."""

    def run(self) -> int:
        self._check()
        # Names of files are bytes; those that are no UTF-8 go out as they came in.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        with contextlib.ExitStack() as stack:
            readers = stack.enter_context(Readers(self._workers))
            if self.images and (problem := readers.finish(readers.start(str(self.images[0]))).error):
                raise ImageFileError(problem)  # Without the reference nothing can be done.
            pairs = self._pairs()
            metric = self.load()
            if self.all_pairs is not None:
                with _bar("image", shown=True) as bar:
                    pairs = all_pairs.of_folder(self.all_pairs, metric, workers=self._workers, done=bar.update)
            assert pairs is not None
            if self.out is not None:
                recorded = stack.enter_context(Recorded(self.out, form_of(self.out)(metric)))
                return self._score(pairs, metric, readers, recorded.write, recorded.resume)
            if self.jsonl or self.csv or (not self.json and not isinstance(pairs, list)):
                form = JsonLines if self.jsonl else CsvRows if self.csv else PlainRows
                # Rows and a bar on one terminal would run into each other.
                quiet = sys.stdout.isatty()
                return self._score(pairs, metric, readers, Printed(form(metric)).write, quiet=quiet)
            results: list[Result] = []
            status = self._score(pairs, metric, readers, results.extend)
            if status != 2:
                self._print(results, metric)
            return status

    def _check(self) -> None:
        """Raises a MetricError for arguments that make no sense together."""
        forms = [f"--{form}" for form in ("json", "jsonl", "csv") if getattr(self, form)]
        if len(forms) > 1:
            raise MetricError(f"{' and '.join(forms)} exclude each other: choose one")
        if self.out is not None:
            form_of(self.out)
            if forms:
                raise MetricError(f"--out takes its form from its suffix and excludes {forms[0]}: choose one")
        sources = [
            name
            for name, given in (("--dirs", self.dirs), ("--pairs", self.pairs), ("--all-pairs", self.all_pairs))
            if given is not None
        ]
        if len(sources) > 1:
            raise MetricError(f"{' and '.join(sources)} exclude each other: choose one")
        if sources and self.images:
            raise MetricError(f"{sources[0]} takes no further image, got {self.images[0]} besides")
        if not sources and len(self.images) < 2:
            raise MetricError(
                "give a reference and at least one image, or --dirs and two folders, or --pairs and a list, or "
                "--all-pairs and a folder; see --help"
            )
        if self.workers is not None and self.workers < 0:
            raise MetricError(f"--workers must be 0 or more, got {self.workers}")

    @property
    def _workers(self) -> int:
        return cores() if self.workers is None else self.workers

    def _pairs(self) -> list[Pair] | Iterator[Pair] | None:
        """What to compare; None for all pairs of a folder, which only the metric can tell."""
        if self.dirs is not None:
            return pair_lists.of_folders(*self.dirs)
        if self.pairs is not None:
            rows = pair_lists.of_file(self.pairs)
            first = next(rows, None)
            if first is None:
                raise ImageFileError(f"{self.pairs} lists no pair; a row is two paths, the reference and the image")
            return itertools.chain([first], rows)
        if self.all_pairs is not None:
            return None
        return pair_lists.of_images(self.images[0], self.images[1:])

    def _score(
        self,
        pairs: list[Pair] | Iterator[Pair] | AllPairs,
        metric: Metric,
        readers: Readers,
        sink: Sink,
        resume: Callable[[Iterator[Pair]], tuple[int, int]] | None = None,
        *,
        quiet: bool = False,
    ) -> int:
        """Scores what is not recorded yet; returns the exit status."""
        stream = iter(pairs)
        count, failed = resume(stream) if resume else (0, 0)
        total = None if isinstance(pairs, Iterator) else len(pairs)
        rest = stream
        if count:
            upcoming = next(stream, None)
            if upcoming is None:
                errors = f", {failed} of them failed" if failed else ""
                say(f"{self.out} is complete: {count} pairs{errors}; nothing is left to do")
                return _status(count, failed)
            rest = itertools.chain([upcoming], stream)
            say(f"{self.out} holds {count} pairs already; going on from there")
        with _bar("pair", shown=not (quiet or (self.images and self.out is None)), total=total, initial=count) as bar:
            if isinstance(pairs, AllPairs):
                windows = all_pairs.score_all(pairs, metric, readers, skip=count, done=bar.update)
            else:
                windows = score(rest, metric, readers, done=bar.update)
            with interrupts.deferred(), contextlib.closing(windows):
                for results in windows:
                    sink(results)
                    count += len(results)
                    failed += sum(result.distance is None for result in results)
        return _status(count, failed)

    def _print(self, results: list[Result], metric: Metric) -> None:
        """Results that are all there, as a document or a table."""
        done = [result for result in results if result.distance is not None]
        if self.json:
            print(reports.json_text(self._document(results, metric)))
            return
        reference = self.dirs[0] if self.dirs else self.images[0]
        rows = [(result.image, reports.plain(result.distance)) for result in done]
        if self.dirs:
            mean = np.mean([result.distance for result in done if result.distance is not None], dtype=np.float64)
            rows.append((f"mean of {len(done)}", reports.plain(mean)))
        print(f"# {metric.signature}\n# reference: {reference}")
        print(reports.table(("image", "distance"), rows))

    def _document(self, results: Iterable[Result], metric: Metric) -> dict[str, Any]:
        if self.images:
            place = {"reference": str(self.images[0])}
        elif self.dirs:
            place = {"reference": str(self.dirs[0]), "images": str(self.dirs[1])}
        elif self.pairs:
            place = {"pairs": str(self.pairs)}
        else:
            place = {"all_pairs": str(self.all_pairs)}
        lists: dict[str, list[dict[str, Any]]] = {"results": [], "errors": []}
        for result in results:
            # One reference for all stands above.
            names = {"reference": result.reference} if self.pairs or self.all_pairs else {}
            names["image"] = result.image
            if result.distance is None:
                lists["errors"].append({**names, "error": result.error})
            else:
                lists["results"].append({**names, "distance": result.distance})
        return {"signature": metric.signature, "metric": metric.name, **place, **lists}


def _bar(unit: str, *, shown: bool, total: int | None = None, initial: int = 0) -> Any:
    """A progress bar on stderr, if that is a terminal."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=f"{initial} resumed" if initial else None,
        disable=None if shown else True,
    )


def _status(count: int, failed: int) -> int:
    """Exit status: all is well, some failed, or all."""
    return 0 if not failed else 1 if failed < count else 2
