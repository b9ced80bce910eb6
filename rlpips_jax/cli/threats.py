"""Threats: what is done to images before a metric measures them, and how tables and files say so."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from rlpips_jax.attacks import table
from rlpips_jax.attacks.arguments import read_radius
from rlpips_jax.attacks.objectives import ATTACKED
from rlpips_jax.attacks.worst_case import Attack
from rlpips_jax.errors import AttackError


def _choice(*takes: table.Takes, beside: tuple[str, ...] = ()) -> Any:
    """Makes the type of an option that names an attack; the table is read when a command is called."""
    return tyro.conf.arg(
        constructor_factory=lambda: tyro.extras.literal_type_from_choices((*beside, *table.names(*takes)))
    )


USUAL = "usual"
"""In place of an attack's name: the one that fits what is given."""

PictureAttack = Annotated[str, _choice("objective", "distance", beside=(USUAL,))]
"""Name of an attack on triplets, distances or single images, or `USUAL`."""

TripletAttack = Annotated[str, _choice("objective", "goal", "distance")]
"""Name of an attack on triplets or their references."""

CROPPED = "cropped shift"
"""Name of the threat of `rlpips_jax.evaluation.shift_robustness`, which is not an attack."""

ADAPTED = ("draws", "fixed", "surrogate")
"""Fields that most threats do not use."""


@dataclass(frozen=True)
class Threat:
    """What is done to triplets before a metric measures them.

    Attributes:
        name: the attack, `CROPPED`, or "" for nothing.
        norm: of the ball; "pixels" for flows and shifts, "" for a bound on the metric.
        epsilon: radius, as a fraction of the range of values, or in pixels; for impostors the bound on the metric, in
            usual distances; 0 where nothing bounds the attack.
        attacked: which image the attack moves.
        steps: gradients, or queries of attacks without gradients.
        restarts: starts.
        draws: transformations that each step averages; 0 where the attacked metric is not random.
        fixed: the ensemble always draws the same, and the attack knows what.
        surrogate: name of the metric that is attacked in place of the judging one; "" for none.
    """

    name: str = ""
    norm: str = ""
    epsilon: float = 0.0
    attacked: str = ""
    steps: int = 0
    restarts: int = 1
    draws: int = 0
    fixed: bool = False
    surrogate: str = ""

    @classmethod
    def of(cls, document: dict[str, Any] | None) -> "Threat":
        """The threat that a result on disk was found under."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in (document or {}).items() if name in names})

    def document(self) -> dict[str, Any]:
        """The fields that apply, as they are written to disk."""
        document = dataclasses.asdict(self)
        return {name: document[name] for name in document if document[name] or name not in ADAPTED}

    @property
    def words(self) -> str:
        """The attack, as tables show it."""
        return ", ".join((f"{self.name} {self.norm}".rstrip(), *self._adaptation)) if self.name else "-"

    @property
    def line(self) -> tuple[str, ...]:
        """What its curve is labelled with, to distinguish it from others of the same attack."""
        return (self.attacked, *self._adaptation) if self.attacked else self._adaptation

    @property
    def _adaptation(self) -> tuple[str, ...]:
        parts = (
            f"{self.draws} draw{'s' * (self.draws > 1)}" if self.draws else "",
            "key known" if self.fixed else "",
            f"on {self.surrogate}" if self.surrogate else "",
        )
        return tuple(filter(None, parts))

    @property
    def exposes(self) -> bool:
        """Whether it moves references alone, to expose what a metric can be made to measure."""
        return self.name in table.names("distance")

    @property
    def seeks(self) -> bool:
        """Whether it looks for the smallest change that reverses an order."""
        return self.name in table.names("goal")

    @property
    def is_base(self) -> bool:
        """Whether others are compared with it: no attack, or a shift by 0."""
        return self.name == "" or (self.name == CROPPED and self.epsilon == 0)

    def function(self) -> Attack:
        """The attack, as `rlpips_jax.evaluation.evaluate` takes it."""
        attack = table.entry(self.name)
        options = attack.options(steps=self.steps, norm=self.norm, restarts=self.restarts)
        return functools.partial(attack.function, **options)

    @property
    def sides(self) -> Sequence[str]:
        """Which images the attack moves; of several, the one that does most harm."""
        return ATTACKED if self.attacked == "worst" else (self.attacked,)

    def radii(self) -> tuple[str, str]:
        """The radius for images in [0, 1] and in [-1, 1], as tables show it."""
        if not self.name or (self.seeks and not self.epsilon):
            return "", ""
        if self.norm == "pixels":
            return f"{self.epsilon:g} px", f"{self.epsilon:g} px"
        if not self.norm:
            return f"{self.epsilon:g} usual", f"{self.epsilon:g} usual"
        return _fraction(self.epsilon), _fraction(2 * self.epsilon)


def epsilon_of(text: str, norm: str) -> float:
    """A radius such as "2/255" or "0.03".

    Args:
        text: what was given.
        norm: radii in "linf" and "l2" are fractions of the range of values, in "pixels" pixels.

    Raises:
        AttackError: it is not a number, or outside its range.
    """
    try:
        value = read_radius(text)
    except ValueError:
        raise AttackError(f"--epsilon {text} is not a number such as 2/255 or 0.01") from None
    if value < 0 or (norm == "linf" and value > 1):
        raise AttackError(
            f"--epsilon {text} is a fraction of the range of values, from 0 to 1 in l-inf: 2 grey levels are 2/255"
        )
    return value


def _fraction(value: float) -> str:
    levels = value * 255
    return f"{round(levels)}/255" if levels >= 0.5 and abs(levels - round(levels)) < 1e-6 else f"{value:.4g}"
