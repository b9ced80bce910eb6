"""The attack inside a training step: it changes triplets so that the metric's order of p0 and p1 is reversed.

`protocol="corrected"` ascends the difference of the metric's own distances by any attack of `rlpips_jax.attacks`, keeps
images in [-1, 1], and moves the image that people find closer (or the farther one, or both, or the reference).

`protocol="published"` is the attack inside R-LPIPS's published training code, with its quirks:

- It ascends the loss of a ranking head that is drawn anew at every iteration, not that of the head being trained.
- Its step (1e4) is far larger than the ball, so that l-inf perturbations jump from corner to corner.
- It does not keep images in [-1, 1].
- In l2 it takes the sign of the gradient, and then shortens the perturbation to the radius.
- It moves p0 (or p1, or the reference) whether or not p0 is closer; "both" moves p0, then p1 against the moved p0.
- Dropout is on inside it, and its last iterate counts, not its best.

Source: Ghazanfari et al. 2023, "R-LPIPS: An Adversarially Robust Perceptual Similarity Metric", and its code.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlpips_jax import attacks
from rlpips_jax.attacks.balls import BALLS
from rlpips_jax.distances.protocol import Features, Metric
from rlpips_jax.judgment import draw_ranking_head, judgment_loss, ranking_head_logit
from training.config import Training

VALUE_RANGE = (-1.0, 1.0)

PUBLISHED_STEP = 1e4

PUBLISHED_SIDES = {"closer": ("p0",), "farther": ("p1",), "both": ("p0", "p1"), "reference": ("reference",)}
"""The images that the published attack moves, one after another, by the corrected one's word for the choice."""

RANKED = ("reference", "closer", "farther")

Images = tuple[Float[Array, "n h w 3"], Float[Array, "n h w 3"], Float[Array, "n h w 3"]]
"""Reference, p0, p1, in [-1, 1]."""


def attacked_distances(
    config: Training, metric: Metric, *, images: Images, judgment: Float[Array, " n"], key: Any
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Distances of p0 and p1 from the reference after the attack that the configuration names.

    Images that do not move pass through the network once. Differentiable by the metric; the attack is a constant.

    Args:
        config: of the run.
        metric: as it is trained so far.
        images: reference, p0, p1.
        judgment: `(n,)`, the fraction of people for whom p1 is closer.
        key: a key of `jax.random`.
    """
    drawn, first, second = jax.random.split(key, 3)
    if config.protocol == "published":
        reference, p0, p1 = _published(config, metric, images, judgment, drawn)
        d0 = dropped_distance(metric, reference, p0, key=first, rate=config.recipe.dropout)
        return d0, dropped_distance(metric, reference, p1, key=second, rate=config.recipe.dropout)
    swapped = judgment > 0.5
    reference, closer, farther = _corrected(config, metric, images, swapped, drawn)
    near = dropped_distance(metric, reference, closer, key=first, rate=config.recipe.dropout)
    far = dropped_distance(metric, reference, farther, key=second, rate=config.recipe.dropout)
    return jnp.where(swapped, far, near), jnp.where(swapped, near, far)


def _corrected(
    config: Training, metric: Metric, images: Images, swapped: Bool[Array, " n"], key: Any
) -> tuple[Features, Features, Features]:
    """Features of the reference, the closer and the farther image after the attack."""
    reference, p0, p1 = images
    chosen = swapped[:, None, None, None]
    ranked = reference, jnp.where(chosen, p1, p0), jnp.where(chosen, p0, p1)
    named = dict(zip(RANKED, ranked, strict=True))
    features = {name: metric.features(named[name], value_range=VALUE_RANGE) for name in attacks.STILL[config.attacked]}
    objective = attacks.ranking_of_features(
        *jax.lax.stop_gradient((metric, features)), attacked=config.attacked, value_range=VALUE_RANGE
    )
    attack = attacks.ATTACKS[config.attack]
    moved = attack.function(
        objective,
        attacks.attacked_images(*ranked, config.attacked),
        key=key,
        epsilon=config.recipe.radius,
        value_range=VALUE_RANGE,
        **attack.options(steps=config.recipe.attack_steps, norm=config.norm),
    ).adversarial
    after = dict(zip(RANKED, attacks.with_moved(ranked, moved, config.attacked), strict=True))
    for name in after.keys() - features.keys():
        features[name] = metric.features(jax.lax.stop_gradient(after[name]), value_range=VALUE_RANGE)
    return features["reference"], features["closer"], features["farther"]


def _published(
    config: Training, metric: Metric, images: Images, judgment: Float[Array, " n"], key: Any
) -> tuple[Features, Features, Features]:
    """Features of the reference, p0 and p1 after the attack."""
    places = {"reference": 0, "p0": 1, "p1": 2}
    features = [metric.features(image, value_range=VALUE_RANGE) for image in images]
    for side in PUBLISHED_SIDES[config.attacked]:
        key, own = jax.random.split(key)
        place = places[side]
        still = jax.lax.stop_gradient((metric, features))
        delta = _published_perturbation(config, *still, place, images[place], judgment, own)
        features[place] = metric.features(images[place] + jax.lax.stop_gradient(delta), value_range=VALUE_RANGE)
    return features[0], features[1], features[2]


def _published_perturbation(
    config: Training,
    metric: Metric,
    features: list[Features],
    place: int,
    image: Float[Array, "n h w 3"],
    judgment: Float[Array, " n"],
    key: Any,
) -> Float[Array, "n h w 3"]:
    """The attack's change of one image, at a place among reference, p0 and p1; the other two do not move."""
    epsilon = config.recipe.radius

    def loss(delta: Float[Array, "n h w 3"], key: Any) -> Float[Array, ""]:
        placed = list(features)
        placed[place] = metric.features(image + delta, value_range=VALUE_RANGE)
        head, first, second = jax.random.split(key, 3)
        d0 = dropped_distance(metric, placed[0], placed[1], key=first, rate=config.recipe.dropout)
        d1 = dropped_distance(metric, placed[0], placed[2], key=second, rate=config.recipe.dropout)
        return judgment_loss(ranking_head_logit(draw_ranking_head(head), d0, d1), judgment).mean()

    def step(delta: Float[Array, "n h w 3"], key: Any) -> tuple[Float[Array, "n h w 3"], None]:
        delta = delta + PUBLISHED_STEP * jnp.sign(jax.grad(loss)(delta, key))
        if config.norm == "linf":
            return jnp.clip(delta, -epsilon, epsilon), None
        length = BALLS["l2"].length(delta)[:, None, None, None]
        return delta * jnp.minimum(epsilon / jnp.where(length > 0, length, 1), 1), None

    return jax.lax.scan(step, jnp.zeros_like(image), jax.random.split(key, config.recipe.attack_steps))[0]


def dropped_distance(metric: Any, features: Features, others: Features, *, key: Any, rate: float) -> Float[Array, " n"]:
    """`metric.between` after dropping a share of the squared differences and rescaling the others to make up for it."""
    if not rate:
        return metric.between(features, others)
    kept = [
        jax.random.bernoulli(one, 1 - rate, feature.shape) / (1 - rate)
        for one, feature in zip(jax.random.split(key, len(features)), features, strict=True)
    ]
    layers = zip(features, others, kept, metric.parameters["heads"], strict=True)
    return functools.reduce(
        jnp.add, [jnp.mean(jnp.sum(jnp.square(f - g) * keep * head, -1), (-2, -1)) for f, g, keep, head in layers]
    )
