"""The point of the library: a change that nobody sees fools one metric and hardly moves another, and what is proven."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

import rlpips_jax as rl
from examples.photographs import Photograph
from examples.stage import Stage
from rlpips_jax import reports
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.evaluation.certification import Smoothing, certify_triplets
from rlpips_jax.reports.charts import Chart, Curve, curve_chart
from rlpips_jax.reports.page import Block, Cell, Charts, Number, Numbers, Pictures, Section, Shown, Table, Text
from rlpips_jax.reports.sheets import amplified, as_bytes

GOOD, BAD = 90, 20
"""Qualities of two JPEG copies: one that looks like the original, one that does not."""
LEVELS = (1, 2, 4, 8)
"""Radii of the attack in grey levels of 255."""
SHOWN = 2
"""The radius of the pictures."""
SIGMA = 0.1


@dataclass(frozen=True)
class Attacked:
    """A metric, and the good copy after attacks on it.

    Attributes:
        good: its distance of the good copy from the original.
        bad: of the bad copy.
        pictures: the good copy after an attack of each radius, in 8 bits.
        distances: of these pictures.
    """

    good: float
    bad: float
    pictures: UInt8[np.ndarray, "k h w 3"]
    distances: Float[np.ndarray, " k"]

    def at(self, level: int) -> float:
        """The distance after an attack of this radius."""
        return float(self.distances[LEVELS.index(level)])

    def picture(self, level: int) -> Photograph:
        """The picture after an attack of this radius."""
        return self.pictures[LEVELS.index(level)]


def show(stage: Stage) -> list[Section]:
    """Attacks a good copy of the first photograph; writes attacked.png and heat_map.png."""
    _, original = stage.first
    good, bad = (jpeg(original, quality) for quality in (GOOD, BAD))
    found = {
        name: attack(metric, original, good, bad, stage.effort.attack_steps)
        for name, metric in tqdm(stage.pair.items(), desc="attacks", unit="metric", disable=None)
    }
    for name, one in (("good", good), ("bad", bad)):
        stage.keep(f"copies/{name}.png", one)
    for name, one in found.items():
        stage.keep(f"copies/good-attacked-{name}.png", one.picture(SHOWN))
    stage.say(f"A JPEG copy (quality {GOOD}), before and after a change of {SHOWN}/255, and one of quality {BAD}:")
    stage.tell(
        [
            ("metric", "copy", "attacked", "bad copy"),
            *((name, *(f"{value:.3f}" for value in (of.good, of.at(SHOWN), of.bad))) for name, of in found.items()),
        ]
    )
    attacked = Section("A change nobody sees", _attacked(stage, original, good, bad, found))
    return [attacked, Section("Where it looks different", _maps(stage, original, good, found))]


def jpeg(picture: Photograph, quality: int) -> Photograph:
    """The picture after JPEG compression."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def attack(metric: Metric, original: Photograph, good: Photograph, bad: Photograph, steps: int) -> Attacked:
    """Moves the good copy away from the original, as far as the metric goes, at each radius."""
    count = len(LEVELS)
    reference, closer, farther = (jnp.asarray(np.stack([one] * count)) for one in (original, good, bad))
    result = rl.attacks.pgd(
        rl.attacks.ranking(metric, reference, closer, farther),
        closer,
        key=jax.random.key(0),
        epsilon=jnp.asarray(LEVELS) / 255,
        steps=steps,
    )
    pictures = as_bytes(np.asarray(result.adversarial))
    distances = np.asarray(rl.distance(original, np.stack([good, bad, *pictures]), metric))
    return Attacked(float(distances[0]), float(distances[1]), pictures, distances[2:])


def _attacked(
    stage: Stage, original: Photograph, good: Photograph, bad: Photograph, found: dict[str, Attacked]
) -> list[Block]:
    fragile, robust = found
    of = found[fragile]
    tiles = [
        reports.Tile(good, (f"JPEG, quality {GOOD}", f"{fragile} {of.good:.3f}")),
        reports.Tile(of.picture(SHOWN), ("the same, attacked", f"{fragile} {of.at(SHOWN):.3f}")),
        reports.Tile(bad, (f"JPEG, quality {BAD}", f"{fragile} {of.bad:.3f}")),
    ]
    stage.save("attacked.png", reports.contact_sheet([tiles], title=f"A change of {SHOWN} grey levels", size=256))

    def lines(value: Callable[[Attacked], float]) -> tuple[str, ...]:
        return tuple(f"{name} {value(of):.3f}" for name, of in found.items())

    change, factor = amplified(good, of.picture(SHOWN))
    row = [
        Shown(original, "original"),
        Shown(good, f"JPEG, quality {GOOD}", lines(lambda of: of.good)),
        Shown(of.picture(SHOWN), "the same, attacked", (f"{fragile} {of.at(SHOWN):.3f}",), "bad"),
        Shown(bad, f"JPEG, quality {BAD}", lines(lambda of: of.bad)),
        Shown(change, "what the attack changed", (f"{factor} times",)),
    ]
    command = (
        "rlpips attack {original} {out}/copies/good.png {out}/copies/bad.png --metric {metric} "
        f"--epsilon {SHOWN}/255 --steps {stage.effort.attack_steps} --out attack-{{metric}}"
    )
    text = (
        f"A good JPEG copy, and the same copy after no value has moved by more than **{SHOWN} of 255** grey levels. "
        f"Each metric is attacked for itself, by {stage.effort.attack_steps} steps along its gradient. Could you say "
        f"which of the two, without the frame? (They lie in `{stage.out / 'copies'}`.) `{fragile}` is built as LPIPS "
        f"is and shares its weakness; `{robust}` was trained under attack."
    )
    caption = "Above the dotted line the good copy is farther than the bad one: the order of the two is reversed."
    return [
        Text(text),
        Numbers(_numbers(found)),
        Pictures([("", row)], size="large", source=stage.source(command)),
        Charts([_ratios(found)], caption, stage.source(command.replace(f"{SHOWN}/255", "8/255"))),
    ]


def _numbers(found: dict[str, Attacked]) -> list[Number]:
    """The distance of the good copy before and after the attack, and what that means."""
    numbers = []
    for name, of in found.items():
        fooled = of.at(SHOWN) > of.bad
        order = "farther than the bad copy" if fooled else "still nearer than the bad copy"
        said = f"{of.at(SHOWN) / of.good:.1f} times as far as before: {order} ({of.bad:.3f})"
        numbers.append(Number(f"{of.good:.3f} → {of.at(SHOWN):.3f}", f"`{name}`", said, "bad" if fooled else "good"))
    return numbers


def _ratios(found: dict[str, Attacked]) -> Chart:
    """The distance of the attacked copy over that of the bad one, over the radius."""
    curves = [
        Curve(name, number, [0, *LEVELS], [of.good / of.bad, *(float(value) / of.bad for value in of.distances)])
        for number, (name, of) in enumerate(found.items())
    ]
    return curve_chart(
        curves,
        title="Distance of the attacked good copy",
        x_label="change allowed, in grey levels of 255",
        y_label="over that of the bad copy",
        y_range=(0.0, float(np.ceil(max(max(curve.y) for curve in curves)))),
        level=1.0,
    )


def _maps(stage: Stage, original: Photograph, good: Photograph, found: dict[str, Attacked]) -> list[Block]:
    """Where each metric sees the attacked copy differ, on one scale."""
    maps = {}
    for name, metric in stage.pair.items():
        values = [rl.distance_map(original, one, metric) for one in (good, found[name].picture(SHOWN))]
        maps[name] = [np.asarray(one) for one in values]
    row, largest = [], max(float(one.max()) for pair in maps.values() for one in pair)
    for name, (before, after) in maps.items():
        row.append(Shown(reports.heat(before, largest), "the copy", (f"{name} {found[name].good:.3f}",)))
        row.append(Shown(reports.heat(after, largest), "attacked", (f"{name} {found[name].at(SHOWN):.3f}",)))
    fragile = next(iter(maps))
    stage.save(
        "heat_map.png",
        reports.heat_map(
            original,
            found[fragile].picture(SHOWN),
            maps[fragile][1],
            names=("original", "JPEG copy, attacked"),
            title=f"{fragile}: where they differ",
            notes=(f"distance {found[fragile].at(SHOWN):.3f}", stage.metrics[fragile].signature),
        ),
    )
    text = (
        "The distance is the mean of a map. All four maps have the same scale, from 0 (dark) to "
        f"{largest:.2f} (bright): the attack lights up everything that `{fragile}` looks at, though nothing is there."
    )
    command = "rlpips map {original} {out}/copies/good-attacked-{metric}.png --metric {metric} --out map-{metric}.png"
    return [Text(text), Pictures([("", row)], size="large", source=stage.source(command))]


def certificate(stage: Stage) -> Section:
    """What is proven about the order of the two copies, whatever the change."""
    _, original = stage.first
    copies = (original, jpeg(original, GOOD), jpeg(original, BAD))
    reference, good, bad = (one[None, 64:192, 64:192] for one in copies)
    triplet = rl.evaluation.Triplets(reference, good, bad, np.zeros(1, np.float32), ("jpeg",))
    rl.evaluation.write_npz(stage.out / "copies.npz", {"copies": triplet})
    smoothing = Smoothing(sigma=SIGMA, samples=stage.effort.samples, selection_samples=100)
    rows, told = [], []
    for name, metric in tqdm(stage.pair.items(), desc="certificates", unit="metric", disable=None):
        proof = certify_triplets(metric, triplet, smoothing, key=jax.random.key(0))
        share = float(proof.count[0]) / stage.effort.samples
        if proof.abstained[0]:
            answer, radius = "no answer", "-"
        else:
            answer = "the bad copy closer" if proof.reversed[0] else "the good copy closer"
            radius = f"{float(proof.radius[0]):.3f}"
        rows.append((name, answer, f"{share:.3f}", Cell(radius)))
        told.append((name, answer, radius))
    stage.say("The order of the two copies is proven, whatever the change, up to this l2 length:")
    stage.tell([("metric", "order", "radius"), *told])
    length = SHOWN / 255 * np.sqrt(reference.size)
    proven = max((float(radius) for *_, radius in told if radius != "-"), default=0.0)
    times = f", {length / proven:.0f} times the largest radius that is proven here" if proven else ""
    text = (
        "Attacks show what is broken, never that something holds. Randomised smoothing proves it: noise is added to "
        "both copies many times, and each time the metric says which copy is closer. Where nearly all draws agree, "
        "**no** change of at most the radius, whatever it is, can make most draws say the opposite. If under noise the "
        "bad copy is the closer one, then that is what is proven. (Images in [0, 1], noise of "
        f"{SIGMA:g}, {stage.effort.samples} draws, the middle of the photograph, 128 pixels wide; wrong with a "
        f"probability of at most {smoothing.alpha:g}.) A change of {SHOWN}/255 in all values is {length:.1f} long "
        f"there{times}: what can be proven today is far less than what is hard to break."
    )
    header = ("metric", "order of the two copies", "draws that agree", "proven l2 radius")
    command = (
        "rlpips certify --data {out}/copies.npz --metric {metric} "
        f"--sigma {SIGMA:g} --samples {stage.effort.samples} --out certificates/"
    )
    return Section("A certificate", [Text(text), Table(header, rows, source=stage.source(command))])
