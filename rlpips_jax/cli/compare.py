"""`rlpips compare`: which of several images is closest to a reference, and how sure that is."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jaxtyping import Shaped

from rlpips_jax import reports
from rlpips_jax.cli import interrupts, say
from rlpips_jax.cli.options import Flag, MetricOptions, ReadingOptions, check_files
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.ensemble.inference import LEVEL, Comparison, compare
from rlpips_jax.errors import EnsembleError

QUIET = 10.0
"""Seconds after which there is a line about progress, where stderr is not a terminal and so has no bar."""


@dataclass(frozen=True, kw_only=True)
class Compare(MetricOptions, ReadingOptions):
    """Say which of two or more images is closest to a reference, and how sure that is.

    By an ensemble such as elpips-squeeze all images are seen under the same random transformations, until the answer is
    sure. The exit status is 1 if it is not. Interrupted, it prints the numbers so far.

    Examples:
        rlpips compare reference.png a.png b.png --metric elpips-squeeze
        rlpips compare reference.png a.png b.png --metric elpips-vgg --confidence 0.99 --max-samples 512
    """

    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="REF IMAGE IMAGE...", help_behavior_hint="")
    ]
    """The reference, then the images to compare with it."""

    confidence: float = LEVEL
    """Of an ensemble, what is sure."""

    max_samples: int = 4096
    """Of an ensemble, transformations after which the answer may stay open."""

    seed: int = 0
    """Of what is drawn."""

    json: Flag = False
    """Print one JSON object."""

    def run(self) -> int:
        if len(self.images) < 3:
            raise EnsembleError("give a reference and two images or more; for one image there is rlpips distance")
        pictures = {path: self.image_of(path) for path in self.images}
        metric = self.load_any()
        check_files(metric, pictures)
        found, interrupted = self._compare(metric, pictures)
        sure = found.confidence >= self.confidence and not interrupted
        status = 130 if interrupted else 0 if sure else 1
        if self.json:
            print(reports.json_text(self._document(found, metric.signature, sure, interrupted)))
            return status
        print(f"# {metric.signature}\n# reference: {self.images[0]}")
        rows = [
            (str(path), reports.plain(distance), reports.plain(error), reports.plain(difference), reports.plain(of_it))
            for path, distance, error, difference, of_it in zip(
                self.images[1:],
                *(getattr(found, name).astype(np.float32) for name in COLUMNS),
                strict=True,
            )
        ]
        print(reports.table(("image", "distance", "error", "beyond the closest", "error of that"), rows))
        closest = self.images[1 + found.closest]
        answer = f"{closest} is closest"
        samples = f" after {found.samples} samples" if found.samples else ""
        print("Interrupted. " if interrupted else "", end="")
        print(f"{answer if sure else f'It is open which is closest; {answer} by the numbers'}{samples}, ", end="")
        print(f"with confidence {found.confidence:.4g}.")
        for place, path in enumerate(self.images[1:]):
            if place != found.closest and np.array_equal(pictures[path], pictures[closest]):
                print(f"{path} is identical to {closest}.")
        return status

    def _compare(
        self, metric: Metric | RandomMetric, pictures: dict[Path, Shaped[np.ndarray, "h w 3"]]
    ) -> tuple[Comparison, bool]:
        """What was found, or what was known when Ctrl-C was pressed; and whether it was."""
        from tqdm import tqdm

        known: list[Comparison] = []
        hidden = None if is_random(metric) else True
        if is_random(metric):
            passes = len(self.images) * self.max_samples
            say(f"at most {self.max_samples} samples, {passes} passes of an image; ends when {self.confidence} is sure")
        begun = told = time.monotonic()
        try:
            with interrupts.deferred(), tqdm(total=self.max_samples, unit="sample", disable=hidden) as bar:

                def note(found: Comparison) -> None:
                    nonlocal told
                    known[:] = [found]
                    state = f"confidence {found.confidence:.4g}"
                    bar.update(found.samples - bar.n)
                    bar.set_postfix_str(state)
                    now = time.monotonic()
                    if bar.disable and now - told > QUIET:
                        told = now
                        left = (now - begun) * (self.max_samples / found.samples - 1)
                        say(f"{found.samples} samples of {self.max_samples}, {state}, at most {left:.0f} s more")
                    interrupts.check()

                found = compare(
                    pictures[self.images[0]],
                    np.stack(_of_one_type([pictures[path] for path in self.images[1:]])),
                    metric,
                    key=jax.random.key(self.seed),
                    confidence=self.confidence,
                    max_samples=self.max_samples,
                    progress=note,
                )
        except KeyboardInterrupt:
            if not known:
                raise
            return known[0], True
        return found, False

    def _document(self, found: Comparison, signature: str, sure: bool, interrupted: bool) -> dict[str, Any]:
        rows = zip(self.images[1:], *(getattr(found, name) for name in COLUMNS), strict=True)
        return {
            "signature": signature,
            "reference": str(self.images[0]),
            "closest": str(self.images[1 + found.closest]),
            "confidence": found.confidence,
            "sure": sure,
            "interrupted": interrupted,
            "samples": found.samples,
            "seed": self.seed,
            "images": [dict(zip(("image", *COLUMNS), (str(row[0]), *row[1:]), strict=True)) for row in rows],
        }


def _of_one_type(pictures: list[Shaped[np.ndarray, "h w 3"]]) -> list[Shaped[np.ndarray, "h w 3"]]:
    """Pictures of 8 bits a channel as floats, if others have more."""
    if len({picture.dtype for picture in pictures}) == 1:
        return pictures
    return [picture / np.float32(255) if picture.dtype == np.uint8 else picture for picture in pictures]


COLUMNS = ("distances", "standard_errors", "differences", "difference_errors")
