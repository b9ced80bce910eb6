"""`rlpips report`: one web page about metrics on judged triplets, made of what `evaluate` and `certify` leave."""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rlpips_jax.cli.certify import Certify
from rlpips_jax.cli.evaluate import Evaluate, tables
from rlpips_jax.cli.findings import Findings, findings
from rlpips_jax.cli.report_sections import sections
from rlpips_jax.cli.results import write_whole
from rlpips_jax.cli.threats import TripletAttack
from rlpips_jax.cli.triplet_options import TripletOptions
from rlpips_jax.errors import ReportError
from rlpips_jax.evaluation.sources import triplet_source_of
from rlpips_jax.reports.page import render

USUAL = "pgd"
"""The attack that is measured where there is none."""


@dataclass(frozen=True, kw_only=True)
class Report(TripletOptions):
    """Write one web page about metrics: scores, curves under attack, kinds of distortion, worst examples, certificates.

    The page is one file without scripts that needs no network. It is made of the results in --results, where
    rlpips evaluate and rlpips certify may have left some: nothing that is there is computed again, and what is missing
    is computed and left there. After an interruption the same command continues where it stopped.

    Examples:
        rlpips report --data photographs/ --metric lpips-tiny --metric rlpips-tiny --out report.html
        rlpips report --data triplets.npz --metric lpips-alex --metric rlpips-alex --limit 200 --certify 30
        rlpips report --data triplets.npz --metric lpips-alex --results report/   # after rlpips evaluate --out report/
    """

    attack: Annotated[tuple[TripletAttack, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help_behavior_hint="")] = ()
    """Attack to measure, as of rlpips evaluate. Without it: those in --results, or pgd if there are none."""

    epsilon: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="E [E ...]", help_behavior_hint="(default: 1/255 2/255 4/255)")
    ] = ()
    """Radii of the attack, as fractions of the range of values."""

    steps: int = 20
    """Steps of an attack."""

    certify: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: none)")] = None
    """Also certify the first N triplets of each set, as rlpips certify does by default. Certificates that are in
    --results are shown in any case."""

    examples: int = 3
    """Triplets to show of each metric and set, of the two kinds: reversed by the smallest attack, and ranked against
    the judgment without one."""

    batch: int = 50
    """Triplets attacked at once: bounds memory. The draws depend on it."""

    seed: int = 0
    """For all random draws."""

    title: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: says which metrics)")] = ""
    """Heading of the page."""

    results: Path = Path("report")
    """Folder of the results."""

    out: Path = Path("report.html")
    """The page."""

    def run(self) -> int:
        self._check()
        natural = self._evaluate()
        subjects = natural.subjects()
        natural.measure(subjects)
        found = findings(self.results, subjects)
        if self.attack or self.epsilon or not _all_attacked(found):
            self._evaluate(*(self.attack or (USUAL,))).measure(subjects)
        if self.certify is not None:
            self._certify().measure()
        found = findings(self.results, subjects)
        command = shlex.join(["rlpips", *sys.argv[1:]])
        title = self.title or _title(found)
        write_whole(self.out, render(title, _lead(found), sections(found, examples=self.examples, command=command)))
        print(tables(found.documents))
        print(f"results: {self.results}\npage: {self.out}")
        return 0

    def _check(self) -> None:
        """Raises a ReportError for arguments that make no sense."""
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise ReportError(f"--out is the page, and must end in .html, got {self.out}; --results is the folder")
        if self.examples < 0:
            raise ReportError(f"--examples must be 0 or more, got {self.examples}")
        if self.certify is not None and self.certify < 1:
            raise ReportError(f"--certify must be 1 or more, got {self.certify}")
        if self.certify is not None and not any(map(triplet_source_of, self.data)):
            raise ReportError("--certify needs triplets in --data")

    def _evaluate(self, *attack: str) -> Evaluate:
        options = {"epsilon": self.epsilon if attack else (), "steps": self.steps, "batch": self.batch}
        return Evaluate(**self._shared, **options, attack=attack, seed=self.seed, out=self.results)

    def _certify(self) -> Certify:
        certify = Certify(**self._shared, seed=self.seed, out=self.results)
        limit = min(filter(None, (self.certify, self.limit)))
        data = tuple(path for path in self.data if triplet_source_of(path))
        return dataclasses.replace(certify, limit=limit, data=data)

    @property
    def _shared(self) -> dict[str, Any]:
        """The options about triplets and metrics."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(TripletOptions)}


def _all_attacked(found: Findings) -> bool:
    """Whether every metric on every set of triplets has a result under an attack."""
    there = {(one["data"], one["metric"]) for one in found.documents if one["threat"] is not None}
    subjects = found.subjects
    return all((of.name, label) in there for of in (*subjects.sets, *subjects.pairs) for label in subjects.metrics)


def _title(found: Findings) -> str:
    labels = found.labels
    return f"{labels[0]}: how far to trust it" if len(labels) == 1 else f"How far to trust {_listed(labels)}"


def _lead(found: Findings) -> str:
    subjects = found.subjects
    names = [f"{of.name} ({len(of)} triplets)" for of in subjects.sets]
    names += [f"{of.name} ({len(of)} pairs)" for of in subjects.pairs]
    count = len(found.labels)
    return (
        f"{count} metric{'s' * (count > 1)} on {_listed(names)}: how well distances agree with the judgments, how "
        "little it takes to reverse them, and what is proven."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
