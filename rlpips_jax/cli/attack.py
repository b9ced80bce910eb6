"""`rlpips attack`: how far a change that nobody sees moves the distance between one's own pictures."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import UInt8
from tqdm import tqdm

from rlpips_jax import attacks, reports
from rlpips_jax.attacks import table
from rlpips_jax.attacks.objectives import TracedObjective
from rlpips_jax.cli import say
from rlpips_jax.cli.options import Flag, MetricOptions, ReadingOptions, check_files
from rlpips_jax.cli.results import write_whole
from rlpips_jax.cli.threats import USUAL, PictureAttack, epsilon_of
from rlpips_jax.distances.distance import distance
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.errors import AttackError
from rlpips_jax.evaluation.patches import as_uint8
from rlpips_jax.files.image_files import save_image

TILE = 384
"""Pixels of a picture on the sheet."""
BISECTIONS = 24

Picture = UInt8[np.ndarray, "h w 3"]


class Row(NamedTuple):
    """A distance before and after an attack."""

    pair: str
    before: np.floating
    after: np.floating


@dataclass(frozen=True, kw_only=True)
class Attack(MetricOptions, ReadingOptions):
    """Change a picture so that nobody sees it but the metric measures far; or so that all see it and it measures close.

    REF IMAGE: moves IMAGE away from REF. REF IMAGE IMAGE: reverses which of the two is closer. REF alone: moves it
    away from itself (distort), or changes it visibly while the metric stays within --bound (impostor).
    Writes adversarial.png, sheet.png and result.json to --out; distances are those of the picture as written.

    Examples:
        rlpips attack reference.png a.png b.png                       # reverses which of a and b is closer
        rlpips attack reference.png a.png --metric rlpips-alex --epsilon 4/255 --out robust/
        rlpips attack reference.png --attack impostor --bound 0.05 --out impostor/ --replace
    """

    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="REF [IMAGE [IMAGE]]", help_behavior_hint="")
    ]
    """The reference, and what to compare with it."""

    attack: Annotated[PictureAttack, tyro.conf.arg(help_behavior_hint="(default: pgd; for REF alone distort)")] = USUAL
    """The attack. square and noise need no gradients; spatial moves pixels instead of changing them."""

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the change of values."""

    epsilon: Annotated[
        str | None, tyro.conf.arg(metavar="E", help_behavior_hint="(default: 2/255; l2 1, spatial and shift 1)")
    ] = None
    """Largest change, as a fraction of the whole range of values: 2/255 is 2 grey levels. For spatial and shift, in
    pixels."""

    bound: float = 0.1
    """Largest distance of an impostor."""

    steps: int = 50
    """Steps; for square and noise, queries. An impostor takes four times as many."""

    restarts: int = 1
    """Number of starts, of which the best counts."""

    pull: Flag = False
    """Move IMAGE nearer to REF instead."""

    attacked: Literal["closer", "farther", "reference"] = "closer"
    """Which picture of REF IMAGE IMAGE moves: the one that the metric finds closer, the other, or REF."""

    seed: int = 0
    """Seed of the random draws."""

    out: Path = Path("attack")
    """Folder to write to."""

    replace: Flag = False
    """Write over the result of an earlier attack there."""

    def run(self) -> int:
        name = self._name()
        if (self.out / "result.json").exists() and not self.replace:
            raise AttackError(
                f"{self.out} holds the result of an earlier attack; --out OTHER keeps it, --replace writes over it"
            )
        pictures = [as_uint8(self.image_of(path)) for path in self.images]
        metric = self.load()
        check_files(metric, dict(zip(self.images, pictures, strict=True)))
        reference, others = pictures[0], pictures[1:]
        order: list[int] | None = None
        if len(others) == 2:
            order = sorted(range(2), key=lambda index: float(distance(reference, others[index], metric)))
        moved = self._moved(order)
        after = self._attacked(name, metric, pictures, order)
        save_image(self.out / "adversarial.png", after)
        rows = self._distances(metric, pictures, moved, after)
        document = self._document(name, metric, pictures[moved], after, rows, moved)
        write_whole(self.out / "result.json", reports.json_text(document) + "\n")
        save_image(self.out / "sheet.png", self._sheet(name, metric, pictures, moved, after, rows))
        print(f"# {metric.signature}")
        print(
            reports.table(("distance", "before", "after"), [(row.pair, *map(reports.plain, row[1:])) for row in rows])
        )
        if order is not None:
            nearer, other = (rows[place].after for place in order)
            if nearer > other:
                print("The order is reversed.")
            else:
                print("The order is unchanged; a larger --epsilon, or --attacked farther, may reverse it.")
        print(
            f"{self.images[moved]} was changed by at most {document['linf']:.4g}/255, "
            f"l2 {float(document['l2']):.4g} (images in [0, 1]): {self.out}"
        )
        return 0

    def _name(self) -> str:
        """The attack; raises an AttackError for arguments that make no sense together."""
        alone = len(self.images) == 1
        if not 1 <= len(self.images) <= 3:
            raise AttackError(f"give REF, REF IMAGE or REF IMAGE IMAGE, not {len(self.images)} pictures")
        name = ("distort" if alone else "pgd") if self.attack == USUAL else self.attack
        attack = table.entry(name)
        if alone != (attack.takes == "distance"):
            raise AttackError(f"{name} takes {'REF and one or two images' if alone else 'REF alone'}; see --help")
        if self.pull and len(self.images) != 2:
            raise AttackError("--pull is for REF IMAGE")
        if self.attacked != "closer" and len(self.images) != 3:
            raise AttackError("--attacked is for REF IMAGE IMAGE")
        if len(self.images) == 3 and self.attacked not in attack.moves:
            raise AttackError(f"{name} cannot move the {self.attacked} picture; --attacked {' or '.join(attack.moves)}")
        if attack.radius == "bound" and (self.epsilon is not None or self.norm != "linf"):
            raise AttackError(f"{name} has no --epsilon and no --norm: its distance stays under --bound")
        if self.norm not in (attack.norms or ("linf",)):
            raise AttackError(f"{name} has no --norm {self.norm}: its --epsilon is in {', '.join(attack.measures)}")
        for option, count in (("steps", self.steps), ("restarts", self.restarts)):
            if count < 1:
                raise AttackError(f"--{option} must be 1 or more, got {count}")
        return name

    def _moved(self, order: list[int] | None) -> int:
        """The index of the picture that moves."""
        if order is None:
            return len(self.images) - 1
        return {"closer": 1 + order[0], "farther": 1 + order[1], "reference": 0}[self.attacked]

    def _attacked(self, name: str, metric: Metric, pictures: list[Picture], order: list[int] | None) -> Picture:
        """The picture that moves, after the attack."""
        attack = table.entry(name)
        batches = [jnp.asarray(picture)[None] for picture in pictures]
        radius = self.bound if attack.radius == "bound" else self._epsilon(attack)
        options = attack.options(steps=attack.pace * self.steps, norm=self.norm, restarts=self.restarts)
        run = functools.partial(attack.function, key=jax.random.key(self.seed), **options, **{attack.radius: radius})
        height, width, _ = pictures[0].shape
        steps = attack.pace * self.steps
        say(f"{name}: {steps} steps on {width}x{height} pixels, after a program for them is compiled")
        if attack.takes == "distance":
            found = run(metric, batches[0]).adversarial[0]
            return _within(metric, pictures[0], found, self.bound) if attack.unit == "metric" else _bytes(found)
        with tqdm(total=steps * self.restarts, unit="step", disable=None) as bar:
            if order is None:
                objective = attacks.distance_from(metric, batches[0])
                objective, images = attacks.negated(objective) if self.pull else objective, batches[1]
            else:
                triplet = (batches[0], batches[1 + order[0]], batches[1 + order[1]])
                objective = attacks.ranking(metric, *triplet, attacked=self.attacked)
                images = attacks.attacked_images(*triplet, self.attacked)
            found = run(objective if bar.disable else _Watched(objective, _Tick(bar)), images).adversarial[0]
            return _bytes(found)

    def _epsilon(self, attack: table.AttackEntry) -> float:
        measure = self.norm if attack.norms else attack.unit
        return epsilon_of(table.STRENGTH[measure] if self.epsilon is None else self.epsilon, measure)

    def _distances(self, metric: Metric, pictures: list[Picture], moved: int, after: Picture) -> list[Row]:
        """Pairs, and their distances before and after."""
        if len(pictures) == 1:
            return [Row("REF to itself", np.float32(0), _distance(pictures[0], after, metric))]
        changed = [after if place == moved else picture for place, picture in enumerate(pictures)]
        return [
            Row(
                f"REF to {self.images[place].name}",
                _distance(pictures[0], pictures[place], metric),
                _distance(changed[0], changed[place], metric),
            )
            for place in range(1, len(pictures))
        ]

    def _document(
        self, name: str, metric: Metric, before: Picture, after: Picture, rows: list[Row], moved: int
    ) -> dict[str, Any]:
        attack = table.entry(name)
        change = after.astype(np.float64) - before
        settings: dict[str, Any] = {"name": name}
        if attack.radius == "bound":
            settings["bound"] = self.bound
        else:
            settings |= {"norm": self.norm if attack.norms else attack.unit, "epsilon": self._epsilon(attack)}
        settings |= {"steps": attack.pace * self.steps, "restarts": self.restarts if attack.restarts else 1}
        if len(self.images) == 2:
            settings["pull"] = self.pull
        if len(self.images) == 3:
            settings["attacked"] = self.attacked
        return {
            "signature": metric.signature,
            "metric": metric.name,
            "images": [str(path) for path in self.images],
            "moved": str(self.images[moved]),
            "attack": settings | {"seed": self.seed},
            "distances": [row._asdict() for row in rows],
            "linf": np.float64(np.abs(change).max()),
            "l2": np.float64(np.sqrt(np.square(change / 255).sum())),
        }

    def _sheet(
        self, name: str, metric: Metric, pictures: list[Picture], moved: int, after: Picture, rows: list[Row]
    ) -> UInt8[np.ndarray, "H W 3"]:
        """All pictures, the one that moved after the attack, and its change, multiplied so that it can be seen."""
        change = after.astype(np.float64) - pictures[moved]
        times = max(1, int(100 // max(np.abs(change).max(), 1)))
        tiles = []
        for place, picture in enumerate(pictures):
            caption = [self.images[place].name]
            if place:
                caption.append(f"distance {reports.plain(rows[place - 1].before)}")
            tiles.append(reports.Tile(picture, tuple(caption)))
        lines = [f"after: {row.pair} {reports.plain(row.after)}" for row in rows]
        tiles.append(reports.Tile(after, (f"{self.images[moved].name}, attacked", *lines)))
        shown = np.clip(127.5 + times * change, 0, 255).astype(np.uint8)
        tiles.append(reports.Tile(shown, (f"change, {times} times", f"at most {np.abs(change).max():.0f}/255")))
        return reports.contact_sheet([tiles], title=f"{metric.name} under {name}", notes=(metric.signature,), size=TILE)


@dataclass(frozen=True)
class _Tick:
    """Moves a bar by a step. Without a bar, as in another process, nothing."""

    bar: Any

    def __call__(self) -> None:
        self.bar.update(min(1, self.bar.total - self.bar.n))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Watched(TracedObjective):
    """Another objective, which tells whenever it has been computed."""

    objective: Any
    tick: Callable[[], None] = field(metadata={"static": True})

    def __call__(self, images: Any) -> Any:
        jax.debug.callback(self.tick)
        return self.objective(images)

    def succeeded(self, images: Any, before: Any, after: Any) -> Any:
        return self.objective.succeeded(images, before, after)


def _distance(reference: Picture, picture: Picture, metric: Metric) -> np.floating:
    return np.float32(distance(reference, picture, metric))


def _bytes(picture: Any) -> Picture:
    return np.rint(np.asarray(picture) * 255).astype(np.uint8)


def _within(metric: Metric, reference: Picture, found: Any, bound: float) -> Picture:
    """An impostor in bytes, moved back towards its reference until these are within the bound too."""
    start, end = reference / np.float32(255), np.asarray(found)

    def picture(share: float) -> Picture:
        return _bytes(start + np.float32(share) * (end - start))

    inside, outside = 0.0, 1.0
    if _distance(reference, picture(outside), metric) <= bound:
        return picture(outside)
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        if _distance(reference, picture(middle), metric) <= bound:
            inside = middle
        else:
            outside = middle
    return picture(inside)
