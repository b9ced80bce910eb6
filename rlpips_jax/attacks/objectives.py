"""What an attack maximises: a number for each example of a batch.

An objective is any function `images -> (n,)` of images `(n, ..., h, w, 3)` in `value_range`. The objectives here are
pytrees: the parameters of their metric and the features of images that do not move, which are computed once, are
arguments of the compiled attack. So are the arrays that a callable pytree holds: a `jax.tree_util.Partial`, a module of
flax.nnx or equinox. Any other function is compiled anew for every new function object, and the arrays that it closes
over become constants of the program.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Shaped

from rlpips_jax.attacks.arguments import check_counts
from rlpips_jax.attacks.keys import Key
from rlpips_jax.distances.protocol import Features, Metric
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_value_range, float_dtype

Objective = Callable[..., Float[Array, " n"]]
"""`images -> (n,)`: a function of images `(n, ..., h, w, 3)`, or one of the objectives of this module."""

ATTACKED = ("closer", "farther", "both", "reference")
"""Which image of a triplet an attack moves: the closer one (pushed away), the farther one (pulled in), both, or the
reference."""

STILL = {
    "closer": ("reference", "farther"),
    "farther": ("reference", "closer"),
    "both": ("reference",),
    "reference": ("closer", "farther"),
}
"""Which images of a triplet do not move, by which one does; of these the features are needed."""


class TracedObjective:
    """Base of objectives that are pytrees, and know what success is."""

    goal: float | None = None
    """An attack has succeeded where the objective is above this; None: where it rose."""

    def __call__(self, images: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """The objective of each example."""
        raise NotImplementedError

    def succeeded(self, images: Images, before: Float[Array, " n"], after: Float[Array, " n"]) -> Bool[Array, " n"]:
        """For which examples an attack succeeded that took the objective from `before` to `after`."""
        return after > (before if self.goal is None else self.goal)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Ranking(TracedObjective):
    """d(reference, closer) - d(reference, farther): above 0 where the order of a triplet is reversed.

    Made by `ranking`.

    Attributes:
        metric: the distance.
        features: of the images that do not move and are compared with one that does.
        constant: the distance of the two that do not move; 0 where all that are compared move.
        attacked: which image moves, one of `ATTACKED`.
        value_range: black and white of the images.
    """

    goal = 0.0

    metric: Metric
    features: tuple[Features, ...]
    constant: Float[Array, " n"]
    attacked: str = field(metadata={"static": True})
    value_range: ValueRange = field(metadata={"static": True})

    def __call__(self, images: Float[Array, "n ..."]) -> Float[Array, " n"]:
        moving = self.metric.features(images, value_range=self.value_range)
        if self.attacked == "both":
            (reference,) = self.features
            distances = self.metric.between(jax.tree.map(lambda leaf: leaf[:, None], reference), moving)
            return distances[:, 0] - distances[:, 1]
        if self.attacked == "reference":
            closer, farther = (self.metric.between(moving, still) for still in self.features)
            return closer - farther
        (reference,) = self.features
        distance = self.metric.between(reference, moving)
        return distance - self.constant if self.attacked == "closer" else self.constant - distance


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class DistanceFrom(TracedObjective):
    """The distance of each image from one that does not move. Made by `distance_from`.

    Attributes:
        metric: the distance.
        features: of the images that do not move.
        value_range: black and white of the images.
    """

    metric: Metric
    features: Features
    value_range: ValueRange = field(metadata={"static": True})

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, " n"]:
        return self.metric.between(self.features, self.metric.features(images, value_range=self.value_range))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Classification(TracedObjective):
    """How wrong a classifier is about images. Made by `classification`.

    Attributes:
        apply: the classifier, `images -> (n, classes)`.
        labels: `(n,)`, the right classes.
        loss: one of `LOSSES`.
        goal: 0 for the margin; no value of the cross-entropy tells whether the classifier is fooled.
    """

    apply: Any
    labels: Int[Array, " n"]
    loss: str = field(metadata={"static": True})
    goal: float | None = field(metadata={"static": True})

    def __call__(self, images: Images) -> Float[Array, " n"]:
        return LOSSES[self.loss](self.logits(images), self.labels)

    def logits(self, images: Images) -> Float[Array, "n classes"]:
        """The classifier's logits of images, at least in float32.

        Raises:
            AttackError: it does not give one row of two or more logits for each label.
        """
        logits = self.apply(images)
        shape = getattr(logits, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != self.labels.shape[0] or shape[1] < 2:
            raise AttackError(
                f"apply must give a row of logits for each label, ({self.labels.shape[0]}, classes), and gives "
                f"{type(logits).__name__ if shape is None else shape} for images {images.shape}"
            )
        return logits.astype(float_dtype(logits))

    def succeeded(self, images: Images, before: Float[Array, " n"], after: Float[Array, " n"]) -> Bool[Array, " n"]:
        """Whether another class has a larger logit than the label, whatever the loss."""
        return (after if self.loss == "margin" else margin(self.logits(images), self.labels)) > 0


def margin(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """The largest other logit less the label's: above 0 where the classifier is wrong, NaN if a label has no logit."""
    own = jnp.arange(logits.shape[1]) == labels[:, None]
    others = jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)
    return others - jnp.take_along_axis(logits, labels[:, None], axis=1, mode="fill", fill_value=jnp.nan)[:, 0]


def cross_entropy(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """-log softmax(logits)[label]. NaN where a label has no logit."""
    logarithms = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logarithms, labels[:, None], axis=1, mode="fill", fill_value=jnp.nan)[:, 0]


LOSSES = {"margin": margin, "cross_entropy": cross_entropy}
"""The losses of classifiers by name, `logits (n, classes), labels (n,) -> (n,)`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Directed(TracedObjective):
    """Another objective times a sign, to make it large for some examples and small for others. Made by `directed`.

    Attributes:
        objective: what is made large or small.
        sign: 1 or -1; one for all examples, or one for each.
    """

    objective: Any
    sign: float | Float[Array, "..."]

    def __call__(self, images: Images, *key: Key) -> Float[Array, " n"]:
        return self.sign * self.objective(images, *key)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Randomised(TracedObjective):
    """The expectation of an objective that draws at random. Made by `randomised`.

    Attributes:
        function: `images, key -> (n,)`.
        samples: draws that are averaged each time.
        goal: above this expectation an attack has succeeded; None: above what it was before the attack.
    """

    function: Any
    samples: int = field(metadata={"static": True})
    goal: float | None = field(default=None, metadata={"static": True})

    def __call__(self, images: Images, key: Key | None = None) -> Float[Array, " n"]:
        if key is None:
            raise AttackError("a randomised objective needs a key")
        values = jax.lax.map(lambda one: self.function(images, one), jax.random.split(key, self.samples))
        return values.mean(axis=0)


def ranking(
    metric: Metric,
    reference: Images,
    closer: Images,
    farther: Images,
    *,
    attacked: str = "closer",
    value_range: ValueRange = UNIT_RANGE,
) -> Ranking:
    """The objective that reverses the order of triplets: d(reference, closer) - d(reference, farther).

    The images to attack with it are those that `attacked_images` picks: `closer`, `farther` or `reference` as they are,
    and for "both" the two stacked, `(n, 2, h, w, 3)`.

    Args:
        metric: from `rlpips_jax.load`.
        reference: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        closer: the images that are nearer to their references, as people or the metric judge.
        farther: the images that are farther.
        attacked: which image moves, one of `ATTACKED`.
        value_range: black and white of floating-point images.

    Raises:
        AttackError: `attacked` is not one of `ATTACKED`.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    check_attacked(attacked)
    images = {"reference": reference, "closer": closer, "farther": farther}
    features = {name: metric.features(images[name], value_range=value_range) for name in STILL[attacked]}
    return ranking_of_features(metric, features, attacked=attacked, value_range=value_range)


def ranking_of_features(
    metric: Metric, features: Mapping[str, Features], *, attacked: str = "closer", value_range: ValueRange = UNIT_RANGE
) -> Ranking:
    """`ranking` of images whose features are computed already, except those of the images that move.

    Args:
        metric: the one that computed the features.
        features: those of the images that `STILL` names for `attacked`, by "reference", "closer" and "farther".
        attacked: which image moves, one of `ATTACKED`.
        value_range: black and white of the images that move.

    Raises:
        AttackError: `attacked` is not one of `ATTACKED`, or features are missing.
    """
    check_attacked(attacked)
    if missing := sorted(set(STILL[attacked]) - features.keys()):
        raise AttackError(f"features of {', '.join(missing)} are missing; they are needed where {attacked} moves")
    still = [features[name] for name in STILL[attacked]]
    value_range = check_value_range(value_range)
    if attacked in ("closer", "farther"):
        reference, other = still
        return Ranking(metric, (reference,), metric.between(reference, other), attacked, value_range)
    leaf = jax.tree.leaves(still[0])[0]
    return Ranking(metric, tuple(still), jnp.zeros(leaf.shape[0], leaf.dtype), attacked, value_range)


def check_attacked(attacked: str) -> None:
    """Raises an AttackError for what is not one of `ATTACKED`."""
    if attacked not in ATTACKED:
        raise AttackError(f"attacked must be one of {', '.join(ATTACKED)}, got {attacked!r}")


def attacked_images(reference: Images, closer: Images, farther: Images, attacked: str) -> Images:
    """The images that an attack on `ranking` moves: `(n, h, w, 3)`, or `(n, 2, h, w, 3)` for "both"."""
    if attacked == "both":
        return jnp.stack([jnp.asarray(closer), jnp.asarray(farther)], axis=1)
    return {"closer": closer, "farther": farther, "reference": reference}[attacked]


def with_moved(
    triplets: tuple[Images, Images, Images], moved: Float[Array, "n ..."], attacked: str
) -> tuple[Images, Images, Images]:
    """Reference, closer and farther images after an attack that moved what `attacked_images` returned."""
    reference, closer, farther = triplets
    if attacked == "both":
        return reference, moved[:, 0], moved[:, 1]
    return {
        "closer": (reference, moved, farther),
        "farther": (reference, closer, moved),
        "reference": (moved, closer, farther),
    }[attacked]


def distance_from(metric: Metric, images: Images, *, value_range: ValueRange = UNIT_RANGE) -> DistanceFrom:
    """The objective that is the distance d(x, y) of moving images y from `images` x, whose features are computed once.

    Args:
        metric: from `rlpips_jax.load`.
        images: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        value_range: black and white of floating-point images.
    """
    value_range = check_value_range(value_range)
    return DistanceFrom(metric, metric.features(images, value_range=value_range), value_range)


def classification(
    apply: Callable[..., Array], labels: Shaped[Array | np.ndarray, "..."] | Sequence[int], *, loss: str = "margin"
) -> Classification:
    """The objective that fools a classifier: its loss on the right labels.

    To be compiled once for many batches and many states of training, `apply` is a callable pytree: a
    `jax.tree_util.Partial(model.apply, variables)` of flax.linen, or a module of flax.nnx or equinox itself.

    Args:
        apply: the classifier, `images (n, h, w, 3) -> logits (n, classes)`; it gets images as the attack varies them,
            floats in the attack's `value_range`.
        labels: `(n,)`, whole numbers from 0: the right classes. A label that has no logit makes the objective NaN.
        loss: "margin", the largest other logit less the label's, above 0 where the classifier is fooled; or
            "cross_entropy". Either way an attack has succeeded where the classifier is fooled.

    Raises:
        AttackError: an argument makes no sense; the message says which one and what would be right.
    """
    if loss not in LOSSES:
        raise AttackError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    array = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise AttackError(
            f"labels must be whole numbers, one for each image, (n,), got {array.dtype} of shape {array.shape}"
            + ("; take the argmax of one-hot rows" if array.ndim == 2 else "")
        )
    if not isinstance(array, Tracer) and (smallest := np.min(np.asarray(array), initial=0)) < 0:
        raise AttackError(f"labels must be classes, counted from 0, got {smallest}")
    return Classification(as_pytree(apply), jnp.asarray(array, jnp.int32), loss, 0.0 if loss == "margin" else None)


def directed(objective: Objective, sign: float | Float[Array, "..."]) -> Directed | Randomised:
    """An objective, such as `distance_from` or `expected_distance_from`, times 1 or -1: pushes images away or pulls.

    Args:
        objective: `images -> (n,)`.
        sign: one for all examples, or one for each, `(n,)`.
    """
    if isinstance(objective, Randomised):
        return Randomised(Directed(objective.function, sign), objective.samples)
    return Directed(as_pytree(objective), sign)


def negated(objective: Objective) -> Directed | Randomised:
    """Minus an objective, to pull images nearer."""
    return directed(objective, -1.0)


def randomised(
    function: Callable[..., Float[Array, " n"]], samples: int = 8, *, goal: float | int | None = None
) -> Randomised:
    """The expectation of a randomised objective, for attacks that adapt to it.

    Every gradient is an average over fresh draws (expectation over transformation, Athalye et al. 2018), and what is
    reported is judged with keys that the attack has not used.

    Args:
        function: `images, key -> (n,)`.
        samples: draws averaged at each step.
        goal: above this expectation an attack has succeeded: 0 for a difference of distances, as in `ranking`. None:
            above what it was before the attack.

    Raises:
        AttackError: `samples` is not a whole number of 1 or more.
    """
    check_counts(samples=samples)
    return Randomised(as_pytree(function), int(samples), None if goal is None else float(goal))


class _Skeleton(NamedTuple):
    """A callable pytree without its arrays: `still` has None in place of each, and every other leaf in a tuple."""

    structure: Any
    still: tuple[tuple[Any] | None, ...]

    def __call__(self, arrays: list[Array], *arguments: Any) -> Any:
        rest = iter(arrays)
        leaves = [next(rest) if leaf is None else leaf[0] for leaf in self.still]
        return jax.tree.unflatten(self.structure, leaves)(*arguments)


def as_pytree(function: Callable[..., Any], value_range: ValueRange | None = None) -> Callable[..., Any]:
    """A function that can be an argument of `jit`: a pytree's arrays are traced, anything else is static.

    Raises:
        AttackError: it is not a function, or an objective of images in another range than `value_range`, the attack's.
    """
    inner = function.function if isinstance(function, Randomised) else function
    inner = inner.objective if isinstance(inner, Directed) else inner
    made_for = getattr(inner, "value_range", value_range)
    if value_range is not None and made_for != value_range:
        raise AttackError(
            f"the objective was made for images in value_range={made_for}, the attack has {value_range}: pass both the "
            "same one"
        )
    if isinstance(function, TracedObjective | Partial):
        return function
    if not callable(function):
        raise AttackError(f"an objective or a classifier is a function of images, got {type(function).__name__}")
    leaves, structure = jax.tree.flatten(function)
    if not jax.tree_util.treedef_is_leaf(structure):
        traced = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        still = tuple(None if array else (leaf,) for leaf, array in zip(leaves, traced, strict=True))
        return Partial(_Skeleton(structure, still), [leaf for leaf, array in zip(leaves, traced, strict=True) if array])
    try:
        hash(function)
    except TypeError:
        return Partial(lambda *arguments: function(*arguments))
    return Partial(function)
