"""What a metric is made of: an image that starts as noise and is led by the metric's gradient alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

import rlpips_jax as rl
from examples.photographs import pixel_error
from examples.stage import Stage
from rlpips_jax import reports
from rlpips_jax.distances.distance import distance
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.reports.page import Pictures, Section, Shown, Text
from rlpips_jax.reports.sheets import as_bytes


def show(stage: Stage) -> Section:
    """Leads noise to a photograph by both metrics; writes descent.png."""
    names = list(stage.photographs)
    name = names[min(1, len(names) - 1)]
    goal = stage.photographs[name]
    noise = np.random.default_rng(0).integers(0, 256, goal.shape, np.uint8)
    steps = stage.effort.descent_steps
    ends = {}
    with tqdm(total=steps * len(stage.pair), desc="descent", unit="step", disable=None) as bar:
        for label, metric in stage.pair.items():
            ends[label] = as_bytes(np.asarray(descend(_floats(noise), _floats(goal), metric, steps, bar.update)))
    row, told, tiles = [Shown(noise, "start: noise", (f"RMSE {pixel_error(noise, goal):.3f}",))], [], []
    tiles.append(reports.Tile(noise, ("start: noise", f"RMSE {pixel_error(noise, goal):.3f}")))
    for label, end in ends.items():
        value, error = float(rl.distance(end, goal, stage.metrics[label])), pixel_error(end, goal)
        lines = (f"distance {value:.3f}", f"RMSE {error:.3f}")
        row.append(Shown(end, label, lines))
        tiles.append(reports.Tile(end, (label, ", ".join(lines))))
        told.append((label, f"{value:.3f}", f"{error:.3f}"))
    row.append(Shown(goal, f"goal: {name}"))
    tiles.append(reports.Tile(goal, (f"goal: {name}",)))
    stage.save("descent.png", reports.contact_sheet([tiles], title=f"{steps} steps from noise", size=256))
    stage.say(f"{steps} steps from noise towards a photograph, by the metric's gradient alone:")
    stage.tell([("metric", "distance at the end", "RMSE"), *told])
    text = (
        f"The same noise, {steps} steps of gradient descent on the distance to the photograph, and nothing else. Where "
        "the distance becomes small and the picture does not become right, the metric has been satisfied by something "
        "that people do not see as the photograph: the same weakness that attacks use. RMSE is the error of the "
        "pixels, which neither metric was asked for."
    )
    source = stage.source("python -m examples.demo --out {out}   # examples/descended.py")
    return Section("From noise", [Text(text), Pictures([("", row)], size="large", source=source)])


def descend(
    start: Float[Array, "h w 3"],
    goal: Float[Array, "h w 3"],
    metric: Metric,
    steps: int,
    done: Any = lambda count: None,
) -> Float[Array, "h w 3"]:
    """Moves an image towards another by gradient descent on their distance.

    The length of the steps falls to 0, with momentum: signs of gradients, or Adam's quotients, would move all pixels
    by the same amount and leave noise.

    Args:
        start: in [0, 1].
        goal: of the same size.
        metric: from `rlpips_jax.load`.
        steps: how many.
        done: called with 1 after each step.
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
        done(1)
    return image


def _floats(picture: np.ndarray) -> Float[Array, "h w 3"]:
    return jnp.asarray(picture, jnp.float32) / 255
