"""Threats: what is done to images before a metric is asked, and how it is told."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlpips_jax import attacks
from rlpips_jax.errors import AttackError
from rlpips_jax.evaluation import measurement
from rlpips_jax.evaluation.radii import read_radius

EXPOSING = ("distort", "impostor")
"""Attacks on single images."""

ADAPTED = ("draws", "fixed", "surrogate")
"""Fields that most threats have no use for."""


@dataclass(frozen=True)
class Threat:
    """What is done to triplets before a metric is asked.

    Attributes:
        name: of the attack, "shift", or "" for nothing.
        norm: of the ball; "pixels" for flows and shifts, "" for impostors.
        epsilon: radius, as a fraction of the range of values, or in pixels; of impostors the bound on the metric, in
            usual distances.
        attacked: whom the attack moves.
        steps: gradients, or queries without gradients.
        restarts: starts.
        draws: transformations that each step averages; 0 where nothing attacked is random.
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
        """What is written of it; without what does not apply."""
        document = dataclasses.asdict(self)
        return {name: document[name] for name in document if document[name] or name not in ADAPTED}

    @property
    def words(self) -> str:
        """The attack, as a table has it."""
        return ", ".join((f"{self.name} {self.norm}".rstrip(), *self._adaptation)) if self.name else "-"

    @property
    def line(self) -> tuple[str, ...]:
        """What tells its curve from others of the same attack."""
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
        """Whether it moves references alone, to expose what a metric says of them."""
        return self.name in EXPOSING

    @property
    def is_base(self) -> bool:
        """Whether others are compared with it: nothing is done, or a shift by 0."""
        return self.name == "" or (self.name == "shift" and self.epsilon == 0)

    def function(self) -> measurement.Attack:
        """The attack, as `rlpips_jax.evaluation.evaluate` takes it."""
        options: dict[str, Any] = {"steps": self.steps}
        if self.name != "spatial":
            options["norm"] = self.norm
        if self.name != "noise":
            options["restarts"] = self.restarts
        if self.name != "worst_case":
            return functools.partial(getattr(attacks, self.name), **options)

        def worst(objective: Any, images: Any, *, key: Any, epsilon: Any, **more: Any) -> Any:
            parts = [functools.partial(part, epsilon=epsilon, **options) for part in (attacks.pgd, attacks.apgd)]
            parts.append(functools.partial(attacks.square, epsilon=epsilon, **options))
            return attacks.worst_case(objective, images, key=key, attacks=parts, **more)

        return worst

    @property
    def sides(self) -> Sequence[str]:
        """Whom the attack moves; of several, whoever does most harm."""
        return attacks.ATTACKED if self.attacked == "worst" else (self.attacked,)

    def radii(self) -> tuple[str, str]:
        """The radius for images in [0, 1] and in [-1, 1], as a table has it."""
        if not self.name:
            return "", ""
        if self.norm == "pixels":
            return f"{self.epsilon:g} px", f"{self.epsilon:g} px"
        if self.name == "impostor":
            return f"{self.epsilon:g} usual", f"{self.epsilon:g} usual"
        return _fraction(self.epsilon), _fraction(2 * self.epsilon)


def epsilon_of(text: str, norm: str) -> float:
    """A radius such as "2/255" or "0.03".

    Args:
        text: what was given.
        norm: "linf" and "l2" are as fractions of the range of values, "pixels" are pixels.

    Raises:
        AttackError: it is none.
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
