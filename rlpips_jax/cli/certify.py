"""`rlpips certify`: the perturbations under which the order of triplets provably holds."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from rlpips_jax import reports
from rlpips_jax.attacks.arguments import read_radius
from rlpips_jax.cli import interrupts, say
from rlpips_jax.cli.results import Recording, write_whole
from rlpips_jax.cli.terminal import visible
from rlpips_jax.cli.triplet_options import TripletOptions
from rlpips_jax.distances.protocol import is_random
from rlpips_jax.errors import CertificateError
from rlpips_jax.evaluation import scores
from rlpips_jax.evaluation.certification import (
    Certificate,
    Smoothing,
    abstention_rate,
    certified_accuracy,
    certify_triplets,
    draws_needed,
)
from rlpips_jax.evaluation.certify_distance import certify_distance
from rlpips_jax.evaluation.triplets import AnyTriplets
from rlpips_jax.files.decoding import load_image
from rlpips_jax.scoring.pairs import check_files

COLUMNS = {
    "reversed": np.bool_,
    "radius": np.float64,
    "lower_bound": np.float64,
    "count": np.int64,
    "abstained": np.bool_,
}

BATCH = 16
"""Triplets recorded at once."""


@dataclass(frozen=True, kw_only=True)
class Certify(TripletOptions):
    """Prove up to which l2 perturbation of an image the order of triplets holds, by randomised smoothing.

    The certified ranking is the smoothed one: the order that the metric finds most often under Gaussian noise. Prints
    the share of triplets that are ranked correctly and certified at each radius, and writes one JSON file per result.
    After an interruption the same command continues where it stopped.

    With --images instead of --data: the interval that the smoothed distance of two images cannot leave when the second
    one changes (median smoothing).

    Examples:
        rlpips certify --data triplets.npz --metric rlpips-tiny --limit 50 --out certificates/
        rlpips certify --images a.png b.png --sigma 0.1
    """

    images: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="X Y", help_behavior_hint="(default: none)")] = (
        None
    )
    """Two images whose distance is certified, instead of triplets. The second one changes; the options of triplets,
    --attacked and --out do nothing then."""

    sigma: Annotated[tuple[float, ...], tyro.conf.arg(metavar="S [S ...]")] = (0.1, 0.2)
    """Standard deviations of the noise; black is 0, white 1."""

    radius: Annotated[tuple[str, ...], tyro.conf.arg(metavar="R [R ...]")] = ("0", "36/255", "72/255", "108/255")
    """l2 radii for the table; images in [0, 1]."""

    samples: int = 1000
    """Draws of noise that count: n prove a radius of at most sigma * Phi^-1(alpha^(1/n))."""

    selection_samples: int = 100
    """Draws that guess the order."""

    alpha: float = 0.001
    """Largest probability that a certificate is wrong."""

    attacked: Literal["closer", "farther", "both", "reference"] = "both"
    """Which images may be perturbed, and get noise. Noise on the closer image alone moves it away, so that the smoothed
    ranking is often wrong."""

    draws: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """For randomised metrics: draws that a ranking or a distance averages, anew with every draw of noise."""

    max_batch: int = 64
    """Most images in the network at once: bounds memory."""

    seed: int = 0
    """Of the noise."""

    out: Path = Path("certificates")
    """Folder for the results."""

    def run(self) -> int:
        if not self.sigma or not self.radius:
            raise CertificateError("--sigma and --radius need one number or more")
        if self.images is not None:
            return self._distances(*self.images)
        rows = self.measure()
        header = ("data", "metric", "sigma", *(f"r={radius}" for radius in self.radius), "abstained", "n")
        text = reports.table(header, rows)
        print(text)
        write_whole(self.out / "table.txt", text + "\n")
        return 0

    def measure(self) -> list[tuple[str, ...]]:
        """Computes what --out does not hold yet; gives the rows of the table.

        Raises:
            RlpipsError: an option makes no sense, or data or metrics cannot be read.
        """
        radii = self._radii
        self._say_what_needs_more_draws(self.alpha)
        sets = [_decided(triplets) for triplets in self.sets()]
        metrics = self._metrics()
        rows: list[tuple[str, ...]] = []
        from tqdm import tqdm

        total = sum(map(len, sets)) * len(metrics) * len(self.sigma)
        with interrupts.deferred(), tqdm(total=total, unit="triplet", disable=None) as bar:
            for triplets in sets:
                for label, metric in metrics.items():
                    for sigma in self.sigma:
                        bar.set_description(visible(f"{triplets.name} {label} sigma {sigma:g}"))
                        certificate = self._certificate(triplets, label, metric, sigma, bar.update)
                        shares = certified_accuracy(certificate, radii)
                        cells = (f"{sigma:g}", *(f"{share:.3f}" for share in shares))
                        abstained = f"{abstention_rate(certificate):.3f}"
                        rows.append((triplets.name, label, *cells, abstained, str(len(triplets))))
        return rows

    def _metrics(self) -> dict[str, Any]:
        """The metrics by their labels.

        Raises:
            CertificateError: none is randomised, and there are --draws; or these are not 1 or more.
        """
        if self.draws is not None and self.draws < 1:
            raise CertificateError(f"--draws must be 1 or more, got {self.draws}")
        metrics = dict(self.metrics())
        if self.draws is not None and not any(map(is_random, metrics.values())):
            raise CertificateError("--draws is for randomised metrics, such as --metric elpips-squeeze")
        return metrics

    @property
    def _radii(self) -> list[float]:
        """The radii as numbers.

        Raises:
            CertificateError: one is negative or not a number.
        """
        radii = []
        for text in self.radius:
            try:
                radii.append(read_radius(text))
            except ValueError:
                raise CertificateError(f"--radius {text} is not a number such as 36/255 or 0.1") from None
            if radii[-1] < 0:
                raise CertificateError(f"--radius must be 0 or more, got {text}")
        return radii

    def _say_what_needs_more_draws(self, alpha: float) -> None:
        """Says which radii cannot be certified by --samples at this alpha, even if all draws agree."""
        for sigma in self.sigma:
            needed = {text: draws_needed(r, sigma, alpha) for text, r in zip(self.radius, self._radii, strict=True)}
            if beyond := {text: draws for text, draws in needed.items() if draws > self.samples}:
                listing = ", ".join(f"{text} needs {draws:,}" for text, draws in beyond.items())
                say(
                    f"at sigma {sigma:g}, {self.samples} draws are too few for some radii: {listing}; "
                    "'rlpips certify --samples' sets their number"
                )

    def _smoothing(self, sigma: float) -> Smoothing:
        return Smoothing(
            sigma=sigma,
            samples=self.samples,
            selection_samples=self.selection_samples,
            alpha=self.alpha,
            max_batch=self.max_batch,
        )

    def _distances(self, x: Path, y: Path) -> int:
        """Certifies the distance of two images."""
        if self.data:
            raise CertificateError("--images and --data are two different questions; give one of them")
        # Half of alpha for each end of the interval.
        self._say_what_needs_more_draws(self.alpha / 2)
        pictures = {path: load_image(path) for path in (x, y)}
        rows = []
        for label, metric in self._metrics().items():
            check_files(metric, pictures)
            for sigma in self.sigma:
                proof = certify_distance(
                    metric,
                    pictures[x][None],
                    pictures[y][None],
                    self._smoothing(sigma),
                    radii=self._radii,
                    key=jax.random.key(self.seed),
                    draws=self.draws or 1,
                )
                ends = zip(proof.low[0], proof.high[0], strict=True)
                rows.append((label, f"{sigma:g}", f"{proof.median[0]:.4f}", *(f"[{a:.4f}, {b:.4f}]" for a, b in ends)))
        header = ("metric", "sigma", "smoothed distance", *(f"r={radius}" for radius in self.radius))
        print(reports.table(header, rows))
        return 0

    def _certificate(
        self, triplets: AnyTriplets, label: str, metric: Any, sigma: float, done: Callable[[int], object]
    ) -> Certificate:
        smoothing = self._smoothing(sigma)
        settings = {
            "data": triplets.name,
            "triplets": len(triplets),
            "source": dict(triplets.source),
            "metric": label,
            "signature": metric.signature,
            "certificate": {**dataclasses.asdict(smoothing), "attacked": self.attacked, "seed": self.seed},
        }
        draws = self.draws or 1
        if is_random(metric):
            settings["certificate"]["draws"] = draws
        recording = Recording(self.out, [triplets.name, label, f"sigma {sigma:g}"], settings, COLUMNS)

        def compute(start: int) -> Iterator[tuple[np.ndarray, ...]]:
            key = jax.random.key(self.seed)
            for begin in range(start, len(triplets), BATCH):
                part = triplets.batch(begin, begin + BATCH)
                options = {"key": key, "attacked": self.attacked, "start": begin, "draws": draws}
                found = certify_triplets(metric, part, smoothing, **options)
                yield tuple(np.asarray(getattr(found, name)) for name in COLUMNS)

        started = time.monotonic()
        columns = dict(zip(COLUMNS, recording.collect(len(triplets), compute, done), strict=True))
        certificate = Certificate(**columns, smoothing=smoothing)
        shares = zip(self._radii, certified_accuracy(certificate, self._radii), strict=True)
        results = {
            "certified_accuracy": [{"radius": radius, "share": np.float64(share)} for radius, share in shares],
            "abstention_rate": np.float64(abstention_rate(certificate)),
        }
        recording.finish(results, time.monotonic() - started)
        return certificate


def _decided(triplets: AnyTriplets) -> AnyTriplets:
    """The triplets with a majority; the others have no order to certify."""
    rows = np.flatnonzero(scores.has_majority(triplets.judgment))
    if not len(rows):
        raise CertificateError(f"no triplet of {triplets.name} has a majority, so there is no order to certify")
    return triplets.select(rows)
