"""`rlpips attack`: what a change that nobody sees does to the distance of one's own pictures."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import UInt8

from rlpips_jax import attacks, reports
from rlpips_jax.cli.options import MetricOptions, check_files
from rlpips_jax.cli.threats import epsilon_of
from rlpips_jax.distances.lpips import Metric, distance
from rlpips_jax.errors import AttackError
from rlpips_jax.evaluation.patches import read_uint8
from rlpips_jax.files.image_files import save_image

NAMES = Literal["pgd", "apgd", "square", "noise", "spatial", "distort", "impostor"]

TILE = 224
"""Pixels of a picture on the sheet."""

Picture = UInt8[np.ndarray, "h w 3"]


class Row(NamedTuple):
    """What an attack did to one distance."""

    pair: str
    before: np.floating
    after: np.floating


@dataclass(frozen=True, kw_only=True)
class Attack(MetricOptions):
    """Change a picture so little that nobody sees it, and so that the metric sees much; or the other way round.

    REF IMAGE: moves IMAGE away from REF. REF IMAGE IMAGE: reverses which of the two is closer. REF alone: moves it
    away from itself (distort), or changes it visibly while the metric stays under --bound (impostor).
    Writes adversarial.png, sheet.png and result.json to --out; distances are those of the picture as written.
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="REF [IMAGE [IMAGE]]")]
    """The reference, and what to compare with it."""

    attack: Annotated[NAMES | None, tyro.conf.arg(help_behavior_hint="(default: pgd; of REF alone distort)")] = None
    """How. square and noise do without gradients; spatial moves pixels instead of changing them."""

    norm: Literal["linf", "l2"] = "linf"
    """Of the change of values."""

    epsilon: Annotated[
        str | None, tyro.conf.arg(metavar="E", help_behavior_hint="(default: 2/255; l2 1, spatial 1)")
    ] = None
    """Largest change, as a fraction of the whole range of values: 2/255 is 2 grey levels. Of spatial, pixels."""

    bound: float = 0.1
    """What an impostor may measure."""

    steps: int = 50
    """Steps; of square and noise, queries. An impostor takes four times as many."""

    restarts: int = 1
    """Starts, of which the best counts."""

    pull: bool = False
    """Move IMAGE nearer to REF instead."""

    attacked: Literal["closer", "farther", "reference"] = "closer"
    """Of REF IMAGE IMAGE, which picture moves: the one that the metric finds closer, the other, or REF."""

    seed: int = 0
    """Of what is drawn."""

    out: Path = Path("attack")
    """Folder to write to."""

    def run(self) -> int:
        name = self._name()
        pictures = [read_uint8(path) for path in self.images]
        metric = self.load()
        check_files(metric, dict(zip(self.images, pictures, strict=True)))
        reference, others = pictures[0], pictures[1:]
        order: list[int] | None = None
        if len(others) == 2:
            order = sorted(range(2), key=lambda index: float(distance(reference, others[index], metric)))
        moved = self._moved(order)
        before = pictures[moved]
        result = self._attack(name, metric, pictures, order)
        after = np.rint(np.asarray(result.adversarial[0]) * 255).astype(np.uint8)
        save_image(self.out / "adversarial.png", after)
        rows = self._distances(metric, pictures, moved, after)
        document = self._document(name, metric, before, after, rows, moved)
        (self.out / "result.json").write_text(reports.json_text(document) + "\n", encoding="utf-8")
        save_image(self.out / "sheet.png", self._sheet(name, metric, pictures, moved, after, rows))
        print(f"# {metric.signature}")
        print(
            reports.table(("distance", "before", "after"), [(row.pair, *map(reports.plain, row[1:])) for row in rows])
        )
        if order is not None:
            nearer, other = (rows[place].after for place in order)
            print(f"The order is {'reversed' if nearer > other else 'as it was'}.")
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
        name = self.attack or ("distort" if alone else "pgd")
        if alone != (name in ("distort", "impostor")):
            raise AttackError(f"{name} takes {'REF and one or two images' if alone else 'REF alone'}; see --help")
        if self.pull and len(self.images) != 2:
            raise AttackError("--pull is for REF IMAGE")
        if self.attacked != "closer" and len(self.images) != 3:
            raise AttackError("--attacked is for REF IMAGE IMAGE")
        if name == "impostor" and (self.epsilon is not None or self.norm != "linf"):
            raise AttackError("an impostor has no --epsilon and no --norm: its metric stays under --bound")
        if name == "spatial" and self.norm != "linf":
            raise AttackError("spatial has no --norm: its --epsilon is in pixels")
        for option, count in (("steps", self.steps), ("restarts", self.restarts)):
            if count < 1:
                raise AttackError(f"--{option} must be 1 or more, got {count}")
        return name

    def _moved(self, order: list[int] | None) -> int:
        """The place of the picture that moves."""
        if order is None:
            return len(self.images) - 1
        return {"closer": 1 + order[0], "farther": 1 + order[1], "reference": 0}[self.attacked]

    def _attack(self, name: str, metric: Metric, pictures: list[Picture], order: list[int] | None) -> Any:
        key = jax.random.key(self.seed)
        batches = [jnp.asarray(picture)[None] for picture in pictures]
        if name == "impostor":
            options = {"steps": 4 * self.steps, "restarts": self.restarts}
            return attacks.impostor(metric, batches[0], key=key, bound=self.bound, **options)
        options: dict[str, Any] = {"steps": self.steps, "key": key, "epsilon": self._epsilon(name)}
        if name != "spatial":
            options["norm"] = self.norm
        if name != "noise":
            options["restarts"] = self.restarts
        if name == "distort":
            return attacks.distort(metric, batches[0], **options)
        attack = functools.partial(getattr(attacks, name), **options)
        if order is None:
            objective: Any = attacks.distance_from(metric, batches[0])
            if self.pull:
                objective = attacks.negated(objective)
            return attack(objective, batches[1])
        triplet = (batches[0], batches[1 + order[0]], batches[1 + order[1]])
        objective = attacks.ranking(metric, *triplet, attacked=self.attacked)
        return attack(objective, attacks.attacked_images(*triplet, self.attacked))

    def _epsilon(self, name: str) -> float:
        if self.epsilon is None:
            return 1.0 if name == "spatial" or self.norm == "l2" else 2 / 255
        return epsilon_of(self.epsilon, self._norm(name))

    def _norm(self, name: str) -> str:
        return "pixels" if name == "spatial" else self.norm

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
        change = after.astype(np.float64) - before
        return {
            "signature": metric.signature,
            "metric": metric.name,
            "images": [str(path) for path in self.images],
            "moved": str(self.images[moved]),
            "attack": {
                "name": name,
                **(
                    {"bound": self.bound, "steps": 4 * self.steps}
                    if name == "impostor"
                    else {"norm": self._norm(name), "epsilon": self._epsilon(name), "steps": self.steps}
                ),
                "restarts": 1 if name == "noise" else self.restarts,
                **({"pull": self.pull} if len(self.images) == 2 else {}),
                **({"attacked": self.attacked} if len(self.images) == 3 else {}),
                "seed": self.seed,
            },
            "distances": [row._asdict() for row in rows],
            "linf": np.float64(np.abs(change).max()),
            "l2": np.float64(np.sqrt(np.square(change / 255).sum())),
        }

    def _sheet(
        self, name: str, metric: Metric, pictures: list[Picture], moved: int, after: Picture, rows: list[Row]
    ) -> UInt8[np.ndarray, "H W 3"]:
        """All pictures, the one that moved after the attack, and its change, enlarged so that it can be seen."""
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


def _distance(reference: Picture, picture: Picture, metric: Metric) -> np.floating:
    return np.float32(distance(reference, picture, metric))
