"""A demonstration of what pixel error does not see: `python -m rlpips_jax.cli.demo`, or `make demo`.

Nothing is downloaded. "lpips-tiny" is part of this library; the official metrics are shown too if their weights
are on this machine. The photographs are those of scikit-image, or the reader's own.
"""

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from rlpips_jax import reports
from rlpips_jax.cli import guarded
from rlpips_jax.distances.distance import distance, distance_map
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.errors import ImageError, ImageFileError
from rlpips_jax.evaluation import distortions
from rlpips_jax.files.image_files import image_paths, load_image, save_image
from rlpips_jax.loading import find, load
from rlpips_jax.weights.inventory import availability

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
MOST_PHOTOGRAPHS = 8
SIZE = 256

SHIPPED = "lpips-tiny"
OFFICIAL = ("lpips-alex", "lpips-squeeze", "lpips-vgg")

MILD, HARSH = ("brightness", "contrast"), ("warp", "jpeg", "noise", "blur")
"""Distortions that people hardly notice, and some that they do."""

LARGEST_ERROR = 0.05
SURPLUS = 1.5
"""Pixel error of the mild distortions over that of the harsh ones."""

STEPS = 60

Photograph = UInt8[np.ndarray, "h w 3"]
Sheet = UInt8[np.ndarray, "H W 3"]


class Distorted(NamedTuple):
    """A distorted photograph and how far it is from the original."""

    kind: str
    picture: Photograph
    pixel_error: float
    distances: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Show what a perceptual distance sees that pixel error does not: tables here, pictures in a folder."""

    out: Path = Path("demo")
    """Folder for the pictures."""

    images: Path | None = None
    """Folder with your own photographs; the first eight are shown."""

    def run(self) -> int:
        started = time.perf_counter()
        originals = photographs(self.images)
        metrics = _metrics()
        print(f"{len(originals)} photographs; {', '.join(metrics)}\n")
        shown = {name: _sorted_by_distance(picture, metrics) for name, picture in originals.items()}
        _tell(shown, metrics)
        first = next(iter(originals.values()))
        pictures = {
            "contact_sheet.png": (
                _contact_sheet(originals, shown),
                "the photographs and their distortions, nearest first",
            ),
            "heat_map.png": (_heat_map(first, metrics[SHIPPED]), "where two images differ"),
            "descent.png": (
                _descent(first, metrics[SHIPPED]),
                "a blurred image led back by the distance's gradient",
            ),
        }
        for name, (picture, _) in pictures.items():
            save_image(self.out / name, picture)
        _range_mistake(first, metrics[SHIPPED])
        print(f"\nLook at the pictures ({time.perf_counter() - started:.0f} s):")
        for name, (_, what) in pictures.items():
            print(f"  {self.out / name}: {what}")
        return 0


def main() -> None:
    """Runs the demonstration and exits with its status."""
    import sys

    import tyro

    sys.exit(guarded(lambda: tyro.cli(Demo, prog="python -m rlpips_jax.cli.demo").run()))


def photographs(folder: Path | None) -> dict[str, Photograph]:
    """Photographs by name, each the middle of a file, 256x256.

    Args:
        folder: takes the first eight images in it; None takes those of scikit-image.

    Raises:
        ImageFileError: there is no image, or one cannot be read.
    """
    if folder is not None:
        paths = image_paths(folder)[:MOST_PHOTOGRAPHS]
        if not paths:
            raise ImageFileError(f"{folder} holds no images; give a folder with some photographs")
    else:
        package = importlib.util.find_spec("skimage")
        if package is None or package.origin is None:
            raise ImageFileError(
                "there are no photographs to show: pip install scikit-image, which contains some, or give a "
                "folder by --images"
            )
        data = Path(package.origin).parent / "data"
        paths = [path for name in PHOTOGRAPHS if (path := data / name).is_file()]
        if not paths:
            raise ImageFileError(f"{data} lacks scikit-image's photographs; give a folder by --images")
    named = {path.stem.removesuffix("_left") if folder is None else path.name: path for path in paths}
    return {name: _middle(load_image(path)) for name, path in named.items()}


def _middle(image: np.ndarray) -> Photograph:
    from PIL import Image

    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.uint8)
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.array(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _metrics() -> dict[str, Metric]:
    """The shipped metric, and the official ones whose weights are on this machine."""
    here = [name for name in OFFICIAL if availability(find(name), None).ready]
    return {name: load(name) for name in (SHIPPED, *here)}


def pixel_error(x: Photograph, y: Photograph) -> float:
    """Root mean square difference, as a share of the range from black to white."""
    return float(np.sqrt(np.mean(np.square(x / 255 - y / 255))))


def _sorted_by_distance(original: Photograph, metrics: dict[str, Metric]) -> list[Distorted]:
    """The photograph distorted in every way, nearest first; pixel error orders them the other way."""
    rng = np.random.default_rng(0)
    draws = {kind: distortions.draw(kind, original.shape, rng) for kind in MILD + HARSH}
    strongest = min(pixel_error(original, distortions.apply(original, kind, 1.0, draws[kind])) for kind in HARSH)
    target = min(0.9 * strongest, LARGEST_ERROR)
    pictures = [
        _with_error(original, kind, target * (SURPLUS if kind in MILD else 1), draws[kind]) for kind in MILD + HARSH
    ]
    references, images = np.stack([original] * len(pictures)), np.stack(pictures)
    columns = {name: np.asarray(distance(references, images, metric)) for name, metric in metrics.items()}
    distorted = [
        Distorted(
            kind,
            picture,
            pixel_error(original, picture),
            {name: float(column[number]) for name, column in columns.items()},
        )
        for number, (kind, picture) in enumerate(zip(MILD + HARSH, pictures, strict=True))
    ]
    return sorted(distorted, key=lambda item: item.distances[SHIPPED])


def _with_error(original: Photograph, kind: str, target: float, draw: np.ndarray) -> Photograph:
    """The photograph distorted until its pixel error is the target, as nearly as the kind allows."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        if pixel_error(original, distortions.apply(original, kind, middle, draw)) < target:
            low = middle
        else:
            high = middle
    return distortions.apply(original, kind, high, draw)


def _tell(shown: dict[str, list[Distorted]], metrics: dict[str, Metric]) -> None:
    rows = [
        (
            name if number == 0 else "",
            item.kind,
            f"{item.pixel_error:.3f}",
            *(f"{item.distances[metric]:.3f}" for metric in metrics),
        )
        for name, items in shown.items()
        for number, item in enumerate(items)
    ]
    print(reports.table(("photograph", "distorted by", "pixel error", *metrics), rows))
    pairs = [
        (mild, harsh)
        for items in shown.values()
        for mild in items
        for harsh in items
        if mild.kind in MILD and harsh.kind in HARSH
    ]
    print(
        f"\nPeople find a change of {' or '.join(MILD)} closer to the original than {', '.join(HARSH[:-1])} "
        f"or {HARSH[-1]},\nalso where its pixel error is larger. Of {len(pairs)} such pairs, put in that "
        "order by"
    )
    by_error = sum(mild.pixel_error < harsh.pixel_error for mild, harsh in pairs)
    rows = [("pixel error", str(by_error))]
    for metric in metrics:
        rows.append((metric, str(sum(mild.distances[metric] < harsh.distances[metric] for mild, harsh in pairs))))
    print("\n".join(f"  {name:14}{count:>4}" for name, count in rows))


def _contact_sheet(originals: dict[str, Photograph], shown: dict[str, list[Distorted]]) -> Sheet:
    rows = [
        [reports.Tile(originals[name], (name, "original"))]
        + [
            reports.Tile(
                item.picture,
                (f"{item.kind}: {item.distances[SHIPPED]:.3f}", f"pixel error {item.pixel_error:.3f}"),
            )
            for item in items
        ]
        for name, items in shown.items()
    ]
    farthest = [
        {item.kind for item in sorted(items, key=lambda item: item.pixel_error)[-len(MILD) :]}
        for items in shown.values()
    ]
    contrary = sum(kinds == set(MILD) for kinds in farthest)
    note = (
        f"By pixel error (root mean square), {' and '.join(MILD)} are the farthest in {contrary} of {len(rows)} rows."
    )
    return reports.contact_sheet(rows, title=f"Nearest first, by {SHIPPED}", notes=(note,))


def _heat_map(original: Photograph, metric: Metric) -> Sheet:
    """A photograph in which a disc alone is blurred."""
    blurred = distortions.distort(original, "blur", 1.0, np.random.default_rng(0)).astype(np.float64)
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    away = np.hypot(rows - 0.35, columns - 0.45)
    share = np.clip((0.2 - away) / 0.03, 0, 1)[..., None]
    image = np.rint(share * blurred + (1 - share) * original).astype(np.uint8)
    value = float(distance(original, image, metric))
    return reports.heat_map(
        original,
        image,
        np.asarray(distance_map(original, image, metric)),
        names=("photograph", "the same, blurred within a disc"),
        title=f"{metric.name}: where they differ",
        notes=(f"distance {value:.3f}, pixel error {pixel_error(original, image):.3f}", metric.signature),
    )


def descend(
    start: Float[Array, "h w 3"], goal: Float[Array, "h w 3"], metric: Metric, steps: int
) -> Float[Array, "h w 3"]:
    """Moves an image towards another by gradient descent on their distance.

    The length of the steps falls to 0, with momentum: signs of gradients, or Adam's quotients, would move all pixels
    by the same amount and leave noise.

    Args:
        start: in [0, 1].
        goal: of the same size.
        metric: from `rlpips_jax.load`.
        steps: how many.
    """
    optimizer = optax.chain(
        optax.normalize_by_update_norm(), optax.sgd(optax.cosine_decay_schedule(1.0, steps), momentum=0.9)
    )

    # The metric is an argument: closed over, its parameters would become constants of the program.
    @jax.jit
    def step(image: Array, state: Any, goal: Array, metric: Metric) -> tuple[Array, Any]:
        gradient = jax.grad(distance)(image, goal, metric)
        updates, state = optimizer.update(gradient, state)
        moved: Any = optax.apply_updates(image, updates)
        return jnp.clip(moved, 0, 1), state

    image, state = start, optimizer.init(start)
    for _ in range(steps):
        image, state = step(image, state, goal, metric)
    return image


def _descent(original: Photograph, metric: Metric) -> Sheet:
    goal = jnp.asarray(original, jnp.float32) / 255
    blurred = distortions.distort(original, "blur", 1.0, np.random.default_rng(0))
    start = jnp.asarray(blurred, jnp.float32) / 255
    image = descend(start, goal, metric, STEPS)
    before, after = (float(distance(end, goal, metric)) for end in (start, image))
    print(
        f"\n{STEPS} steps of gradient descent on {metric.name} from the blurred photograph: {before:.3f} -> {after:.3f}"
    )
    tiles = [
        reports.Tile(blurred, ("blurred", f"distance {before:.3f}")),
        reports.Tile(np.asarray(image), (f"after {STEPS} steps", f"distance {after:.3f}")),
        reports.Tile(original, ("the photograph",)),
    ]
    return reports.contact_sheet([tiles], title=f"Gradient descent on {metric.name}", size=SIZE)


def _range_mistake(original: Photograph, metric: Metric) -> None:
    """Shows the error for the commonest mistake with such metrics: a wrong range of values."""
    symmetric = np.asarray(original, np.float32) / 127.5 - 1
    try:
        distance(symmetric, symmetric, metric)
    except ImageError as error:
        print(f"\nImages in [-1, 1] passed as if they were in [0, 1]:\n  ImageError: {error}")


if __name__ == "__main__":
    main()
