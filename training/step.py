"""A training step as one compiled function: attack, loss, gradient, update.

    min over heads (ranking head, floors, backbone) of
        E max over |delta| <= epsilon of L(attacked) + w E L(as is) [+ E L(under noise)]

with L the cross-entropy of people's judgment with what the two distances say. Images are floats in [-1, 1], and where
it is asked for, p0 and p1 are shifted against the reference in half of the triplets.
"""

import functools
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt8

import rlpips_jax as rl
from rlpips_jax.distances.protocol import is_random
from rlpips_jax.errors import TrainingError
from rlpips_jax.judgment import draw_ranking_head, judgment_loss, ranking_head_logit, ratio_logit
from rlpips_jax.ops.automatic_axes import automatic_axes
from training import update
from training.adversary import VALUE_RANGE, Images, attacked_distances, dropped_distance
from training.config import Training
from training.update import Report, State, updated

AnyMetric: TypeAlias = Any
"""A metric that can be trained: a dataclass with `parameters`, "heads" among them, or an ensemble of one."""

Heads = tuple[Float[Array, " c"], ...]

Trained = dict[str, Any]
"""The parameters that are learnt: "heads", and as the configuration says "ranking", "log_floors" and "backbone"."""


class Batch(NamedTuple):
    """Judged triplets.

    Attributes:
        reference: uint8 `(n, h, w, 3)`.
        p0: one changed version of each.
        p1: another one.
        judgment: `(n,)`, fraction of people for whom p1 is closer.
    """

    reference: UInt8[Array, "n h w 3"]
    p0: UInt8[Array, "n h w 3"]
    p1: UInt8[Array, "n h w 3"]
    judgment: Float[Array, " n"]


ORDINAL, JUDGED = "ordinal", "judged"

Groups = dict[str, Batch]
"""The triplets of a step: `ORDINAL` ones, whose judgment is right by construction, `JUDGED` ones, or both."""


Means = tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]
"""Loss, natural and attacked, as in `Report`."""


def first_state(config: Training, metric: AnyMetric, optimiser: optax.GradientTransformation, sample: Any) -> State:
    """The state before the first step.

    Args:
        config: of the run.
        metric: to start from.
        optimiser: from `make_optimiser`.
        sample: images `(n, h, w, 3)`, uint8, on which floors are measured.
    """
    metric = trained_part(metric)
    heads, ranking = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    trained: Trained = {"heads": known_heads(config, metric)}
    if config.recipe.initial_heads == "drawn":
        drawn = draw_heads(heads, tuple(len(head) for head in metric.parameters["heads"]))
        # A ratio of distances wants them to be 0 or more from the start.
        trained["heads"] = optax.projections.projection_non_negative(drawn) if config.recipe.loss == "ratio" else drawn
    if config.recipe.loss == "head":
        trained["ranking"] = draw_ranking_head(ranking)
    if config.floor or "floors" in metric.parameters:
        floors = metric.parameters.get("floors") or initial_floors(metric, sample, config.floor)
        trained["log_floors"] = jax.tree.map(jnp.log, tuple(floors))
    if config.recipe.backbone_rate:
        trained["backbone"] = metric.parameters["backbone"]
    project = functools.partial(projected, config, metric)
    return update.first_state(trained, optimiser, average=config.average, project=project)


def known_heads(config: Training, metric: Any) -> Heads:
    """The heads to start from where they are not drawn: the metric's or equal ones, the first layer's by its share."""
    heads = metric.parameters["heads"]
    first, *others = jax.tree.map(jnp.ones_like, heads) if config.recipe.initial_heads == "equal" else heads
    return (first * config.first_layer, *others)


def projected(config: Training, metric: Any, trained: Trained) -> Trained:
    """The nearest allowed parameters: heads by `projected_heads`, and in the published recipe 1x1 kernels of a trained
    backbone that are 0 or more.

    The published code clips all 1x1 convolutions: heads are among them, and so are two thirds of SqueezeNet's.
    """
    trained = trained | {"heads": projected_heads(config, metric, trained["heads"])}
    if config.protocol == "published" and "backbone" in trained:
        trained["backbone"] = jax.tree.map(
            lambda leaf: jnp.maximum(leaf, 0) if leaf.shape[:2] == (1, 1) else leaf, trained["backbone"]
        )
    return trained


def projected_heads(config: Training, metric: Any, heads: Heads) -> Heads:
    """The nearest allowed heads: 0 or more, or within a factor of their start."""
    if config.head_range is None:
        return optax.projections.projection_non_negative(heads)
    start = known_heads(config, metric)
    lowest, highest = optax.tree.scale(1 / config.head_range, start), optax.tree.scale(config.head_range, start)
    return optax.projections.projection_box(heads, lowest, highest)


def draw_heads(key: Any, channels: tuple[int, ...]) -> Heads:
    """Heads from U(-1, 1) / sqrt(channels), as PyTorch draws them; the first step clips them."""
    keys = jax.random.split(key, len(channels))
    return tuple(
        jax.random.uniform(one, (count,), minval=-(count**-0.5), maxval=count**-0.5)
        for one, count in zip(keys, channels, strict=True)
    )


def initial_floors(metric: Any, sample: Any, share: float) -> tuple[Float[Array, ""], ...]:
    """A share of the median norm of activations at each tap."""

    # With a floor c far above a norm, a feature is f / c.
    large = 1e6
    scaled = with_parameters(metric, floors=(jnp.float32(large),) * len(metric.parameters["heads"]))
    features = scaled.features(sample)
    return tuple(share * jnp.median(large * jnp.linalg.norm(feature, axis=-1)) for feature in features)


def trained_part(metric: Any) -> Any:
    """The metric whose parameters are trained: of an ensemble, the one that it draws from."""
    whole = metric  # The check tells a type checker that `metric` has the members of the protocol alone.
    return whole.metric if is_random(metric) else metric


def with_options(metric: AnyMetric, **options: Any) -> AnyMetric:
    """The metric with some fields of its trained part replaced."""
    whole, part = metric, replace(trained_part(metric), **options)
    return replace(whole, metric=part) if is_random(metric) else part


def with_parameters(metric: AnyMetric, **parameters: Any) -> AnyMetric:
    """The metric with some of its parameters replaced."""
    return with_options(metric, parameters={**trained_part(metric).parameters, **parameters})


def with_trained(metric: AnyMetric, trained: Trained) -> AnyMetric:
    """The metric with its learnt parameters."""
    parameters = {name: trained[name] for name in ("heads", "backbone") if name in trained}
    if "log_floors" in trained:
        parameters["floors"] = jax.tree.map(jnp.exp, trained["log_floors"])
    return with_parameters(metric, **parameters)


def make_optimiser(config: Training, schedule: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Adam, with a rate for each sort of parameter.

    Args:
        config: of the run.
        schedule: `step -> share of the rates`.
    """
    rates = {
        "heads": config.recipe.rate,
        "ranking": config.recipe.rate,
        "log_floors": config.floor_rate,
        "backbone": config.recipe.backbone_rate,
    }

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.adam(lambda step: rate * schedule(step), b1=config.recipe.b1)

    return optax.multi_transform(
        {name: adam(rate) for name, rate in rates.items()}, lambda trained: {name: name for name in trained}
    )


def make_step(
    config: Training, optimiser: optax.GradientTransformation
) -> Callable[[State, Any, Groups], tuple[State, Report]]:
    """The jitted step `state, metric, groups -> state, report`; the memory of its first argument is reused.

    The metric holds the parameters that are not trained. Random draws depend on seed and step alone.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    @automatic_axes()
    def step(state: State, metric: Any, groups: Groups) -> tuple[State, Report]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step + 1)
        gradient, (loss, natural, attacked) = _accumulated(config, state.trained, metric, groups, key)
        return updated(
            state,
            gradient,
            optimiser,
            means=(loss, natural, attacked),
            average=config.average,
            project=functools.partial(projected, config, trained_part(metric)),
        )

    return step


def _accumulated(config: Training, trained: Trained, metric: Any, groups: Groups, key: Any) -> tuple[Trained, Means]:
    """Gradient and means of a batch, which passes through the network in parts."""
    differentiate = jax.grad(functools.partial(_loss, config), has_aux=True)
    if config.accumulate == 1:
        return differentiate(trained, metric, groups, key)
    # Every part has rows of all devices.
    parts = jax.tree.map(lambda array: array.reshape(-1, config.accumulate, *array.shape[1:]).swapaxes(0, 1), groups)
    keys = jax.random.split(key, config.accumulate)
    shapes = jax.eval_shape(differentiate, trained, metric, jax.tree.map(lambda part: part[0], parts), keys[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        found = differentiate(trained, metric, *part)
        return jax.tree.map(lambda sum, one: sum + one / config.accumulate, total, found), None

    return jax.lax.scan(add, zeros, (parts, keys))[0]


def losses(config: Training, groups: Collection[str], group: str) -> tuple[float, float]:
    """The weights of the losses on a group's triplets: attacked, and as they are."""
    if config.attack == "none":
        return 0.0, config.recipe.natural_weight
    if config.attack_judged or len(groups) == 1:
        return 1.0, config.recipe.natural_weight if group == JUDGED else 0.0
    return (1.0, 0.0) if group == ORDINAL else (0.0, config.recipe.natural_weight)


def _loss(config: Training, trained: Trained, metric: Any, groups: Groups, key: Any) -> tuple[Array, Means]:
    """The loss of a step, and its means."""
    metric = with_trained(metric, trained)
    total, natural, attacked = jnp.zeros(()), jnp.full((), jnp.nan), jnp.full((), jnp.nan)
    for name, batch in sorted(groups.items()):
        key, attacking, dropping = jax.random.split(key, 3)
        attacked_weight, natural_weight = losses(config, groups, name)
        images = _as_floats(batch)
        if config.shift:
            images = shifted(images, config.shift, jax.random.fold_in(dropping, 2))
        if natural_weight:
            d0, d1 = _distances(config, metric, images, dropping)
            total += natural_weight * _judgment_loss(config, trained, d0, d1, batch.judgment)
            natural = _agreement(d0, d1, batch.judgment)
        if config.noise:
            noisy = _under_noise(images, config.noise, jax.random.fold_in(dropping, 1))
            total += _judgment_loss(config, trained, *_distances(config, metric, noisy, dropping), batch.judgment)
        if attacked_weight:
            d0, d1 = attacked_distances(
                config, trained_part(metric), images=images, judgment=batch.judgment, key=attacking
            )
            total += attacked_weight * _judgment_loss(config, trained, d0, d1, batch.judgment)
            # If both groups are attacked, the ordinal ones are reported, which come last.
            attacked = _agreement(d0, d1, batch.judgment)
    return total, (total, natural, attacked)


def _as_floats(batch: Batch) -> Images:
    reference, p0, p1 = (array.astype(jnp.float32) / 127.5 - 1 for array in batch[:3])
    return reference, p0, p1


def shifted(images: Images, most: int, key: Any) -> Images:
    """Crops of triplets, `most` pixels smaller; in half of the triplets p0 and p1 are cut elsewhere than the reference.

    Args:
        images: reference, p0 and p1, in any range.
        most: pixels by which p0 and p1 lie elsewhere, at most, in each direction.
        key: of the draws.

    Raises:
        TrainingError: nothing is left of the images.
    """
    count, height, width, _ = images[0].shape
    if most >= min(height, width):
        raise TrainingError(f"--shift {most} leaves nothing of images of {height}x{width}; give a few pixels")
    choosing, *placing = jax.random.split(key, 3)
    here, there = (jax.random.randint(own, (count, 2), 0, most + 1) for own in placing)
    there = jnp.where(jax.random.bernoulli(choosing, shape=(count, 1)), there, here)

    def cropped(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), (height - most, width - most, image.shape[-1]))

    reference, p0, p1 = (
        jax.vmap(cropped)(image, corner) for image, corner in zip(images, (here, there, there), strict=True)
    )
    return reference, p0, p1


def _under_noise(images: Images, most: float, key: Any) -> Images:
    """Triplets with Gaussian noise on p0 and p1, as `certify` adds it: unclipped, of one deviation for both."""
    reference, *others = images
    deviation = jax.random.uniform(key, (len(reference), 1, 1, 1), maxval=most)
    keys = (jax.random.fold_in(key, place) for place in (1, 2))
    p0, p1 = (other + deviation * jax.random.normal(own, other.shape) for other, own in zip(others, keys, strict=True))
    return reference, p0, p1


def _distances(config: Training, metric: Any, images: Images, key: Any) -> tuple[Array, Array]:
    """Of p0 and p1 from the reference, with dropout; of a random metric, under the same draws."""
    if is_random(metric):
        reference, *others = images
        draws = {"key": key, "samples": config.samples or 1, "value_range": VALUE_RANGE}
        d0, d1 = (rl.distance(reference, other, metric, **draws) for other in others)
        return d0, d1
    reference, p0, p1 = (metric.features(each, value_range=VALUE_RANGE) for each in images)
    first, second = jax.random.split(key)
    return (
        dropped_distance(metric, reference, p0, key=first, rate=config.recipe.dropout),
        dropped_distance(metric, reference, p1, key=second, rate=config.recipe.dropout),
    )


def _judgment_loss(config: Training, trained: Trained, d0: Array, d1: Array, judgment: Array) -> Array:
    learnt = config.recipe.loss == "head"
    logit = ranking_head_logit(trained["ranking"], d0, d1) if learnt else ratio_logit(d0, d1)
    return jnp.mean(judgment_loss(logit, judgment))


def _agreement(d0: Array, d1: Array, judgment: Array) -> Array:
    """The 2AFC score: the share of people who order two images as the distances do."""
    return jnp.mean(jnp.where(d0 == d1, 0.5, jnp.where(d1 < d0, judgment, 1 - judgment)))
