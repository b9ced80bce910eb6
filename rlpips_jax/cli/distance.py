"""`rlpips distance`: of images to a reference, or of the pairs in two folders, in a list or in one folder."""

import contextlib
import io
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from rlpips_jax import reports
from rlpips_jax.arguments import whole_number
from rlpips_jax.cli import interrupts, say
from rlpips_jax.cli.options import Folder, MetricOptions
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.errors import ImageFileError, MetricError
from rlpips_jax.files.image_files import image_paths
from rlpips_jax.scoring import AllPairs, Pair, Result, pairs_in_folders, pairs_in_list, score
from rlpips_jax.scoring.readers import decode
from rlpips_jax.scoring.records import CsvRows, JsonLines, form_of

LATELY = 1024
"""An error that is among so many last ones is not told again: a file may be in many pairs."""


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
    """Two folders, in place of REF IMAGE: compares the files that have the same path below both."""

    pairs: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A CSV file, in place of REF IMAGE: a row for each pair, the paths of the reference and of the image; a first row
    'reference,image' is a header. Relative paths start at the current directory. May have any number of rows."""

    all_pairs: Annotated[Folder, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """A folder, in place of REF IMAGE: compares every two images of one size in it and in the folders inside."""

    json: bool = False
    """Print one JSON object, distances with all their digits."""

    jsonl: bool = False
    """Print JSON lines as results come: a header with the signature, then an object for each pair."""

    csv: bool = False
    """Print CSV with a header as results come, distances with all their digits."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write JSON lines (.jsonl) or CSV (.csv) to this file. After an interruption, the same command continues it."""

    workers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one per core)")] = None
    """Processes that read images; 0 reads them in this one. The first few images are always read in this one."""

    def run(self) -> int:
        self._check()
        # Names of files are bytes; those that are not UTF-8 go out as they came in.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        if self.images and (problem := decode(str(self.images[0])).error):
            raise ImageFileError(problem)  # Without the reference nothing can be done.
        pairs = None if self.all_pairs else self._pairs()
        metric = self.load()
        if pairs is None:
            assert self.all_pairs is not None
            paths = tqdm(image_paths(self.all_pairs, recursive=True), unit="image", disable=None)
            pairs = AllPairs.of(paths, metric, workers=self.workers)
        if self.out is not None:
            return self._score(pairs, metric, lambda result: None)
        if self.jsonl or self.csv or not (self.json or isinstance(pairs, list)):
            form = (JsonLines if self.jsonl else CsvRows if self.csv else PlainRows)(metric)
            print(form.header, end="", flush=True)
            # Rows and a bar on one terminal would run into each other.
            hidden = bool(self.images) or sys.stdout.isatty()
            return self._score(pairs, metric, lambda row: print(form.line(row), end="", flush=True), hidden=hidden)
        results: list[Result] = []
        status = self._score(pairs, metric, results.append, hidden=bool(self.images))
        if status != 2 and self.json:
            print(reports.json_text(self._document(results, metric)))
        elif status != 2:
            self._print_table(results, metric)
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
        sources = [f"--{name.replace('_', '-')}" for name in ("dirs", "pairs", "all_pairs") if getattr(self, name)]
        if len(sources) > 1:
            raise MetricError(f"{' and '.join(sources)} exclude each other: choose one")
        if sources and self.images:
            raise MetricError(f"{sources[0]} takes no further image, got {self.images[0]} besides")
        if not sources and len(self.images) < 2:
            raise MetricError(
                "give a reference and at least one image, or --dirs and two folders, or --pairs and a list, or "
                "--all-pairs and a folder; see --help"
            )
        if self.workers is not None:
            whole_number("--workers", self.workers, minimum=0, error=MetricError)

    def _pairs(self) -> list[Pair] | Iterator[Pair]:
        """The pairs to compare, where the metric need not be known for that."""
        if self.dirs:
            return pairs_in_folders(*self.dirs)
        if not self.pairs:
            return [Pair(str(self.images[0]), str(image)) for image in self.images[1:]]
        rows = pairs_in_list(self.pairs)
        first = next(rows, None)
        if first is None:
            raise ImageFileError(f"{self.pairs} lists no pair; a row is two paths, the reference and the image")
        return itertools.chain([first], rows)

    def _score(
        self,
        pairs: list[Pair] | Iterator[Pair] | AllPairs,
        metric: Metric,
        use: Callable[[Result], object],
        *,
        hidden: bool = False,
    ) -> int:
        """Computes the results and tells errors; returns the exit status."""
        count = failed = recorded = 0
        told: deque[str] = deque(maxlen=LATELY)
        total = None if isinstance(pairs, Iterator) else len(pairs)
        scores = score(pairs, metric, out=self.out, workers=self.workers, pause=interrupts.check)
        with (
            tqdm(total=total, unit="pair", disable=True if hidden else None) as bar,
            interrupts.deferred(),
            contextlib.closing(scores),
        ):
            for count, result in enumerate(scores, start=1):
                bar.update()
                failed += result.error is not None
                if result.recorded:
                    recorded = count
                    continue
                if count == recorded + 1 and recorded:
                    say(f"{self.out} holds {recorded} pairs already; the rest is computed")
                if result.error is not None and result.error not in told:
                    told.append(result.error)
                    say(result.error)
                use(result)
        if recorded == count:
            errors = f", {failed} of them failed" if failed else ""
            say(f"{self.out} is complete: {count} pairs{errors}; nothing is left to do")
        return 0 if not failed else 1 if failed < count else 2

    def _print_table(self, results: Iterable[Result], metric: Metric) -> None:
        found = [(result.image, result.distance) for result in results if result.distance is not None]
        rows = [(image, reports.plain(distance)) for image, distance in found]
        if self.dirs:
            mean = np.mean([distance for _, distance in found], dtype=np.float64)
            rows.append((f"mean of {len(rows)}", reports.plain(mean)))
        print(f"# {metric.signature}\n# reference: {self.dirs[0] if self.dirs else self.images[0]}")
        print(reports.table(("image", "distance"), rows))

    def _document(self, results: Iterable[Result], metric: Metric) -> dict[str, Any]:
        if self.images:
            place = {"reference": str(self.images[0])}
        elif self.dirs:
            place = {"reference": str(self.dirs[0]), "images": str(self.dirs[1])}
        else:
            place = {"pairs": str(self.pairs)} if self.pairs else {"all_pairs": str(self.all_pairs)}
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


class PlainRows:
    """Rows for people, the distance first: only its width is known before all results are."""

    def __init__(self, metric: Metric) -> None:
        self.header = f"# {metric.signature}\ndistance  reference  image\n"

    def line(self, result: Result) -> str:
        """The row of a distance; nothing for an error."""
        if result.distance is None:
            return ""
        return f"{reports.plain(result.distance):>8}  {result.reference}  {result.image}\n"
