"""`python -m training widen`: a metric of `tiny` as one of `tiny-wide`, to be trained further.

The wide first layer has the kernels as they are, mirrored left to right, and mirrored and turned by 90 degrees, so that
its tap's part of the distance is nearly the mean of those of the pair, of the mirrored one and of the turned one. What
lies behind it sees the first third alone until it is trained.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import tyro

import rlpips_jax as rl
from rlpips_jax.backbones import TINY, TINY_WIDE, layer_name
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import TrainingError

COPIES = 3


@dataclass(frozen=True, kw_only=True)
class Widen:
    """Start a wider network from a trained one."""

    metric: tyro.conf.Positional[str]
    """Metric over `tiny`, by name or path."""
    out: Path = Path("runs/wide/rlpips-tiny.safetensors")
    """File to write."""


def widen(config: Widen) -> None:
    """Writes the metric.

    Raises:
        TrainingError: it is of another network.
    """
    config.out.parent.mkdir(parents=True, exist_ok=True)
    rl.save(widened(rl.load(config.metric)), config.out)
    print(f"written: {config.out}")


def widened(metric: Lpips) -> Lpips:
    """A metric with a first layer three times as wide.

    Raises:
        TrainingError: it is of another network.
    """
    if metric.backbone != TINY:
        raise TrainingError(f"{metric.name} has the network {metric.backbone.name}; only tiny becomes tiny-wide")
    first, second = (layer_name(layer) for layer in TINY.layers[:3:2])
    parameters = metric.parameters
    kernel, bias = parameters["backbone"][first]["kernel"], parameters["backbone"][first]["bias"]
    mirrored = kernel[:, ::-1]
    after = parameters["backbone"][second]
    unused = jnp.zeros((*after["kernel"].shape[:2], (COPIES - 1) * kernel.shape[-1], after["kernel"].shape[-1]))
    backbone = parameters["backbone"] | {
        first: {
            "kernel": jnp.concatenate([kernel, mirrored, mirrored.swapaxes(0, 1)], axis=-1),
            "bias": jnp.tile(bias, COPIES),
        },
        second: after | {"kernel": jnp.concatenate([after["kernel"], unused], axis=2)},
    }
    heads = (jnp.tile(parameters["heads"][0], COPIES), *parameters["heads"][1:])
    wider = parameters | {"backbone": backbone, "heads": heads}
    if floors := parameters.get("floors"):
        wider["floors"] = (floors[0] * COPIES**0.5, *floors[1:])
    return replace(metric, parameters=wider, backbone=TINY_WIDE)
