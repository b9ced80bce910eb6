"""The results in a folder that are about given sets and metrics: what `rlpips report` makes its page of."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlpips_jax import reports
from rlpips_jax.cli.evaluate import Subjects, written
from rlpips_jax.cli.threats import CROPPED, Threat
from rlpips_jax.evaluation.judged_pairs import JudgedPairs
from rlpips_jax.evaluation.triplets import AnyTriplets
from rlpips_jax.files.json_object import json_object, json_value
from rlpips_jax.files.regular import read_regular
from rlpips_jax.reports.page import Source

Document = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """Results as they are written, by what they are about.

    Attributes:
        subjects: the sets and the metrics.
        folder: where the results lie.
        documents: of triplets and of pairs, from `rlpips evaluate`.
        certificates: from `rlpips certify`.
    """

    subjects: Subjects
    folder: Path
    documents: Sequence[Document]
    certificates: Sequence[Document]

    @property
    def labels(self) -> list[str]:
        """The metrics' labels in the order of the command."""
        return list(self.subjects.metrics)

    def scored(self, data: str | None = None) -> list[Document]:
        """Scores of triplets, of one set or of all."""
        return [one for one in self.documents if "scores" in one and data in (None, one["data"])]

    def natural(self, data: str, metric: str) -> Document:
        """The scores of one metric on one set without an attack."""
        return next(one for one in self.scored(data) if one["metric"] == metric and one["threat"] is None)

    def attacks(self, data: str) -> dict[tuple[str, str, str], list[Document]]:
        """Scores under attack, by the attack's name, norm and moved image, radii rising; cropped shifts are not any."""
        found: dict[tuple[str, str, str], list[Document]] = {}
        for one in self.scored(data):
            threat = Threat.of(one["threat"])
            if threat.name and threat.name != CROPPED:
                found.setdefault((threat.name, threat.norm, threat.attacked), []).append(one)
        return {key: sorted(ones, key=lambda one: one["threat"]["epsilon"]) for key, ones in found.items()}

    def columns(self, document: Document) -> dict[str, np.ndarray]:
        """The numbers of each triplet, by their names."""
        header, *parts = read_regular(self.folder / document["columns"]).splitlines()
        names = json_object(header)["columns"]
        lists: Any = [json_value(part) for part in parts]
        return {name: np.concatenate([np.asarray(part[place]) for part in lists]) for place, name in enumerate(names)}


def findings(folder: Path, subjects: Subjects) -> Findings:
    """The results in a folder about these sets and metrics; those of other data, parameters or counts are left out."""
    signatures = {label: metric.signature for label, metric in subjects.metrics.items()}
    lengths: dict[str, AnyTriplets | JudgedPairs] = {one.name: one for one in (*subjects.sets, *subjects.pairs)}

    def about(document: Mapping[str, Any]) -> bool:
        of = lengths.get(document.get("data", ""))
        return (
            of is not None
            and document.get("source") == json.loads(reports.json_text(dict(of.source)))
            and document.get("signature") == signatures.get(document.get("metric", ""), "")
        )

    def whole(document: Mapping[str, Any]) -> bool:
        return document.get("triplets", document.get("pairs")) == len(lengths[document["data"]])

    documents = [one for one in written(folder) if about(one) and whole(one)]
    order = {label: number for number, label in enumerate(subjects.metrics)}
    documents.sort(key=lambda one: order[one["metric"]])
    certificates = [one for one in _certificates(folder) if about(one)]
    certificates.sort(key=lambda one: (one["data"], one["certificate"]["sigma"], order[one["metric"]]))
    return Findings(subjects, folder, documents, certificates)


def _certificates(folder: Path) -> list[Document]:
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            document = json_object(read_regular(path))
            if {"certificate", "certified_accuracy", "columns"} <= document.keys():
                found.append(document)
    return found


def source_of(documents: Sequence[Document]) -> Source:
    """The commands and signatures of results, each once."""
    commands = dict.fromkeys(one["command"] for one in documents)
    return Source(tuple(commands), tuple(dict.fromkeys(one["signature"] for one in documents)))
