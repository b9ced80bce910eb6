"""The triplets on which a metric fails most clearly, as pictures: as they are, and under the smallest attack.

Images after an attack are not recorded, so that attack is made again on the few triplets that are shown, from starts of
its own. Numbers below pictures are the distances of the pictures as they are shown, in 8 bits.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from rlpips_jax.attacks import attack_triplets
from rlpips_jax.cli.findings import Document, Findings, source_of
from rlpips_jax.cli.threats import CROPPED, Threat
from rlpips_jax.distances.distance import distance
from rlpips_jax.distances.protocol import is_random
from rlpips_jax.evaluation.measurement import clearly_judged
from rlpips_jax.evaluation.triplets import AnyTriplets
from rlpips_jax.reports.page import Pictures, Shown
from rlpips_jax.reports.sheets import amplified, as_bytes

Row = tuple[str, list[Shown]]


@dataclass(frozen=True)
class Ordered:
    """Distances of the images that people find closer and farther, and whether the judgment is clear."""

    closer: Float[np.ndarray, " n"]
    farther: Float[np.ndarray, " n"]
    clear: Bool[np.ndarray, " n"]

    @property
    def right(self) -> Bool[np.ndarray, " n"]:
        """Whether the metric agrees."""
        return self.closer < self.farther

    @property
    def lead(self) -> Float[np.ndarray, " n"]:
        """log(farther / closer): how clearly the metric agrees."""
        tiny = np.finfo(np.float32).tiny
        return np.log((self.farther + tiny) / (self.closer + tiny))


def wrong_as_they_are(found: Findings, triplets: AnyTriplets, label: str, count: int) -> list[Row]:
    """The triplets that a metric ranks most clearly against the judgment.

    Args:
        found: results.
        triplets: the set.
        label: of the metric.
        count: most rows.
    """
    ordered = _ordered(found, triplets, found.natural(triplets.name, label))
    rows = _first(ordered.clear & ~ordered.right, -ordered.lead, count)
    shown = []
    for row, images in zip(rows, _images(triplets, rows), strict=True):
        pictures = [
            Shown(images[0], "reference"),
            Shown(images[1], "judged closer", (f"distance {ordered.closer[row]:.3f}",)),
            Shown(images[2], "judged farther", (f"distance {ordered.farther[row]:.3f}",), "bad"),
        ]
        shown.append((f"`{label}`: {triplets.kinds[row]}, triplet {row}", pictures))
    return shown


def reversed_by_attack(found: Findings, triplets: AnyTriplets, label: str, count: int) -> tuple[list[Row], str]:
    """The most clearly ranked triplets among those that the smallest attack reverses, and the attack in words.

    Args:
        found: results.
        triplets: the set.
        label: of the metric.
        count: most rows.
    """
    natural = _ordered(found, triplets, found.natural(triplets.name, label))
    for document in _attacked(found, triplets.name, label):
        after = _ordered(found, triplets, document)
        reversed_ = natural.clear & natural.right & (after.closer > after.farther)
        if reversed_.any():
            rows = _first(reversed_, natural.lead, count)
            threat = Threat.of(document["threat"])
            metric = found.subjects.metrics[label]
            shown = _again(metric, triplets, rows, threat, document["threat"]["seed"], count)
            headed = [(f"`{label}`: {triplets.kinds[row]}, triplet {row}", pictures) for row, pictures in shown]
            return headed, f"{threat.words} {threat.radii()[0]}"
    return [], ""


def examples_block(found: Findings, triplets: AnyTriplets, rows: Sequence[Row], caption: str) -> Pictures:
    """Rows of pictures with their caption and their source."""
    return Pictures(rows, caption, source_of(found.scored(triplets.name)))


def _attacked(found: Findings, data: str, label: str) -> list[Document]:
    """Results of a metric under attacks on itself, the smallest changes first."""
    mine = [one for one in found.scored(data) if one["metric"] == label and one["threat"] is not None]
    threats = [(Threat.of(one["threat"]), one) for one in mine]
    own = [(threat.norm, threat.epsilon, one) for threat, one in threats if not threat.surrogate and _ranks(threat)]
    return [one for *_, one in sorted(own, key=lambda item: item[:2])]


def _ranks(threat: Threat) -> bool:
    return threat.name not in ("", CROPPED) and not threat.exposes and not threat.seeks


def _ordered(found: Findings, triplets: AnyTriplets, document: Document) -> Ordered:
    columns = found.columns(document)
    d0, d1 = (np.asarray(columns[name], np.float64) for name in ("d0", "d1"))
    swapped = triplets.judgment > 0.5
    clear = clearly_judged(triplets) & (triplets.judgment != 0.5)
    return Ordered(np.where(swapped, d1, d0), np.where(swapped, d0, d1), clear)


def _first(chosen: Bool[np.ndarray, " n"], order: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
    """The chosen rows of the largest values."""
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-order[rows], kind="stable")][:count]


def _images(triplets: AnyTriplets, rows: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k 3 h w 3"]:
    """Reference, closer and farther image of these triplets."""
    part = triplets.select(rows)
    swapped = (part.judgment > 0.5)[:, None, None, None]
    images = (part.reference, np.where(swapped, part.p1, part.p0), np.where(swapped, part.p0, part.p1))
    return np.stack(images, axis=1)


def _again(
    metric: Any, triplets: AnyTriplets, rows: Int[np.ndarray, " k"], threat: Threat, seed: int, count: int
) -> list[tuple[int, list[Shown]]]:
    """The attack on these triplets, as pictures with their distances."""
    # Filled up, so that one compiled program serves all metrics of one network.
    images = _images(triplets, np.resize(rows, count))
    attack = functools.partial(threat.function(), epsilon=threat.epsilon)
    result = attack_triplets(
        metric,
        *(images[:, place] for place in range(3)),
        attack=attack,
        attacked=threat.sides,
        key=jax.random.key(seed),
    )
    after = np.stack([as_bytes(np.asarray(one)) for one in (result.reference, result.closer, result.farther)], axis=1)
    before_d, after_d = (_distances(metric, one) for one in (images, after))
    if before_d is None or after_d is None:
        before_d, after_d = (
            np.stack([np.asarray(one.closer), np.asarray(one.farther)], 1) for one in (result.before, result.after)
        )
    return [
        (int(row), _pictures(images[place], after[place], before_d[place], after_d[place]))
        for place, row in enumerate(rows)
    ]


def _distances(metric: Any, images: UInt8[np.ndarray, "k 3 h w 3"]) -> Float[np.ndarray, "k 2"] | None:
    """Distances of closer and farther from the reference; None for a random metric."""
    if is_random(metric):
        return None
    return np.stack([np.asarray(distance(images[:, 0], images[:, place], metric)) for place in (1, 2)], axis=1)


def _pictures(
    before: UInt8[np.ndarray, "3 h w 3"],
    after: UInt8[np.ndarray, "3 h w 3"],
    distances: Float[np.ndarray, " 2"],
    attacked: Float[np.ndarray, " 2"],
) -> list[Shown]:
    names = ("reference", "judged closer", "judged farther")
    said = ((), (f"distance {distances[0]:.3f}",), (f"distance {distances[1]:.3f}",))
    shown = [Shown(picture, name, lines) for picture, name, lines in zip(before, names, said, strict=True)]
    moved = [place for place in range(3) if (before[place] != after[place]).any()]
    new = f"{attacked[0]:.3f} and {attacked[1]:.3f}"
    for place in moved:
        lines = (f"distance {attacked[place - 1]:.3f}",) if place else (f"distances {new}",)
        title = "attacked" if len(moved) == 1 else f"{names[place].removeprefix('judged ')}, attacked"
        shown.append(Shown(after[place], title, lines, "bad"))
    for place in moved[:1]:
        change, factor = amplified(before[place], after[place])
        shown.append(Shown(change, "the change", (f"{factor} times",)))
    return shown
