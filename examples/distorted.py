"""What pixel error does not see: photographs distorted in six ways, and how far metrics find them from the original."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from examples.photographs import Photograph, pixel_error
from examples.stage import Stage
from rlpips_jax import reports
from rlpips_jax.distances.distance import distance
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.evaluation import distortions
from rlpips_jax.reports.page import Cell, Pictures, Section, Shown, Table, Text

MILD, HARSH = ("brightness", "contrast"), ("warp", "jpeg", "noise", "blur")
"""Distortions that people hardly notice, and some that they do."""

LARGEST_ERROR = 0.05
SURPLUS = 1.5
"""Pixel error of the mild distortions over that of the harsh ones."""


class Distorted(NamedTuple):
    """A distorted photograph and how far it is from the original."""

    kind: str
    picture: Photograph
    pixel_error: float
    distances: dict[str, float]


def show(stage: Stage) -> Section:
    """Distorts all photographs; writes contact_sheet.png."""
    names = list(stage.metrics)
    shown = {
        name: sorted_by_distance(picture, stage.metrics, names[0])
        for name, picture in tqdm(stage.photographs.items(), desc="distortions", unit="photograph", disable=None)
    }
    counts = _counts(shown, names)
    stage.say(
        f"Six distortions of {len(shown)} photographs. Of {counts['pairs']} pairs of a mild and a harsh one, right by"
    )
    stage.tell([(name, str(counts[name])) for name in ("pixel error", *names)])
    for name, items in shown.items():
        for item in items:
            stage.keep(f"distorted/{name}-{item.kind}.png", item.picture)
    stage.save("contact_sheet.png", _contact_sheet(stage.photographs, shown, names[0]))
    rows = []
    for name, items in shown.items():
        pictures = [Shown(stage.photographs[name], "original")]
        for item in items:
            lines = (*(f"{metric} {item.distances[metric]:.3f}" for metric in names[:2]),)
            pictures.append(Shown(item.picture, item.kind, (*lines, f"pixel error {item.pixel_error:.3f}")))
        rows.append((name, pictures))
    text = (
        f"Each photograph, distorted in six ways, nearest first by `{names[0]}`. The mild changes ({', '.join(MILD)}) "
        f"have {SURPLUS:g} times the pixel error of the harsh ones ({', '.join(HARSH)}). We take it that people find "
        f"the mild ones closer (look for yourself): then all {counts['pairs']} pairs of a mild and a harsh change "
        "should be in that order."
    )
    total = counts["pairs"]
    table = Table(
        ("measure", "pairs with the mild change closer", "share"),
        [
            (
                name,
                str(counts[name]),
                Cell(f"{counts[name] / total:.2f}", best=counts[name] == total),
            )
            for name in ("pixel error", *names)
        ],
        source=stage.source("rlpips distance {original} {out}/distorted/{first}-*.png --metric {metric} --psnr"),
    )
    return Section("What pixels miss", [Text(text), table, Pictures(rows, size="medium")])


def sorted_by_distance(original: Photograph, metrics: Mapping[str, Metric], by: str) -> list[Distorted]:
    """The photograph distorted in every way, nearest first; pixel error orders them the other way."""
    rng = np.random.default_rng(0)
    draws = {kind: distortions.draw(kind, original.shape, rng) for kind in MILD + HARSH}
    strongest = min(pixel_error(original, distortions.apply(original, kind, 1.0, draws[kind])) for kind in HARSH)
    target = min(0.9 * strongest, LARGEST_ERROR)
    pictures = [
        with_error(original, kind, target * (SURPLUS if kind in MILD else 1), draws[kind]) for kind in MILD + HARSH
    ]
    references, images = np.stack([original] * len(pictures)), np.stack(pictures)
    columns = {name: np.asarray(distance(references, images, metric)) for name, metric in metrics.items()}
    distorted = [
        Distorted(
            kind,
            picture,
            pixel_error(original, picture),
            {name: float(column[number]) for name, column in columns.items()},
        )
        for number, (kind, picture) in enumerate(zip(MILD + HARSH, pictures, strict=True))
    ]
    return sorted(distorted, key=lambda item: item.distances[by])


def with_error(original: Photograph, kind: str, target: float, draw: np.ndarray) -> Photograph:
    """The photograph distorted until its pixel error is the target, as nearly as the kind allows."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        if pixel_error(original, distortions.apply(original, kind, middle, draw)) < target:
            low = middle
        else:
            high = middle
    return distortions.apply(original, kind, high, draw)


def _counts(shown: Mapping[str, list[Distorted]], names: list[str]) -> dict[str, int]:
    """Pairs of a mild and a harsh distortion, and how many of them each measure puts in that order."""
    pairs = [
        (mild, harsh)
        for items in shown.values()
        for mild in items
        for harsh in items
        if mild.kind in MILD and harsh.kind in HARSH
    ]
    counts = {name: sum(mild.distances[name] < harsh.distances[name] for mild, harsh in pairs) for name in names}
    by_error = sum(mild.pixel_error < harsh.pixel_error for mild, harsh in pairs)
    return {"pairs": len(pairs), "pixel error": by_error} | counts


def _contact_sheet(originals: Mapping[str, Photograph], shown: Mapping[str, list[Distorted]], name: str) -> Photograph:
    rows = [
        [reports.Tile(originals[photograph], (photograph, "original"))]
        + [
            reports.Tile(
                item.picture, (f"{item.kind}: {item.distances[name]:.3f}", f"pixel error {item.pixel_error:.3f}")
            )
            for item in items
        ]
        for photograph, items in shown.items()
    ]
    note = f"By pixel error (root mean square), {' and '.join(MILD)} are the farthest."
    return reports.contact_sheet(rows, title=f"Nearest first, by {name}", notes=(note,))
