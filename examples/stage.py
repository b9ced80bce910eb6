"""What the parts of the demonstration share: photographs, metrics, where pictures go, and what is printed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from examples.photographs import Photograph
from rlpips_jax import reports
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.files.image_files import save_image
from rlpips_jax.reports.page import Source


@dataclass(frozen=True)
class Effort:
    """How much is computed; the defaults take two cores about two minutes.

    Attributes:
        attack_steps: gradients of an attack on a photograph.
        samples: draws of noise of a certificate.
        triplets: triplets made of photographs that were not learnt from.
        training_steps: of the heads.
        descent_steps: from noise.
    """

    attack_steps: int = 40
    samples: int = 400
    triplets: int = 60
    training_steps: int = 150
    descent_steps: int = 300


@dataclass(frozen=True)
class Stage:
    """What a part of the demonstration works with.

    Attributes:
        photographs: by name; the first one is attacked.
        metrics: by name; the first is the fragile one, the second the robust one.
        out: folder of the pictures.
        effort: how much is computed.
        lines: what is printed at the end.
        files: pictures that were written.
    """

    photographs: dict[str, Photograph]
    metrics: dict[str, Metric]
    out: Path
    effort: Effort
    lines: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def first(self) -> tuple[str, Photograph]:
        """The name of the first photograph, and the photograph."""
        return next(iter(self.photographs.items()))

    @property
    def pair(self) -> dict[str, Metric]:
        """The fragile metric and the robust one."""
        return dict(list(self.metrics.items())[:2])

    def keep(self, name: str, picture: np.ndarray) -> Path:
        """Writes a picture into the folder; gives its path."""
        path = self.out / name
        save_image(path, picture)
        return path

    def save(self, name: str, picture: np.ndarray) -> None:
        """The same, and names it at the end."""
        self.files.append(self.keep(name, picture))

    def say(self, line: str) -> None:
        """Adds a line to what is printed at the end, below an empty one."""
        self.lines.extend(["", line])

    def tell(self, rows: Sequence[Sequence[str]]) -> None:
        """Adds a small table to what is printed at the end."""
        self.lines.extend(f"  {line}" for line in reports.table(rows[0], rows[1:]).splitlines())

    def source(self, *commands: str) -> Source:
        """The commands behind a picture, and the signatures of the two metrics.

        Args:
            commands: with {metric}, they are given for each of the two metrics; {original} is the file
                of the first photograph, {first} its name, and {out} the folder.
        """
        first = self.first[0]
        words = {"original": self.out / "photographs" / f"{first}.png", "first": first, "out": self.out}
        found: list[str] = []
        for command in commands:
            names = list(self.pair) if "{metric}" in command else [""]
            found += [command.format(metric=name, **words) for name in names]
        return Source(tuple(found), tuple(metric.signature for metric in self.pair.values()))
