"""Judged triplets: a reference and two images p0, p1 that differ from it, and which of the two is closer.

The judgment h in [0, 1] is the fraction of people who found p1 closer, or a probability in its place. Triplets come
from files (`rlpips_jax.evaluation.triplet_files`) or are made here from photographs, with distortions of graded
strength:

- `ordinal`: one kind at two strengths; the weaker one is closer, by construction. Such triplets alone do not measure
  perception: the pixels' L2 distance ranks nearly all of them.
- `crossed`: two different kinds, judged by a teacher metric.

`triplet_distances` computes the distances of a metric within them.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Integer, UInt8

from rlpips_jax._version import __version__
from rlpips_jax.arguments import whole_number
from rlpips_jax.distances.pairwise import pairwise
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation import distortions
from rlpips_jax.evaluation.distortions import DISTORTIONS, training_kinds
from rlpips_jax.evaluation.patches import patches
from rlpips_jax.evaluation.placement import Placement, fetch, filled_size, put
from rlpips_jax.files.array_hash import array_hash
from rlpips_jax.images import Images
from rlpips_jax.judgment import STEEPNESS

SURE = 0.5
"""A teacher is sure where |log(d0 / d1)| is above this."""
WEAKER = (0.05, 0.75)
"""Strengths of the weaker distortion of an ordinal triplet."""
STEP = (0.12, 0.25)
"""By how much the stronger distortion of an ordinal triplet is stronger."""
CROSSED = (0.05, 1.0)
"""Strengths of the distortions of a crossed triplet."""
REDRAWS = 100
"""How often a triplet with equal images is drawn again."""
BATCH = 64
"""Triplets in the network at once."""
MATRIX = 64
"""This many distances between known features cost no more than the three passes of a triplet through the network."""


@dataclass(frozen=True, eq=False, repr=False)
class Triplets:
    """Judged triplets of images, in memory.

    Attributes:
        reference: `(n, h, w, 3)`, uint8.
        p0: one changed version of each reference.
        p1: another one.
        judgment: fraction of people (or probability) for whom p1 is closer, `(n,)`, in [0, 1].
        kinds: n labels by which scores are split: "blur", "blur/jpeg" for p0 and p1 of two kinds, or a category.
        sure: `(n,)`, whether the judgment is clear: the teacher is sure, or more than half of the people agree; None
            where every judgment is clear.
        name: of the set, for reports.
        source: where the set comes from: everything needed to make it again, and the sha256 of its content.

    Raises:
        TripletsError: lengths, shapes, types or judgments do not fit.
    """

    reference: UInt8[np.ndarray, "n h w 3"]
    p0: UInt8[np.ndarray, "n h w 3"]
    p1: UInt8[np.ndarray, "n h w 3"]
    judgment: Float32[np.ndarray, " n"]
    kinds: tuple[str, ...]
    sure: Bool[np.ndarray, " n"] | None = None
    name: str = "triplets"
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("reference", "p0", "p1"):
            images = getattr(self, name)
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
                raise TripletsError(f"{name} is {images.dtype} {images.shape}; triplets are uint8 (n, h, w, 3)")
            if images.shape != self.reference.shape:
                raise TripletsError(
                    f"{name} has shape {images.shape} and reference {self.reference.shape}; they must be the same"
                )
        _check_judgments(self.judgment)
        _check_lengths(len(self.reference), judgment=self.judgment, kinds=self.kinds, sure=self.sure)

    def __len__(self) -> int:
        return len(self.reference)

    def __repr__(self) -> str:
        return f"Triplets({self.name!r}, {len(self)} of {self.reference.shape[1]}x{self.reference.shape[2]} pixels)"

    def batch(self, start: int, stop: int) -> "Triplets":
        """Triplets `start` to `stop` (exclusive), as views. Name and source stay those of the whole set."""
        return self._rows(slice(start, stop), self.kinds[start:stop])

    def select(self, rows: Int[np.ndarray, " k"]) -> "Triplets":
        """The triplets of these indices. Name and source stay those of the whole set."""
        return self._rows(rows, tuple(self.kinds[row] for row in rows))

    def _rows(self, rows: Any, kinds: tuple[str, ...]) -> "Triplets":
        return Triplets(
            self.reference[rows],
            self.p0[rows],
            self.p1[rows],
            self.judgment[rows],
            kinds,
            None if self.sure is None else self.sure[rows],
            self.name,
            self.source,
        )


@dataclass(frozen=True, eq=False, repr=False)
class IndexedTriplets:
    """Judged triplets that share a small number of images. The interface is that of `Triplets`.

    Attributes:
        images: `(k, h, w, 3)`, uint8.
        indices: of reference, p0 and p1, `(n, 3)`.
        votes: numbers of people who found p0 and p1 closer, `(n, 2)`.
        kinds: n labels by which scores are split.
        name: of the set, for reports.
        source: where the set comes from, and the sha256 of its content.

    Raises:
        TripletsError: shapes or types do not fit, an index leads nowhere, or a triplet has no votes.
    """

    images: UInt8[np.ndarray, "k h w 3"]
    indices: Integer[np.ndarray, "n 3"]
    votes: Integer[np.ndarray, "n 2"]
    kinds: tuple[str, ...]
    name: str = "triplets"
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise TripletsError(f"images are {self.images.dtype} {self.images.shape}; give uint8 (k, h, w, 3)")
        for name, columns in (("indices", 3), ("votes", 2)):
            array = getattr(self, name)
            if not np.issubdtype(array.dtype, np.integer) or array.shape[1:] != (columns,):
                raise TripletsError(f"{name} are {array.dtype} {array.shape}; give whole numbers (n, {columns})")
        _check_lengths(len(self.indices), votes=self.votes, kinds=self.kinds)
        wrong = np.flatnonzero(((self.indices < 0) | (self.indices >= len(self.images))).any(axis=1))
        if len(wrong):
            raise TripletsError(
                f"triplet {wrong[0]} names the images {self.indices[wrong[0]].tolist()}; there are {len(self.images)}, "
                "counted from 0"
            )
        wrong = np.flatnonzero((self.votes < 0).any(axis=1) | (self.votes.sum(axis=1) < 1))
        if len(wrong):
            raise TripletsError(
                f"triplet {wrong[0]} has the votes {self.votes[wrong[0]].tolist()}; at least one person must have voted"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        size = f"{self.images.shape[1]}x{self.images.shape[2]}"
        return f"IndexedTriplets({self.name!r}, {len(self)} of {len(self.images)} images, {size} pixels)"

    @property
    def reference(self) -> UInt8[np.ndarray, "n h w 3"]:
        """The reference of each triplet."""
        return self.images[self.indices[:, 0]]

    @property
    def p0(self) -> UInt8[np.ndarray, "n h w 3"]:
        """The first image of each triplet."""
        return self.images[self.indices[:, 1]]

    @property
    def p1(self) -> UInt8[np.ndarray, "n h w 3"]:
        """The second image of each triplet."""
        return self.images[self.indices[:, 2]]

    @functools.cached_property
    def judgment(self) -> Float32[np.ndarray, " n"]:
        """Votes for p1 / all votes."""
        return (self.votes[:, 1] / self.votes.sum(axis=1)).astype(np.float32)

    @functools.cached_property
    def sure(self) -> Bool[np.ndarray, " n"]:
        """Whether more than half of the people agree."""
        return self.votes[:, 0] != self.votes[:, 1]

    def batch(self, start: int, stop: int) -> Triplets:
        """Triplets `start` to `stop` (exclusive), with their images. Name and source are those of the whole set."""
        rows = slice(start, stop)
        reference, p0, p1 = (self.images[column] for column in self.indices[rows].T)
        return Triplets(
            reference, p0, p1, self.judgment[rows], self.kinds[rows], self.sure[rows], self.name, self.source
        )

    def select(self, rows: Int[np.ndarray, " k"]) -> "IndexedTriplets":
        """The triplets of these indices. Name and source stay those of the whole set."""
        kinds = tuple(self.kinds[row] for row in rows)
        return IndexedTriplets(self.images, self.indices[rows], self.votes[rows], kinds, self.name, self.source)


AnyTriplets = Triplets | IndexedTriplets


def teacher_opinion(
    d0: Float[np.ndarray, " n"], d1: Float[np.ndarray, " n"]
) -> tuple[Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The judgment of a metric: the probability that p1 is closer, and whether the metric is sure.

    Args:
        d0: its distances of p0 from the reference, above 0.
        d1: its distances of p1.

    Returns:
        sigmoid(4 log(d0 / d1)) and |log(d0 / d1)| > 0.5, both `(n,)`.

    Raises:
        TripletsError: a distance is not above 0 or not finite.
    """
    d0, d1 = np.asarray(d0, np.float64), np.asarray(d1, np.float64)
    for name, distance in (("d0", d0), ("d1", d1)):
        wrong = distance[~((distance > 0) & np.isfinite(distance))]
        if len(wrong):
            raise TripletsError(f"{name} has the value {wrong[0]:g}; a teacher's distances must be above 0 and finite")
    ratio = np.log(d0 / d1)
    return (1 / (1 + np.exp(-STEEPNESS * ratio))).astype(np.float32), np.abs(ratio) > SURE


def ordinal(
    folder: str | os.PathLike[str],
    count: int,
    *,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    size: int = 64,
) -> Triplets:
    """Makes triplets of one kind at two strengths, U(0.05, 0.75) and U(0.12, 0.25) more, with one draw.

    The weaker one is closer (judgment 0 or 1); whether it is p0 or p1 is random. The kinds take turns. A pair that does
    not differ (two JPEG qualities may give the same image) is drawn again.

    Args:
        folder: photographs, at any depth, cut as in `rlpips_jax.evaluation.patches`.
        count: how many triplets.
        seed: the same one gives the same triplets.
        kinds: of `rlpips_jax.evaluation.distortions`; None for its `training_kinds`.
        size: height and width in pixels.

    Raises:
        TripletsError: a count below 1, a kind that does not exist, or kinds that do not change a patch.
        ImageFileError: no photographs, or one that cannot be read.
        ImageError: photographs that are too small or too flat.
    """
    kinds = _check_kinds(kinds, 1)
    references, generators = _references(folder, count, seed, size)
    weaker, stronger = np.empty_like(references), np.empty_like(references)
    labels = []
    judgment = np.empty(count, np.float32)
    for index, rng in enumerate(generators):
        label, weaker[index], stronger[index] = _ordered(references[index], kinds, index, rng)
        labels.append(label)
        judgment[index] = rng.integers(2)
    swapped = (judgment == 1)[:, None, None, None]
    p0, p1 = np.where(swapped, stronger, weaker), np.where(swapped, weaker, stronger)
    source = _source("ordinal", folder, count, seed, kinds, size)
    source["sha256"] = array_hash(references, p0, p1, judgment, labels=labels)
    return Triplets(references, p0, p1, judgment, tuple(labels), None, "ordinal", source)


def crossed(
    folder: str | os.PathLike[str],
    count: int,
    *,
    teacher: Metric,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    size: int = 64,
) -> Triplets:
    """Makes triplets of two different kinds, each at its own strength in U(0.05, 1), judged by a teacher.

    The judgment is `teacher_opinion`, and `sure` is True where the teacher is sure. A label such as "blur/jpeg" says
    that p0 is blurred and p1 compressed. A triplet is drawn again if a distance by the teacher is 0.

    Args:
        folder: photographs, at any depth, cut as in `rlpips_jax.evaluation.patches`. With the same seed the patches
            are those of `ordinal`.
        count: how many triplets.
        teacher: the metric that judges, such as `rlpips_jax.load("lpips-alex")`.
        seed: the same one gives the same triplets.
        kinds: two or more of `rlpips_jax.evaluation.distortions`; None for its `training_kinds`.
        size: height and width in pixels.

    Raises:
        TripletsError: a count below 1, fewer than two kinds, one that does not exist, or kinds that change nothing.
        ImageFileError: no photographs, or one that cannot be read.
        ImageError: photographs that are too small or too flat, or a size below the teacher's smallest.
    """
    kinds = _check_kinds(kinds, 2)
    references, generators = _references(folder, count, seed, size)
    p0, p1 = np.empty_like(references), np.empty_like(references)
    labels = [""] * count
    d0, d1 = np.zeros(count), np.zeros(count)
    batch = min(BATCH, count)
    for _ in range(REDRAWS):
        equal = np.flatnonzero((d0 == 0) | (d1 == 0))
        if not len(equal):
            break
        for index in equal:
            labels[index], p0[index], p1[index] = _two_kinds(references[index], kinds, generators[index])
        # Repeated to fill whole batches: one shape, hence one compiled program.
        rows = np.resize(equal, -(-len(equal) // batch) * batch)
        redrawn = Triplets(references[rows], p0[rows], p1[rows], np.zeros(len(rows), np.float32), ("",) * len(rows))
        d0[rows], d1[rows] = triplet_distances(teacher, redrawn, batch=batch)
    else:
        raise TripletsError(
            f"a distance by {teacher.name} is still 0 after {REDRAWS} draws of {', '.join(kinds)}; give other kinds or "
            f"other photographs than those under {folder}"
        )
    judgment, sure = teacher_opinion(d0, d1)
    source = _source("crossed", folder, count, seed, kinds, size) | {"teacher": teacher.signature}
    source["sha256"] = array_hash(references, p0, p1, judgment, labels=labels)
    return Triplets(references, p0, p1, judgment, tuple(labels), sure, "crossed", source)


def triplet_distances(
    metric: Metric, triplets: AnyTriplets, *, batch: int = BATCH, placement: Placement = None
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """A metric's distances of p0 and p1 from the reference: `(n,)` each, 0 exactly for identical images.

    A triplet takes three passes through the network. If triplets share their images (`IndexedTriplets`) and there are
    few of them, `rlpips_jax.pairwise` computes the distances, with one pass per image as a reference and one as p0 or
    p1; then `batch` has no effect.

    Args:
        metric: from `rlpips_jax.load`.
        triplets: of one size, at least the metric's `minimum_size`.
        batch: triplets in the network at once.
        placement: how the batch is split over devices; None for one device. Triplets that share images stay on one.

    Raises:
        ImageError: the images are too small for the metric.
        TripletsError: `batch` is below 1.
    """
    whole_number("batch", batch, error=TripletsError)
    if isinstance(triplets, IndexedTriplets) and len(triplets):
        rows, row = np.unique(triplets.indices[:, 0], return_inverse=True)
        columns, column = np.unique(triplets.indices[:, 1:], return_inverse=True)
        if len(rows) * len(columns) <= MATRIX * len(triplets):
            matrix = np.asarray(pairwise(triplets.images[rows], triplets.images[columns], metric))
            d0, d1 = matrix[row.reshape(-1, 1), column.reshape(-1, 2)].T
            return d0, d1
    batch = min(batch, max(1, len(triplets)))
    found = []
    for start in range(0, len(triplets), batch):
        part = triplets.batch(start, start + batch)
        # Always the same shape, hence one compiled program.
        rows = np.minimum(np.arange(filled_size(batch, placement)), len(part) - 1)
        images = (put(array[rows], placement) for array in (part.reference, part.p0, part.p1))
        found.append([fetch(distances)[: len(part)] for distances in _distances(metric, *images)])
    d0, d1 = np.concatenate(found, axis=1) if found else np.empty((2, 0), np.float32)
    return d0, d1


@jax.jit
def _distances(metric: Metric, reference: Images, *others: Images) -> tuple[Float[Array, " n"], ...]:
    features = metric.features(reference)

    def from_reference(other: Images) -> Float[Array, " n"]:
        distances = metric.between(features, metric.features(other))
        # The compiler may round the activations of two identical images differently.
        return jnp.where(jnp.all(other == reference, axis=(1, 2, 3)), 0, distances)

    return tuple(from_reference(other) for other in others)


def _check_judgments(judgment: Float32[np.ndarray, " n"]) -> None:
    if judgment.dtype != np.float32 or not np.all((judgment >= 0) & (judgment <= 1)):
        low, high = (f"{bound:g}" for bound in (judgment.min(initial=np.inf), judgment.max(initial=-np.inf)))
        raise TripletsError(
            f"judgment is {judgment.dtype} from {low} to {high}; it must be float32, fractions from 0 to 1"
        )


def _check_lengths(count: int, **columns: Any) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != count:
            raise TripletsError(f"{name} has {len(column)} entries for {count} triplets; it must have one for each")


def _check_kinds(kinds: Sequence[str] | None, least: int) -> tuple[str, ...]:
    """The kinds, or the `training_kinds` where none are given."""
    kinds = training_kinds() if kinds is None else kinds
    known = ", ".join(DISTORTIONS)
    if isinstance(kinds, str):
        raise TripletsError(f"kinds is {kinds!r}; give a list of kinds of distortion: {known}")
    if len(set(kinds)) < least or len(set(kinds)) < len(kinds):
        raise TripletsError(f"kinds are {list(kinds)}; give at least {least}, all different, of {known}")
    for kind in kinds:
        if kind not in DISTORTIONS:
            raise TripletsError(f"kind {kind!r} is not a distortion; choose of {known}")
    return tuple(kinds)


def _references(
    folder: str | os.PathLike[str], count: int, seed: int, size: int
) -> tuple[UInt8[np.ndarray, "n h w 3"], list[np.random.Generator]]:
    """Patches, each with its own generator, so that no triplet depends on the draws of another."""
    if count < 1 or size < 1 or seed < 0:
        raise TripletsError(
            f"count is {count}, size {size} and seed {seed}; count and size must be 1 or more, and seed 0 or more"
        )
    cutting, *others = np.random.SeedSequence(seed).spawn(count + 1)
    references = patches(os.fspath(folder), count, size=size, rng=np.random.default_rng(cutting))
    return references, [np.random.default_rng(other) for other in others]


_Image = UInt8[np.ndarray, "h w 3"]


def _at(image: _Image, kind: str, rng: np.random.Generator) -> Callable[[float], _Image]:
    """The image at any strength, for one draw of a kind."""
    field = distortions.draw(kind, image.shape, rng)
    return lambda strength: distortions.apply(image, kind, strength, field)


def _ordered(image: _Image, kinds: Sequence[str], turn: int, rng: np.random.Generator) -> tuple[str, _Image, _Image]:
    """A kind, and the image distorted by it weakly and more strongly."""
    for attempt in range(REDRAWS):
        # Some kinds cannot change some patches, as quantisation a black and white drawing: then take the next kind.
        kind = kinds[(turn + attempt // 10) % len(kinds)]
        distorted = _at(image, kind, rng)
        strength = float(rng.uniform(*WEAKER))
        weaker = distorted(strength)
        stronger = distorted(strength + float(rng.uniform(*STEP)))
        if not (np.array_equal(image, weaker) or np.array_equal(weaker, stronger)):
            return kind, weaker, stronger
    raise TripletsError(f"patch {turn} is not changed by {', '.join(kinds)}; give other kinds or other photographs")


def _two_kinds(image: _Image, kinds: Sequence[str], rng: np.random.Generator) -> tuple[str, _Image, _Image]:
    """A label, and the image distorted by two different kinds."""
    i, j = rng.choice(len(kinds), size=2, replace=False)
    first, second = kinds[int(i)], kinds[int(j)]
    p0, p1 = (_at(image, kind, rng)(float(rng.uniform(*CROSSED))) for kind in (first, second))
    return f"{first}/{second}", p0, p1


def _source(
    made: str, folder: str | os.PathLike[str], count: int, seed: int, kinds: Sequence[str], size: int
) -> dict[str, Any]:
    return {
        "made": made,
        "folder": os.fspath(folder),
        "count": count,
        "seed": seed,
        "kinds": list(kinds),
        "size": size,
        "version": __version__,
    }
