"""`rlpips distance`: of images to a reference, or of the pairs in two folders."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from jaxtyping import Shaped

from rlpips_jax import reports
from rlpips_jax.cli import say
from rlpips_jax.cli.options import MetricOptions, check_files
from rlpips_jax.errors import ImageError, ImageFileError, MetricError
from rlpips_jax.image_files import image_paths, load_image
from rlpips_jax.metric import Metric, distance

LARGEST_BATCH = 16
BATCH_PIXELS = 1 << 21
"""Most pixels a batch may have, unless it is one image: VGG keeps half a kilobyte a pixel and image."""

PENDING_BYTES = 1 << 29
"""Images of sizes seen too rarely for a batch are kept until they take this much."""

_Image = Shaped[np.ndarray, "h w 3"]


class Pair(NamedTuple):
    """Two files to compare, and what to call the result."""

    name: str
    reference: Path
    image: Path


class Result(NamedTuple):
    """What came of a pair: a distance, or the reason why there is none."""

    name: str
    distance: np.float32 | None
    error: str | None = None


class _Loaded(NamedTuple):
    """A pair in memory, and its place among the pairs."""

    place: int
    reference: _Image
    image: _Image


@dataclass(frozen=True, kw_only=True)
class Distance(MetricOptions):
    """Print the distance of each image to a reference, or of files of the same name in two folders.

    A file that cannot be compared is reported on stderr, and the exit status is 1.
    """

    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="REF IMAGE...", help_behavior_hint="")
    ] = ()
    """The reference, then the images to compare with it."""

    dirs: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="REFS IMAGES", help_behavior_hint="")] = None
    """Two folders, in place of REF IMAGE: compares what has the same path in both, also in their folders."""

    json: bool = False
    """Print one JSON object, distances with all their digits."""

    csv: bool = False
    """Print CSV with a header, distances with all their digits."""

    def run(self) -> int:
        if self.json and self.csv:
            raise MetricError("--json and --csv exclude each other: choose one")
        if self.dirs is not None and self.images:
            raise MetricError(f"--dirs takes two folders and no further image, got {self.images[0]} besides")
        if self.dirs is None and len(self.images) < 2:
            raise MetricError("give a reference and at least one image, or --dirs and two folders; see --help")
        read_reference = functools.lru_cache(maxsize=1)(load_image)
        if self.dirs is not None:
            reference, pairs = self.dirs[0], _common(*self.dirs)
        else:
            reference, *images = self.images
            pairs = [Pair(str(image), reference, image) for image in images]
            read_reference(reference)  # Without it nothing can be done.
        metric = self.load()
        results = measure(pairs, metric, read_reference, progress=self.dirs is not None)
        failures = [result for result in results if result.distance is None]
        if len(failures) < len(results):
            self._print(reference, results, metric)
            return 1 if failures else 0
        return 2

    def _print(self, reference: Path, results: list[Result], metric: Metric) -> None:
        distances = [(result.name, result.distance) for result in results if result.distance is not None]
        if self.json:
            place = {"reference": str(reference)} | ({"images": str(self.dirs[1])} if self.dirs else {})
            document = {
                "signature": metric.signature,
                "metric": metric.name,
                **place,
                "results": [{"image": name, "distance": value} for name, value in distances],
                "errors": [{"image": result.name, "error": result.error} for result in results if result.error],
            }
            print(reports.json_text(document))
        elif self.csv:
            rows = [(name, value, str(reference), metric.signature) for name, value in distances]
            print(reports.csv_text(("image", "distance", "reference", "signature"), rows), end="")
        else:
            rows = [(name, reports.plain(value)) for name, value in distances]
            if self.dirs:
                mean = np.mean([value for _, value in distances], dtype=np.float64)
                rows.append((f"mean of {len(distances)}", reports.plain(mean)))
            print(f"# {metric.signature}\n# reference: {reference}")
            print(reports.table(("image", "distance"), rows))


def measure(
    pairs: Sequence[Pair], metric: Metric, read_reference: Callable[[Path], _Image], *, progress: bool
) -> list[Result]:
    """The distance of each pair, in their order. Images of one size go through the network together.

    Every failure is also told on stderr, at once.

    Args:
        pairs: the files.
        metric: from `rlpips_jax.load`.
        read_reference: reads a reference; may remember the last.
        progress: show a bar, if stderr is a terminal.
    """
    from tqdm import tqdm

    results: list[Result | None] = [None] * len(pairs)
    waiting: dict[tuple, list[_Loaded]] = defaultdict(list)
    pending = 0
    with tqdm(total=len(pairs), unit="image", disable=None if progress else True) as bar:

        def flush(keys: Iterable[tuple]) -> int:
            """Computes what waits under these keys; says how many bytes that sets free."""
            taken = 0
            for key in keys:
                batch = waiting.pop(key)
                for loaded, value in zip(batch, _distances(batch, metric), strict=True):
                    results[loaded.place] = Result(pairs[loaded.place].name, value)
                    taken += _size(loaded)
                    bar.update()
            return taken

        for place, pair in enumerate(pairs):
            try:
                loaded = _Loaded(place, read_reference(pair.reference), load_image(pair.image))
                check_files(metric, {pair.reference: loaded.reference, pair.image: loaded.image})
            except (ImageError, ImageFileError) as error:
                results[place] = Result(pair.name, None, str(error))
                say(str(error))
                bar.update()
                continue
            # Images of 16 bits are float32; those of one batch have one type.
            key = (loaded.image.shape, loaded.reference.dtype, loaded.image.dtype)
            waiting[key].append(loaded)
            pending += _size(loaded)
            pixels = loaded.image.shape[0] * loaded.image.shape[1]
            if len(waiting[key]) >= min(LARGEST_BATCH, max(1, BATCH_PIXELS // pixels)):
                pending -= flush([key])
            elif pending > PENDING_BYTES:
                pending -= flush(list(waiting))
        flush(list(waiting))
    return [result for result in results if result is not None]


def _distances(batch: list[_Loaded], metric: Metric) -> list[np.float32]:
    references = np.stack([loaded.reference for loaded in batch])
    images = np.stack([loaded.image for loaded in batch])
    return list(np.asarray(distance(references, images, metric)))


def _size(loaded: _Loaded) -> int:
    return loaded.reference.nbytes + loaded.image.nbytes


def _common(references: Path, images: Path) -> list[Pair]:
    """Pairs of files with the same path in both folders, sorted; tells of files that have no partner."""
    found = [
        {path.relative_to(folder).as_posix(): path for path in image_paths(folder, recursive=True)}
        for folder in (references, images)
    ]
    for here, there, folder in ((*found, references), (*found[::-1], images)):
        if alone := [name for name in here if name not in there]:
            count = "1 image is" if len(alone) == 1 else f"{len(alone)} images are"
            say(f"warning: {count} only in {folder}: {reports.few(alone)}")
    common = sorted(found[0].keys() & found[1].keys())
    if not common:
        raise ImageFileError(
            f"{references} and {images} have no image of the same name; files are paired by their path below "
            "the folder, suffix included"
        )
    return [Pair(name, found[0][name], found[1][name]) for name in common]
