"""The table of attacks.

An entry here, and an attack is offered by `rlpips attack`, `rlpips evaluate` and `python -m training`, listed in the
documentation, and held by tests to what every attack promises.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.apgd import apgd
from rlpips_jax.attacks.arguments import Radius, as_floats
from rlpips_jax.attacks.distort import distort
from rlpips_jax.attacks.fast_lagrangian import fast_lagrangian
from rlpips_jax.attacks.first_reversal import first_reversal
from rlpips_jax.attacks.impostor import impostor
from rlpips_jax.attacks.keys import Key
from rlpips_jax.attacks.lagrangian import lagrangian
from rlpips_jax.attacks.minimum import has_goal, minimum
from rlpips_jax.attacks.noise import noise
from rlpips_jax.attacks.objectives import ATTACKED, Objective
from rlpips_jax.attacks.perceptual_pgd import perceptual_pgd
from rlpips_jax.attacks.pgd import pgd
from rlpips_jax.attacks.recolor import recolor
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.semantic import semantic
from rlpips_jax.attacks.shift import shift
from rlpips_jax.attacks.spatial import spatial
from rlpips_jax.attacks.square import square
from rlpips_jax.attacks.worst_case import worst_case
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

Takes = Literal["objective", "goal", "distance", "references", "bounded objective"]
"""What an attack is called with:

- "objective": `objective, images, *, key, epsilon`; it works on the order of triplets and on distances.
- "goal": `objective, images, *, key`, and `epsilon` if it is bounded; it looks for a small change that reaches the
  objective's goal, such as the reversal of an order, and returns a `MinimumResult`.
- "distance": `metric, images, *, key, epsilon` (or `bound`); it moves each image against itself.
- "references": `metric, images, references, *, key, epsilon`.
- "bounded objective": `objective, images, *, key, metric, bound`.
"""

RADII: Mapping[str, tuple[str, ...]] = {
    "linf": ("1/255", "2/255", "4/255"),
    "range": ("2/255", "4/255", "8/255"),
    "l2": ("0.5", "1", "2"),
    "pixels": ("0.5", "1"),
}
"""Radii that are measured where none are given, by norm or unit; fractions of the whole range of values."""

STRENGTH: Mapping[str, str] = {"linf": "2/255", "range": "2/255", "l2": "1", "pixels": "1"}
"""The radius that one picture is attacked with where none is given."""


PIXEL = 4 / 255
"""The change of values that `union` takes to be as large as a displacement by one pixel, as a share of their range."""


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """What an attack is.

    Attributes:
        function: the attack.
        does: what it does, in a few words.
        takes: how it is called.
        norms: those that its ball can have, by the argument `norm` if there are several; empty if it has no ball.
        unit: the unit of its radius: that of the values ("range"), "pixels", the "metric", or the metric's "root".
        radius: name of the argument that bounds it, "epsilon" or "bound"; "" if nothing does.
        restarts: whether it takes `restarts`.
        random_start: whether it takes `random_start`.
        gradients: whether it needs the gradient of what it attacks.
        moves: which images of a triplet it can move, from `ATTACKED`; empty if it does not work on triplets.
        pace: the command line takes this many steps for each of --steps.
        measured: radii that are measured where none are given; empty for those of `RADII`.
    """

    function: Callable[..., AttackResult]
    does: str
    takes: Takes = "objective"
    norms: tuple[str, ...] = ("linf", "l2")
    unit: Literal["range", "pixels", "metric", "root"] = "range"
    radius: Literal["epsilon", "bound", ""] = "epsilon"
    restarts: bool = True
    random_start: bool = False
    gradients: bool = True
    moves: tuple[str, ...] = field(default=ATTACKED)
    pace: int = 1
    measured: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """How its radius can be told: its norms, else its unit."""
        return self.norms or (self.unit,)

    def radii(self, measure: str) -> tuple[str, ...]:
        """Radii that are measured where none are given, in one of `measures`."""
        return self.measured or RADII[measure]

    def options(self, *, steps: int, norm: str | None = None, restarts: int | None = None) -> dict[str, Any]:
        """Arguments by name, those alone that the attack takes.

        Args:
            steps: of the attack.
            norm: of the ball; None for the attack's own default.
            restarts: starts; None for the attack's own default.
        """
        options: dict[str, Any] = {"steps": steps}
        if len(self.norms) > 1 and norm is not None:
            options["norm"] = norm
        if self.restarts and restarts is not None:
            options["restarts"] = restarts
        return options


def strongest(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    norm: str = "linf",
    steps: int,
    restarts: int = 1,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """`worst_case` of `pgd`, `apgd`, `square`, in l-inf `recolor`, and, where the objective has a goal, `minimum`."""
    options = {"epsilon": epsilon, "steps": steps}
    parts = [functools.partial(attack, norm=norm, restarts=restarts, **options) for attack in (pgd, apgd, square)]
    if norm == "linf":
        parts.append(functools.partial(recolor, restarts=restarts, **options))
    if has_goal(objective):
        parts.append(functools.partial(minimum, norm=norm, **options))
    return worst_case(objective, images, key=key, attacks=parts, value_range=value_range)


def union(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    steps: int,
    restarts: int = 1,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """`worst_case` of threats of several kinds (Maini et al., "Adversarial robustness against the union of multiple
    perturbation models", 2020): `pgd`, `apgd`, `square` and `recolor` within epsilon in l-inf, and `spatial` within as
    many pixels as `PIXEL` goes into epsilon."""
    images, value_range = as_floats(images, value_range)
    epsilon = balls.radius_in("linf", epsilon, images, value_range)
    common = {"steps": steps, "restarts": restarts}
    parts = [functools.partial(attack, epsilon=epsilon, **common) for attack in (pgd, apgd, square, recolor)]
    pixels = epsilon / (PIXEL * (value_range[1] - value_range[0]))
    parts.append(functools.partial(spatial, epsilon=pixels, **common))
    return worst_case(objective, images, key=key, attacks=parts, value_range=value_range)


ATTACKS: dict[str, AttackEntry] = {
    "pgd": AttackEntry(
        function=pgd, does="follows the gradient in a ball around each image", random_start=True
    ),
    "apgd": AttackEntry(
        function=apgd, does="the same with momentum, and with steps that shorten by themselves", random_start=True
    ),
    "square": AttackEntry(function=square, does="changes square windows at random, without gradients", gradients=False),
    "noise": AttackEntry(
        function=noise, does="draws points of the ball, to compare with", gradients=False, restarts=False
    ),
    "spatial": AttackEntry(
        function=spatial, does="moves pixels, smoothly, instead of changing them", norms=(), unit="pixels",
        random_start=True,
    ),
    "recolor": AttackEntry(
        function=recolor, does="maps colours to others, smoothly, the same everywhere in an image", norms=("linf",),
    ),
    "shift": AttackEntry(
        function=shift, does="moves whole images by whole pixels, the worst of all shifts", norms=(), unit="pixels",
        restarts=False, gradients=False, pace=16, measured=("1", "2", "3", "4", "5", "6", "7", "8"),
    ),
    "worst_case": AttackEntry(
        function=strongest, does="the worst of `pgd`, `apgd`, `square`, `minimum` and, in l-inf, `recolor` for each "
        "example",
    ),
    "union": AttackEntry(
        function=union, does="the worst of `pgd`, `apgd`, `square`, `recolor` in l-inf and of `spatial`, one pixel for "
        "4/255", norms=(),
    ),
    "minimum": AttackEntry(
        function=minimum, does="finds the smallest ball in which an order can be reversed", takes="goal", radius="",
        restarts=False,
    ),
    "first_reversal": AttackEntry(
        function=first_reversal, does="stops at the first image that reverses an order (TMLR 2023)", takes="goal",
        norms=("linf",), restarts=False, measured=("0.015",),
    ),
    "distort": AttackEntry(
        function=distort, does="looks the same and measures far", takes="distance", moves=("reference",)
    ),
    "impostor": AttackEntry(
        function=impostor, does="looks different and measures close", takes="distance", norms=(), unit="metric",
        radius="bound", moves=("reference",), pace=4,
    ),
    "semantic": AttackEntry(
        function=semantic, does="makes each image nearer to every other reference of the batch than to its own",
        takes="references", restarts=False, moves=(),
    ),
    "perceptual_pgd": AttackEntry(
        function=perceptual_pgd, does="PPGD: fools a classifier within a perceptual distance",
        takes="bounded objective", norms=(), unit="root", radius="bound", random_start=True, moves=(),
    ),
    "lagrangian": AttackEntry(
        function=lagrangian, does="LPA: the same by a penalty outside the bound",
        takes="bounded objective", norms=(), unit="root", radius="bound", random_start=True, moves=(),
    ),
    "fast_lagrangian": AttackEntry(
        function=fast_lagrangian, does="Fast-LPA: the same in one round, for training",
        takes="bounded objective", norms=(), unit="root", radius="bound", random_start=True, moves=(),
    ),
}  # fmt: skip
"""The attacks by name."""


def names(*takes: Takes) -> tuple[str, ...]:
    """Names of the attacks that are called in one of these ways."""
    return tuple(name for name, attack in ATTACKS.items() if attack.takes in takes)


def entry(name: str) -> AttackEntry:
    """An attack by its name.

    Raises:
        AttackError: the table has no such attack.
    """
    if name not in ATTACKS:
        raise AttackError(f"no attack is called {name!r}; there are {', '.join(ATTACKS)}")
    return ATTACKS[name]


def markdown() -> str:
    """The table of `docs/attacks.md`."""
    bounds = {"range": "a share of the range", "pixels": "pixels", "metric": "the metric", "root": "root of the metric"}
    rows = ["| attack | what it does | within | moves | gradients |", "|---|---|---|---|---|"]
    for name, attack in ATTACKS.items():
        within = ", ".join(norm.replace("linf", "l-inf") for norm in attack.norms) or bounds[attack.unit]
        moves = "any image of a triplet" if attack.moves == ATTACKED else ", ".join(attack.moves) or "the image"
        rows.append(f"| `{name}` | {attack.does} | {within} | {moves} | {'yes' if attack.gradients else 'no'} |")
    return "\n".join(rows) + "\n"
