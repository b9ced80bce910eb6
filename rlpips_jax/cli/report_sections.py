"""The sections of the page that `rlpips report` writes: what results say, as tables and charts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlpips_jax import reports
from rlpips_jax.cli.evaluate import exposure_table, radius_table
from rlpips_jax.cli.evaluate_pairs import pair_tables
from rlpips_jax.cli.findings import Document, Findings, source_of
from rlpips_jax.cli.results import metric_of
from rlpips_jax.cli.threats import Threat
from rlpips_jax.cli.worst_examples import Row, examples_block, reversed_by_attack, wrong_as_they_are
from rlpips_jax.evaluation import Triplets
from rlpips_jax.reports.charts import Chart, Curve, Dots, curve_chart, dot_chart
from rlpips_jax.reports.page import Block, Cell, Charts, Code, Number, Numbers, Section, Table, Text

MOST_KINDS = 16
"""Kinds of distortion in a chart; the table has all."""

MADE = {
    "ordinal": ", made of your photographs: one distortion at two strengths, of which the weaker one counts as closer. "
    "Nobody was asked.",
    "crossed": ", made of your photographs: two distortions, which another metric has judged. Nobody was asked.",
}
"""What a caption says of triplets that were made, by how."""

UNITS = {"linf": "l-inf radius in grey levels of 255", "l2": "l2 radius, images in [0, 1]", "pixels": "pixels"}
UNITS["range"] = UNITS["linf"]

Score = Mapping[str, float]


def sections(found: Findings, *, examples: int, command: str) -> list[Section]:
    """All sections that the results are enough for.

    Args:
        found: results.
        examples: rows of pictures of each metric and set; 0 for none.
        command: that makes the page.
    """
    made = [scores(found), under_attack(found), by_kind(found), worst(found, examples), certified(found), others(found)]
    return [*(one for one in made if one is not None), repeat(found, command)]


def scores(found: Findings) -> Section | None:
    """How each metric agrees with the judgments, as they are and under the first attack."""
    blocks: list[Block] = []
    asked = False
    for triplets in found.subjects.sets:
        made = made_how(triplets.source)
        asked |= made not in MADE
        all_clear = isinstance(triplets, Triplets) and triplets.sure is None
        attacks = found.attacks(triplets.name)
        (first, documents) = next(iter(attacks.items()), (("", "", ""), []))
        radii = {one["threat"]["epsilon"]: Threat.of(one["threat"]).radii()[0] for one in documents}
        if not blocks and radii:
            blocks.append(_at_first_sight(found, triplets.name, documents, list(radii)))
        columns: list[list[Score | None]] = []
        for label in found.labels:
            plain = [one for one in documents if one["metric"] == label and not _adapted(one)]
            at = {one["threat"]["epsilon"]: one["scores"]["two_afc"] for one in plain}
            natural = found.natural(triplets.name, label)["scores"]
            clear = () if all_clear else (natural["sure"],)
            columns.append([natural["two_afc"], *clear, *(at.get(radius) for radius in radii)])
        clear = () if all_clear else ("where the judgment is clear",)
        header = ("metric", "2AFC", *clear, *(f"{first[0]} {text}" for text in radii.values()))
        caption = f"**{triplets.name}**: {len(triplets)} triplets{MADE.get(made, '')}"
        blocks.append(Table(header, _best(found.labels, columns), caption, source_of(found.scored(triplets.name))))
    if not blocks:
        return None
    explained = (
        "The 2AFC score is the share of judgments that a metric agrees with: 1 is all of them, 0.5 is what guessing "
        "gives."
    )
    if asked:
        explained += " Where people disagree among themselves no metric reaches 1."
    return Section("Scores", [Text(f"{explained} Brackets are intervals of 95 %."), *blocks])


def made_how(source: Mapping[str, Any]) -> str:
    """Which function made triplets of photographs, now or before they were kept in a file; "" where people judged."""
    made = source.get("made", "")
    return made_how(made) if isinstance(made, Mapping) else made


def _at_first_sight(found: Findings, data: str, documents: Sequence[Document], radii: Sequence[float]) -> Numbers:
    radius = sorted(radii)[len(radii) // 2]
    numbers = []
    for label in found.labels:
        natural = found.natural(data, label)["scores"]["two_afc"]
        attacked = next(
            (one for one in documents if one["metric"] == label and one["threat"]["epsilon"] == radius), None
        )
        if natural is None or attacked is None or attacked["scores"]["two_afc"] is None:
            continue
        after, threat = attacked["scores"]["two_afc"]["mean"], Threat.of(attacked["threat"])
        tone = "bad" if after < 0.5 else "good" if after > 0.75 else ""
        note = f"2AFC on {data}, as it is and under {threat.name} {threat.radii()[0]}"
        numbers.append(Number(f"{natural['mean']:.3f} → {after:.3f}", f"`{label}`", note, tone))
    return Numbers(numbers)


def _best(labels: Sequence[str], columns: Sequence[Sequence[Score | None]]) -> list[list[Cell]]:
    """Rows of scores, the best of each column marked."""
    rows = [[Cell(label)] for label in labels]
    for place in range(len(columns[0])):
        means = [scores[place]["mean"] if scores[place] else -np.inf for scores in columns]  # pyright: ignore
        for row, score, mean in zip(rows, columns, means, strict=True):
            row.append(_cell(score[place], best=len(labels) > 1 and mean == max(means)))
    return rows


def _cell(score: Score | None, *, best: bool = False) -> Cell:
    if score is None:
        return Cell("-")
    return Cell(f"{score['mean']:.3f}", f"[{score['low']:.3f}, {score['high']:.3f}]", best)


def _adapted(document: Document) -> bool:
    """Whether a result is of a transferred attack, or of one that knows the draws."""
    return bool({"surrogate", "fixed"} & document["threat"].keys())


def under_attack(found: Findings) -> Section | None:
    """Curves of the scores over the radius of each attack."""
    groups: dict[tuple[str, str, str], list[tuple[str, list[Document]]]] = {}
    for triplets in found.subjects.sets:
        for attack, documents in found.attacks(triplets.name).items():
            groups.setdefault(attack, []).append((triplets.name, documents))
    if not groups:
        return None
    explained = (
        "An attack changes images as little as its radius says, and knows the judgment: it moves the image that was "
        "judged closer until the metric finds it farther. Reversed is the share of triplets that were ranked right and "
        "are not any more."
    )
    blocks: list[Block] = [Text(explained)]
    for (name, norm, attacked), members in groups.items():
        charts = [_curves(found, data, name, norm, documents) for data, documents in members]
        every = [one for _, documents in members for one in documents]
        steps = ", ".join(sorted({str(one["threat"]["steps"]) for one in every}))
        caption = f"**{name}** with {steps} steps in {norm}, moving: {attacked}. Bands are intervals of 95 %."
        blocks.append(Charts(charts, caption, source_of(every)))
        header = ("metric", "data", "radius", "2AFC", "reversed")
        rows = [
            (
                metric_of(one) + "".join(f", {part}" for part in Threat.of(one["threat"]).line[1:]),
                *(data, Threat.of(one["threat"]).radii()[0]),
                *(_cell(one["scores"]["two_afc"]), _cell(one["scores"]["flip_rate"])),
            )
            for data, documents in members
            for one in documents
        ]
        blocks.append(Table(header, rows, f"All numbers of {name} in {norm}", folded=True))
    return Section("Under attack", blocks)


def _curves(found: Findings, data: str, name: str, norm: str, documents: Sequence[Document]) -> Chart:
    scale = 255 if norm in ("linf", "range") else 1
    lines: dict[str, list[tuple[float, Score]]] = {}
    for one in documents:
        label = ", ".join((metric_of(one), *Threat.of(one["threat"]).line[1:]))
        start = found.natural(data, one["metric"])["scores"]["two_afc"]
        line = lines.setdefault(label, [(0.0, start)] if start else [])
        if score := one["scores"]["two_afc"]:
            line.append((scale * one["threat"]["epsilon"], score))
    colours = {label: number for number, label in enumerate(dict.fromkeys((*map(str, found.labels), *lines)))}
    curves = [
        Curve(
            label,
            _colour(found, label, colours),
            [radius for radius, _ in points],
            [score["mean"] for _, score in points],
            ([score["low"] for _, score in points], [score["high"] for _, score in points]),
        )
        for label, points in lines.items()
        if points
    ]
    return curve_chart(curves, title=data, x_label=UNITS.get(norm, norm), y_label="2AFC score", level=0.5)


def _colour(found: Findings, label: str, colours: Mapping[str, int]) -> int:
    """The colour of a metric, also where its samples are named after it."""
    plain = label.split(" (")[0]
    return found.labels.index(plain) if plain in found.labels and "," not in label else colours[label]


def by_kind(found: Findings) -> Section | None:
    """Scores of each kind of distortion, as they are and under the first attack."""
    blocks: list[Block] = []
    for triplets in found.subjects.sets:
        data = triplets.name
        natural = {label: found.natural(data, label) for label in found.labels}
        kinds = list(dict.fromkeys(kind for one in natural.values() for kind in one["by_kind"]))
        if len(kinds) < 2:
            continue
        parts = {"as they are": natural} | _at_middle_radius(found, data)
        last = list(parts.values())[-1]
        kinds.sort(key=lambda kind: -_mean_of(kind, last))
        most = sorted(kinds, key=lambda kind: -_count(natural[found.labels[0]], kind))[:MOST_KINDS]
        shown = [kind for kind in kinds if kind in most]
        charts = []
        for title, documents in parts.items():
            dots = [
                Dots(label, found.labels.index(label), [_ends(one, kind) for kind in shown])
                for label, one in documents.items()
            ]
            charts.append(dot_chart(shown, dots, title=f"{data}, {title}", x_label="2AFC score", level=0.5))
        left = f" The {MOST_KINDS} kinds with most triplets of {len(kinds)}." if len(kinds) > len(shown) else ""
        caption = f"By kind of distortion; a triplet with two kinds counts for both.{left}"
        blocks.append(Charts(charts, caption, source_of([one for part in parts.values() for one in part.values()])))
        header = ("kind", "triplets", *(f"{label}, {title}" for title, of in parts.items() for label in of))
        rows = [
            (
                kind,
                str(_count(natural[found.labels[0]], kind)),
                *(_cell(one["by_kind"].get(kind, {}).get("two_afc")) for of in parts.values() for one in of.values()),
            )
            for kind in kinds
        ]
        blocks.append(Table(header, rows, f"All numbers of {data} by kind", folded=True))
    return Section("By kind of distortion", blocks) if blocks else None


def _at_middle_radius(found: Findings, data: str) -> dict[str, dict[str, Document]]:
    """The results of the first attack at its middle radius, by metric, below a title."""
    for documents in found.attacks(data).values():
        plain = [one for one in documents if not _adapted(one)]
        radii = sorted({one["threat"]["epsilon"] for one in plain})
        if radii:
            chosen = [one for one in plain if one["threat"]["epsilon"] == radii[len(radii) // 2]]
            threat = Threat.of(chosen[0]["threat"])
            return {f"{threat.name} {threat.radii()[0]}": {one["metric"]: one for one in chosen}}
    return {}


def _mean_of(kind: str, documents: Mapping[str, Document]) -> float:
    means = [ends[0] for one in documents.values() if (ends := _ends(one, kind))]
    return float(np.mean(means)) if means else 0.0


def _ends(document: Document, kind: str) -> tuple[float, float, float] | None:
    score = document["by_kind"].get(kind, {}).get("two_afc")
    return None if score is None else (score["mean"], score["low"], score["high"])


def _count(document: Document, kind: str) -> int:
    score = document["by_kind"].get(kind, {}).get("two_afc")
    return int(score["count"]) if score else 0


def worst(found: Findings, examples: int) -> Section | None:
    """Pictures of the triplets on which metrics fail most clearly."""
    blocks: list[Block] = []
    for triplets in found.subjects.sets if examples else ():
        natural: list[Row] = []
        attacked: list[Row] = []
        attacks: list[str] = []
        for label in found.labels:
            natural += wrong_as_they_are(found, triplets, label, examples)
            rows, threat = reversed_by_attack(found, triplets, label, examples)
            attacked += rows
            attacks += [f"`{label}` {threat}"] if rows else []
        if attacked:
            caption = (
                f"**{triplets.name}**: the most clearly ranked triplets among those that the smallest attack reverses: "
                f"{', '.join(attacks)}. The attack was made again for these pictures, and the distances are theirs."
            )
            blocks.append(examples_block(found, triplets, attacked, caption))
        if natural:
            caption = f"**{triplets.name}**, without an attack: what metrics rank most clearly against the judgment."
            blocks.append(examples_block(found, triplets, natural, caption))
    return Section("Worst examples", blocks) if blocks else None


def certified(found: Findings) -> Section | None:
    """The share of triplets whose order is proven, over the radius."""
    if not found.certificates:
        return None
    explained = (
        "A certificate holds against every change, not only those that an attack finds: no change of the images of at "
        "most this l2 length (images in [0, 1]) reverses the order, up to the probability that is named. It is about "
        "the smoothed ranking, the order that the metric finds most often under Gaussian noise. The share counts "
        "triplets that are ranked right and proven."
    )
    blocks: list[Block] = [Text(explained)]
    groups: dict[tuple[Any, ...], list[Document]] = {}
    for one in found.certificates:
        smoothing = one["certificate"]
        key = (one["data"], one["triplets"], *(smoothing[name] for name in ("sigma", "samples", "alpha", "attacked")))
        groups.setdefault(key, []).append(one)
    charts = []
    for (data, count, sigma, *_), documents in groups.items():
        title = f"{data}, {count} triplets, sigma {sigma:g}"
        charts.append(_certified_curves(found, title, documents))
    smoothing = found.certificates[0]["certificate"]
    caption = (
        f"{smoothing['samples']} draws of noise on: {smoothing['attacked']}. Each certificate is wrong with a "
        f"probability of at most {smoothing['alpha']:g}."
    )
    blocks.append(Charts(charts, caption, source_of(found.certificates)))
    radii = list(dict.fromkeys(item["radius"] for one in found.certificates for item in one["certified_accuracy"]))
    header = ("metric", "data", "triplets", "sigma", *(_radius(radius) for radius in radii), "no answer")
    rows = []
    for one in found.certificates:
        shares = {item["radius"]: f"{item['share']:.3f}" for item in one["certified_accuracy"]}
        rows.append(
            (
                *(one["metric"], one["data"], str(one["triplets"]), f"{one['certificate']['sigma']:g}"),
                *(shares.get(radius, "-") for radius in radii),
                f"{one['abstention_rate']:.3f}",
            )
        )
    blocks.append(Table(header, rows, "Share that is right and certified at each l2 radius"))
    return Section("Certificates", blocks)


def _certified_curves(found: Findings, title: str, documents: Sequence[Document]) -> Chart:
    columns = [found.columns(one) for one in documents]
    largest = max(float(of["radius"].max()) for of in columns) or 1.0
    grid = np.linspace(0, 1.05 * largest, 240)
    curves = []
    for one, of in zip(documents, columns, strict=True):
        proven = np.where(of["reversed"].astype(bool) | of["abstained"].astype(bool), -1.0, of["radius"])
        shares = (proven[None] >= grid[:, None]).mean(axis=1)
        curves.append(
            Curve(one["metric"], found.labels.index(one["metric"]), grid.tolist(), shares.tolist(), marks=False)
        )
    return curve_chart(curves, title=title, x_label="l2 radius, images in [0, 1]", y_label="right and certified")


def _radius(radius: float) -> str:
    levels = radius * 255
    return f"r = {round(levels)}/255" if radius and abs(levels - round(levels)) < 1e-6 else f"r = {radius:.3g}"


def others(found: Findings) -> Section | None:
    """Results that have no curves: opinions about pairs, references driven far, smallest changes."""
    blocks: list[Block] = []
    agreed = [one for one in found.documents if "agreement" in one]
    for header, rows in pair_tables(agreed):
        blocks.append(_turned(header, rows, "Agreement with opinions about pairs", agreed))
    exposed = [one for one in found.documents if "exposure" in one]
    if exposed:
        caption = "How far a reference can be driven, relative to the usual distance and difference"
        blocks.append(_turned(*exposure_table(exposed), caption, exposed))
    sought = [one for one in found.documents if "radii" in one]
    if sought:
        blocks.append(_turned(*radius_table(sought), "The smallest change that reverses an order", sought))
    return Section("Further results", blocks) if blocks else None


def _turned(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, documents: Sequence[Document]) -> Table:
    """A table of the command line, with the metric in its first column."""
    place = list(header).index("metric")
    order = [place, *(number for number in range(len(header)) if number != place)]
    turned = [[Cell(*_split(row[number])) for number in order] for row in rows]
    return Table([header[number] for number in order], turned, caption, source_of(documents))


def _split(text: str) -> tuple[str, str]:
    """A value and its interval."""
    value, bracket, rest = text.partition(" [")
    return (value, f"[{rest}") if bracket else (text, "")


def repeat(found: Findings, command: str) -> Section:
    """Everything that is needed to get the same numbers."""
    every = [*found.documents, *found.certificates]
    commands = dict.fromkeys(one["command"] for one in every)
    blocks: list[Block] = [Code([command], "This page, from the results in its folder; what is missing is computed:")]
    if others_ := [one for one in commands if one != command]:
        blocks.append(Code(others_, "The results that it is made of:"))
    signatures = [(label, metric.signature) for label, metric in found.subjects.metrics.items()]
    blocks.append(
        Table(("metric", "signature"), signatures, "A signature pins a number: version, network, parameters.")
    )
    sources = [
        (of.name, str(len(of)), json.dumps(json.loads(reports.json_text(dict(of.source))), ensure_ascii=False))
        for of in (*found.subjects.sets, *found.subjects.pairs)
    ]
    blocks.append(Table(("data", "number", "source"), sources, "The data"))
    versions = [json.dumps(one["versions"]) for one in every]
    rows = [tuple(json.loads(text).items()) for text in dict.fromkeys(versions)]
    for row in rows:
        blocks.append(Table([name for name, _ in row], [[value for _, value in row]], "Versions"))
    files = [(one["columns"].removesuffix("l"), f"{one['seconds']:g}", one["finished"]) for one in every]
    blocks.append(Table(("file", "seconds", "finished"), files, f"{len(files)} results in {found.folder}", folded=True))
    return Section("Repeat it", blocks)
