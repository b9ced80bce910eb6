"""`rlpips distance`: of images to a reference, of two animations, or of the pairs in folders or in a list."""

import contextlib
import functools
import glob
import itertools
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from rlpips_jax import reports
from rlpips_jax.arguments import whole_number
from rlpips_jax.cli import cluster, interrupts, say
from rlpips_jax.cli.options import Flag, MetricOptions, ReadingOptions, memory_size
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.distances.tiles import bounded
from rlpips_jax.errors import ImageFileError, MetricError
from rlpips_jax.files.decoding import frame_count
from rlpips_jax.scoring import (
    AllPairs,
    Pair,
    Result,
    Sampling,
    Scoring,
    pairs_in_folders,
    pairs_in_list,
    pairs_of_frames,
    score,
)
from rlpips_jax.scoring.clusters import Resources
from rlpips_jax.scoring.pairs import images_below
from rlpips_jax.scoring.readers import decode
from rlpips_jax.scoring.records import FORMS, CsvRows, JsonLines, form_of, printable

LATELY = 1024
"""An error that is among so many last ones is not told again: a file may be in many pairs."""

AnyMetric = Metric | RandomMetric


@dataclass(frozen=True, kw_only=True)
class Distance(MetricOptions, ReadingOptions):
    """Print the distance of each image to a reference, of each frame of two animations, or of each pair in folders or a
    list.

    A file that cannot be compared, or that has no partner, is reported on stderr and in the results, and the exit
    status is 1. By a random metric (elpips-squeeze) the distance is an estimate, with its standard error.

    Examples:
        rlpips distance reference.png a.png b.png
        rlpips distance before.gif after.gif                      # number per frame, and their mean
        rlpips distance --dirs originals/ decoded/ --psnr --ssim --csv > scores.csv
        rlpips distance --pairs pairs.csv --out scores.jsonl      # goes on after an interruption
        rlpips distance scan.tif print.tif --metric lpips-vgg --max-memory 2GiB
        rlpips distance --pairs 'lists/*.csv' --out scores/ --ray auto    # by all nodes of a Ray cluster
        rlpips distance --all-pairs generated/ photographs/ --resize 256 --crop 256
        curl -s URL | rlpips distance reference.png /dev/stdin --metric elpips-squeeze
    """

    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="REF IMAGE...", help_behavior_hint="")
    ] = ()
    """The reference, then the images to compare with it. Two animations (GIF, APNG, WebP, AVIF) are compared frame by
    frame, two folders as by --dirs."""

    dirs: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="REFS IMAGES", help_behavior_hint="")] = None
    """Two folders, in place of REF IMAGE: compares the files that have the same path below both, or the same but for
    the suffix where that is unambiguous."""

    allow_missing: Flag = False
    """With --dirs, leave out files that are in one folder only, with a warning."""

    pairs: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A CSV file, in place of REF IMAGE: a row for each pair, the paths of the reference and of the image. A header
    with the names 'reference' and 'image' says which of several columns they are. Relative paths start at the current
    directory. May have any number of rows."""

    all_pairs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR]", help_behavior_hint="")] = ()
    """A folder, in place of REF IMAGE: compares every two images of one size in it and in the folders inside. Two
    folders: every image of the first with every one of the second."""

    psnr: Flag = False
    """Add the PSNR in decibels, of RGB in [0, 1]."""

    ssim: Flag = False
    """Add SSIM, the mean over RGB; Gaussian window of 11x11, sigma 1.5."""

    max_memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="(default: no limit)")] = None
    """Most memory for activations, such as 2GiB: larger images are computed in tiles that overlap, to the same number.
    Images and parameters are not counted."""

    seed: int = 0
    """Of a random metric: seed of the draws."""

    max_samples: int = Sampling.max_samples
    """Of a random metric: draws after which an estimate ends, however wide its interval."""

    json: Flag = False
    """Print one JSON object, distances with all their digits."""

    jsonl: Flag = False
    """Print JSON lines as results come: a header with the signature, then an object for each pair."""

    csv: Flag = False
    """Print CSV with a header as results come, distances with all their digits."""

    csv_safe: Flag = False
    """Write an apostrophe before names in CSV that begin with = + - @: spreadsheets take them for formulas."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write JSON lines (.jsonl) or CSV (.csv) to this file. After an interruption, the same command continues it."""

    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Compute on a Ray cluster: its address, 'auto' for the one that this machine belongs to, or 'local' for this
    machine alone. --out is then a folder that all nodes share, of files part-000000.jsonl; --pairs may be a pattern
    such as 'lists/*.csv'. Needs rlpips-jax[ray]."""

    parquet: Flag = False
    """With --ray, write Parquet instead of JSON lines."""

    gpus: float = 0.0
    """With --ray, accelerators that each process has, or a share of one; processes have one core each."""

    workers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one per core)")] = None
    """Processes that read images; 0 reads them in this one. The first few images are always read in this one."""

    def run(self) -> int:
        self._check()
        measures = tuple(name for name in ("psnr", "ssim") if getattr(self, name))
        sampling = Sampling(seed=self.seed, max_samples=self.max_samples)
        scoring = Scoring(reading=self.reading, measures=measures, sampling=sampling)
        pairs = None if self.all_pairs else self._pairs(scoring)
        metric = bounded(self.load_any(), memory_size("--max-memory", self.max_memory))
        if pairs is None:
            sets = [images_below(folder) for folder in self.all_pairs]
            pairs = AllPairs.of(
                tqdm(sets[0], unit="image", disable=None),
                metric,
                others=None if len(sets) == 1 else sets[1],
                workers=self.workers,
                reading=scoring.reading,
            )
        if self.ray is not None:
            assert self.out is not None
            cluster.connect(self.ray)
            form, resources = "parquet" if self.parquet else "jsonl", Resources(gpus=self.gpus)
            return cluster.score_to_folder(pairs, metric, self.out, scoring=scoring, form=form, resources=resources)
        if self.out is not None:
            return self._score(pairs, metric, scoring, lambda result: None)
        if self.jsonl or self.csv or not (self.json or isinstance(pairs, list) or self._means):
            rows = functools.partial(CsvRows, safe=self.csv_safe)
            form = (JsonLines if self.jsonl else rows if self.csv else PlainRows)(
                metric, scoring.signature(metric), scoring.columns(metric)
            )
            print(form.header, end="", flush=True)
            # Rows and a bar on one terminal would run into each other.
            hidden = bool(self.images) or sys.stdout.isatty()
            return self._score(
                pairs, metric, scoring, lambda row: print(form.line(row), end="", flush=True), hidden=hidden
            )
        results: list[Result] = []
        status = self._score(pairs, metric, scoring, results.append, hidden=bool(self.images))
        if status != 2 and self.json:
            print(reports.json_text(self._document(results, metric, scoring)))
        elif status != 2:
            self._print_table(results, metric, scoring)
        return status

    def _check(self) -> None:
        """Raises a MetricError for arguments that make no sense together."""
        forms = [f"--{form}" for form in ("json", "jsonl", "csv") if getattr(self, form)]
        if len(forms) > 1:
            raise MetricError(f"{' and '.join(forms)} exclude each other: choose one")
        if self.csv_safe and (self.ray is not None or not (self.csv or self.out)):
            raise MetricError("--csv-safe is for CSV: give --csv, or --out FILE.csv")
        if self.ray is None and (self.parquet or self.gpus):
            raise MetricError("--parquet and --gpus are for --ray")
        if self.ray is not None and (self.out is None or self.out.suffix.lower() in FORMS):
            raise MetricError(f"--ray writes a folder of files: give one with --out, got {self.out}")
        if self.out is not None:
            if self.ray is None:
                form_of(self.out, csv_safe=self.csv_safe)
            if forms:
                raise MetricError(f"--out takes its form from its suffix and excludes {forms[0]}: choose one")
        sources = [f"--{name.replace('_', '-')}" for name in ("dirs", "pairs", "all_pairs") if getattr(self, name)]
        if len(sources) > 1:
            raise MetricError(f"{' and '.join(sources)} exclude each other: choose one")
        if sources and self.images:
            raise MetricError(f"{sources[0]} takes no further image, got {self.images[0]} besides")
        if len(self.all_pairs) > 2:
            raise MetricError(f"--all-pairs takes one folder or two, got {len(self.all_pairs)}")
        if not sources and len(self.images) < 2:
            raise MetricError(
                "give a reference and at least one image, or --dirs and two folders, or --pairs and a list, or "
                "--all-pairs and a folder; see --help"
            )
        if self.all_pairs and self.max_memory is not None:
            raise MetricError("--all-pairs keeps the features of whole images: --max-memory is for --pairs and --dirs")
        if self.workers is not None:
            whole_number("--workers", self.workers, minimum=0, error=MetricError)

    @functools.cached_property
    def _folders(self) -> tuple[Path, Path] | None:
        """The two folders whose files are compared by their names, if there are any."""
        if self.dirs is None and len(self.images) == 2 and any(path.is_dir() for path in self.images):
            for path in self.images:
                if not path.exists():
                    raise ImageFileError(f"{path} does not exist")
            if all(path.is_dir() for path in self.images):
                return self.images[0], self.images[1]
        return self.dirs

    @functools.cached_property
    def _animated(self) -> bool:
        """Whether two animations are compared."""
        return len(self.images) == 2 and all(path.is_file() and frame_count(path) > 1 for path in self.images)

    @property
    def _means(self) -> bool:
        """Whether results end with their mean."""
        return self._folders is not None or self._animated

    def _pairs(self, scoring: Scoring) -> list[Pair] | Iterator[Pair]:
        """The pairs to compare, where the metric need not be known for that."""
        if self._folders:
            return pairs_in_folders(*self._folders, allow_missing=self.allow_missing)
        if self._animated:
            return pairs_of_frames(self.images[0], self.images[1], scoring.reading)
        if not self.pairs:
            return list(self._given(scoring))
        lists = [self.pairs]
        if self.ray is not None and not self.pairs.exists():
            lists = [Path(path) for path in sorted(glob.glob(str(self.pairs), recursive=True))]
        rows = itertools.chain.from_iterable(map(pairs_in_list, lists))
        first = next(rows, None)
        if first is None:
            raise ImageFileError(f"{self.pairs} lists no pair; a row is two paths, the reference and the image")
        return itertools.chain([first], rows)

    def _given(self, scoring: Scoring) -> Iterator[Pair]:
        """The pairs of the reference with each image. Pipes are read now: other processes cannot, nor twice."""
        reference, *images = self.images
        if problem := decode(str(reference), scoring.reading).error if not _is_pipe(reference) else None:
            raise ImageFileError(problem)  # Without the reference nothing can be done.
        piped = {path: self.image_of(path) for path in dict.fromkeys(self.images) if _is_pipe(path)}
        for image in images:
            if piped.keys() & {reference, image}:
                both = tuple(piped[path] if path in piped else self.image_of(path) for path in (reference, image))
                yield Pair(str(reference), str(image), images=(both[0], both[1]))
            else:
                yield Pair(str(reference), str(image))

    def _score(
        self,
        pairs: list[Pair] | Iterator[Pair] | AllPairs,
        metric: AnyMetric,
        scoring: Scoring,
        use: Callable[[Result], object],
        *,
        hidden: bool = False,
    ) -> int:
        """Computes the results and tells errors; returns the exit status."""
        count = failed = recorded = 0
        told: deque[str] = deque(maxlen=LATELY)
        total = None if isinstance(pairs, Iterator) else len(pairs)
        scores = score(
            pairs,
            metric,
            scoring=scoring,
            out=self.out,
            csv_safe=self.csv_safe and self.out is not None,
            workers=self.workers,
            pause=interrupts.check,
        )
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

    def _print_table(self, results: Sequence[Result], metric: AnyMetric, scoring: Scoring) -> None:
        columns = ("distance", *scoring.columns(metric))
        found = [result for result in results if result.distance is not None]
        rows = [(printable(result.image), *_cells(result)) for result in found]
        if self._means:
            values = np.array([(result.distance, *result.measures.values()) for result in found], np.float64)
            of = f" of {len(results)} pairs" if len(results) > len(rows) else ""
            rows.append((f"mean of {len(rows)}{of}", *map(reports.plain, values.mean(axis=0))))
        reference = printable(str(self._folders[0] if self._folders else self.images[0]))
        print(f"# {scoring.signature(metric)}\n# reference: {reference}")
        print(reports.table(("image", *columns), rows))

    def _document(self, results: Sequence[Result], metric: AnyMetric, scoring: Scoring) -> dict[str, Any]:
        if self._folders:
            place = {"reference": str(self._folders[0]), "images": str(self._folders[1])}
        elif self.images:
            place = {"reference": str(self.images[0])}
        else:
            place = {"pairs": str(self.pairs)} if self.pairs else {"all_pairs": [str(path) for path in self.all_pairs]}
        place = {name: value if isinstance(value, list) else printable(value) for name, value in place.items()}
        lists: dict[str, list[dict[str, Any]]] = {"results": [], "errors": []}
        for result in results:
            # One reference for all stands above.
            names = {"reference": printable(result.reference)} if self.pairs or self.all_pairs else {}
            names["image"] = printable(result.image)
            if result.distance is None:
                lists["errors"].append({**names, "error": printable(result.error or "")})
            else:
                measures = {name: value if np.isfinite(value) else None for name, value in result.measures.items()}
                lists["results"].append({**names, "distance": result.distance, **measures})
        means = {}
        if self._means:
            means["mean"] = np.mean([entry["distance"] for entry in lists["results"]], dtype=np.float64)
        return {"signature": scoring.signature(metric), "metric": metric.name, **place, **means, **lists}


class PlainRows:
    """Rows for people, the numbers first: only their width is known before all results are."""

    def __init__(self, metric: AnyMetric, signature: str = "", measures: Sequence[str] = ()) -> None:
        names = "  ".join(("distance", *(name.rjust(8) for name in measures)))
        self.header = f"# {signature or metric.signature}\n{names}  reference  image\n"
        self._widths = (8, *(max(8, len(name)) for name in measures))

    def line(self, result: Result) -> str:
        """The row of a distance; nothing for an error."""
        if result.distance is None:
            return ""
        numbers = (cell.rjust(width) for cell, width in zip(_cells(result), self._widths, strict=True))
        return "  ".join((*numbers, printable(result.reference), f"{printable(result.image)}\n"))


def _cells(result: Result) -> list[str]:
    """The numbers of a pair that has a distance."""
    measures = {"distance": result.distance, **result.measures}
    return [f"{value:.0f}" if name == "samples" else reports.plain(value) for name, value in measures.items()]


def _is_pipe(path: Path) -> bool:
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False
