"""The trained metric as a weight file of this library, and as a checkpoint of the `lpips` package."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rlpips_jax as rl
from rlpips_jax.distances import lpips
from rlpips_jax.distances.protocol import is_random
from rlpips_jax.errors import TrainingError, WeightsError
from rlpips_jax.loading import parts, recipes, written
from rlpips_jax.weights import native, store
from rlpips_jax.weights.parameters import digest, to_pytorch
from rlpips_jax.weights.pytorch import write_checkpoint
from training.step import AnyMetric, trained_part, with_parameters

PAIRS_AT_ONCE = 32

FIRST = "@1"
"""Ends the name of a metric's first version; a file needs no version, as its network tells it."""


def path_of(metric: AnyMetric, folder: Path, *, robust: bool) -> Path:
    """The path of a trained metric's weight file, which has the name of the published metric of the same kind.

    Raises:
        TrainingError: no published metric has such a network.
    """
    part = trained_part(metric)
    sort = "elpips" if is_random(metric) else "rlpips" if robust else "lpips"
    for name, recipe in sorted(recipes().items(), key=lambda item: not item[0].startswith(f"{sort}-")):
        facts = recipe.backbone, recipe.settings.get("version")
        if (name.startswith(f"{sort}-") or name == metric.name) and facts == (part.backbone, part.version):
            return folder / f"{name.removesuffix(FIRST)}.safetensors"
    raise TrainingError(
        f"a metric trained from {metric.name} (network {part.backbone.name}, version {part.version}) could not be "
        "loaded by any name; start from another metric, such as lpips-alex"
    )


def has_official_backbone(metric: AnyMetric, weights_dir: Path | None) -> bool:
    """Whether a metric's backbone is the one that is published for its network."""
    metric = trained_part(metric)
    published = (part for part in parts().values() if part.official and "backbone" in part.holds)
    part = next((part for part in published if part.backbone.name == metric.backbone.name), None)
    if part is None:
        return False
    try:
        official, _ = store.obtain(part, weights_dir)
    except WeightsError:
        return False
    own = {"backbone": jax.device_get(metric.parameters["backbone"])}
    return digest(own) == digest({"backbone": official["backbone"]})


def export(metric: AnyMetric, path: Path, *, with_backbone: bool, card: dict[str, Any]) -> list[Path]:
    """Writes a weight file, and beside it a `.pth` for the `lpips` package where that can express the metric.

    Args:
        metric: with its trained parameters.
        path: from `path_of`.
        with_backbone: whether to write its backbone too, as it is not the published one.
        card: data, attack and scores, kept in the file's metadata as JSON.

    Returns:
        The files.
    """
    metric, name = trained_part(metric), path.stem
    parameters = jax.device_get(metric.parameters)
    # A network that nobody publishes travels with its heads.
    _, recipe = written(name, metric.backbone.name)
    published = any("backbone" in part.holds for part in recipe.parts)
    if not with_backbone and published:
        parameters = {half: tensors for half, tensors in parameters.items() if half != "backbone"}
    document = json.dumps(card, sort_keys=True)
    native.write(path, parameters, recipe.layout, metric=name, licence="Apache-2.0", card=document)
    if "floors" in parameters or not published or name not in lpips.RECIPES:
        return [path]
    checkpoint = path.with_suffix(".pth")
    write_checkpoint(checkpoint, to_pytorch(parameters, metric.backbone))
    return [path, checkpoint]


def rescaled(metric: AnyMetric, start: AnyMetric, triplets: Sequence[Any]) -> AnyMetric:
    """The metric with its heads times one factor, so that its distances are as large as those of its start.

    The factor is the median ratio of the two over the pairs of some triplets.
    """
    ratios = []
    for begin in range(0, len(triplets), PAIRS_AT_ONCE):
        some = triplets[begin : begin + PAIRS_AT_ONCE]
        reference = np.stack([one["reference"] for one in some])
        for side in ("p0", "p1"):
            other = np.stack([one[side] for one in some])
            found, wanted = (np.asarray(_distance(reference, other, each)) for each in (metric, start))
            usable = (found > 0) & (wanted > 0)
            ratios.append(wanted[usable] / found[usable])
    factor = np.float32(np.median(np.concatenate(ratios))) if sum(map(len, ratios)) else np.float32(1)
    heads = tuple(head * factor for head in trained_part(metric).parameters["heads"])
    return with_parameters(metric, heads=heads)


def _distance(x: np.ndarray, y: np.ndarray, metric: AnyMetric) -> jax.Array:
    """By a random metric always with the same draws, of which a few are then enough for a ratio."""
    draws = {"key": jax.random.key(0), "samples": 4} if is_random(metric) else {}
    return rl.distance(x, y, metric, **draws)
