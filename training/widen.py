"""`python -m training widen`: a metric of `tiny` as one of `tiny-wide`, to be trained further.

The wide first layer has the kernels as they are, mirrored left to right, and mirrored and turned by 90 degrees, so that
its tap's part of the distance is nearly the mean of those of the pair, of the mirrored one and of the turned one. What
lies behind it sees the first third alone until it is trained.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    rl.save(widened(rl.load(config.metric)), config.out)
    print(f"written: {config.out}")


def widened(metric: Any) -> Lpips:
    """A metric with a first layer three times as wide, over `TINY_WIDE`.

    Args:
        metric: an LPIPS over `TINY`, with or without floors.

    Raises:
        TrainingError: it is of another network.
    """
    if not isinstance(metric, Lpips) or metric.backbone != TINY:
        raise TrainingError(
            f"only an LPIPS over the network tiny is made wider, and {metric.name} is not one; start from lpips-tiny, "
            "rlpips-tiny@1 or what tune made of them"
        )
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
