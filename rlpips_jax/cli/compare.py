"""`rlpips compare`: which of several images is closest to a reference, and how sure that is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from rlpips_jax import reports
from rlpips_jax.cli.options import MetricOptions, check_files
from rlpips_jax.decoding import load_image
from rlpips_jax.errors import EnsembleError
from rlpips_jax.estimation import LEVEL, Comparison, compare


@dataclass(frozen=True, kw_only=True)
class Compare(MetricOptions):
    """Say which of two or more images is closest to a reference, and how sure that is.

    By an ensemble such as elpips-squeeze all images are seen under the same random transformations, until the answer is
    sure. The exit status is 1 if it is not.
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="REF IMAGE IMAGE...")]
    """The reference, then the images to compare with it."""

    confidence: float = LEVEL
    """Of an ensemble, what is sure."""

    max_samples: int = 4096
    """Of an ensemble, transformations after which the answer may stay open."""

    seed: int = 0
    """Of what is drawn."""

    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        if len(self.images) < 3:
            raise EnsembleError("give a reference and two images or more; for one image there is rlpips distance")
        pictures = {path: load_image(path) for path in self.images}
        metric = self.load_any()
        check_files(metric, pictures)
        found = compare(
            pictures[self.images[0]],
            np.stack([pictures[path] for path in self.images[1:]]),
            metric,
            key=jax.random.key(self.seed),
            confidence=self.confidence,
            max_samples=self.max_samples,
        )
        sure = found.confidence >= self.confidence
        if self.json:
            print(reports.json_text(self._document(found, metric.signature, sure)))
            return 0 if sure else 1
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
        answer = f"{self.images[1 + found.closest]} is closest"
        samples = f" after {found.samples} samples" if found.samples else ""
        print(f"{answer if sure else f'It is open which is closest; {answer} by the numbers'}{samples}, ", end="")
        print(f"with confidence {found.confidence:.4g}.")
        return 0 if sure else 1

    def _document(self, found: Comparison, signature: str, sure: bool) -> dict[str, Any]:
        rows = zip(self.images[1:], *(getattr(found, name) for name in COLUMNS), strict=True)
        return {
            "signature": signature,
            "reference": str(self.images[0]),
            "closest": str(self.images[1 + found.closest]),
            "confidence": found.confidence,
            "sure": sure,
            "samples": found.samples,
            "seed": self.seed,
            "images": [dict(zip(("image", *COLUMNS), (str(row[0]), *row[1:]), strict=True)) for row in rows],
        }


COLUMNS = ("distances", "standard_errors", "differences", "difference_errors")
