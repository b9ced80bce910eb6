"""The loop that all attacks share: evaluate, remember the best, step; one `lax.scan`, restarts by `vmap`.

An attack is what it starts from, how it steps, and what images its variable stands for.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.objectives import Objective, Randomised
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.errors import AttackError, ImageError
from rlpips_jax.images import ValueRange, check_images, check_value_range

Key = PRNGKeyArray | Int[Array | np.ndarray, "2"]
"""A key of `jax.random`, new or old style."""


class Point(NamedTuple):
    """An iterate and what is known of it.

    Attributes:
        variable: what the attack varies: images, or a flow.
        value: `(n,)`, the objective.
        gradient: of the sum of the objective, less the penalty, by the variable; None in attacks without gradients.
        index: the step, from 0.
        key: for what the step draws.
        best: the best variable so far, this one included.
        improved: `(n,)`, whether it is this one.
        again: `variable -> (n,)`, the objective of another variable under this step's draws; None where nothing is
            drawn, as it is then what it was.
        excess: how far outside its constraint each image is, `(n, ...)`; None in attacks without a penalty.
    """

    variable: Any
    value: Float[Array, " n"]
    gradient: Any
    index: Int[Array, ""]
    key: Any
    best: Any = None
    improved: Any = None
    again: Callable[[Any], Float[Array, " n"]] | None = None
    excess: Any = None


class Penalty(NamedTuple):
    """A constraint that iterates may break on the way, at a price: weight * max(0, excess), for each image.

    Attributes:
        excess: `images -> (n, ...)`, how far outside each is; 0 or less within.
        weight: `state, index -> (n, ...)`, with the state that the step at this index gets.
        enough: an objective above this pulls no further, so that the penalty alone decides.
    """

    excess: Callable[[Any], Float[Array, "n ..."]]
    weight: Callable[[Any, Any], Float[Array, "..."]]
    enough: float = float("inf")


Step = Callable[[Any, Point], tuple[Any, Any]]
"""`state, point -> state, next variable`."""


def search(
    objective: Any,
    images: Float[Array, "n ..."],
    *,
    start: Callable[[Any], Any],
    step: Step,
    steps: int,
    key: Any,
    restarts: int = 1,
    state: Callable[[Any], Any] = lambda variable: None,
    render: Callable[[Any], Any] = lambda variable: variable,
    gradients: bool = True,
    penalty: Penalty | None = None,
    finish: Callable[[Any], Any] = lambda variable: variable,
    origin: Any = None,
) -> tuple[AttackResult, Any]:
    """Maximises an objective of images from one or several starts.

    Args:
        objective: `images -> (n,)`, or a `Randomised`.
        images: `(n, ..., h, w, 3)`, floats.
        start: `key -> variable`, arrays with a first axis of n.
        step: how to go on.
        steps: number of steps.
        key: for everything that is drawn.
        restarts: starts, each with its own key.
        state: `variable -> state` that `step` begins with.
        render: `variable -> images`.
        gradients: whether steps need them.
        penalty: what gradients take off the objective. An example one of whose images is outside does not count: its
            value in the trajectory is -inf.
        finish: `variable -> variable`, what is done to the last one; with a penalty it brings it within.
        origin: the variable that stands for `images`, which is then kept where nothing better is found.

    Returns:
        The result, and the variable that its images stand for.
    """
    judge, searches = jax.random.split(key)
    end = jax.random.fold_in(judge, 0)
    _check_objective(objective, images, judge)

    def value_of(variable: Any, key: Any) -> Float[Array, " n"]:
        return _value(objective, render(variable), key)

    def evaluate(variable: Any, key: Any) -> tuple[Float[Array, " n"], Any]:
        if not gradients:
            return value_of(variable, key), None
        return _value_and_gradient(objective, render, variable, key)

    random = isinstance(objective, Randomised)

    def under(best: Any, key: Any) -> Any:
        # Of two draws the luckier would win, so both are seen under the same.
        variable, value = best
        return variable, jnp.where(jnp.isneginf(value), value, value_of(variable, key).astype(value.dtype))

    def one(key: Any) -> tuple[Any, Float[Array, " n"], Float[Array, "steps n"]]:
        begin, _, keys = jax.random.split(key, 3)

        def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
            variable, state, best = carry
            index, (drawn, own) = inputs
            value, gradient = evaluate(variable, drawn)
            counted, excess = value, None
            if penalty is not None:
                weight = penalty.weight(state, index)
                counted, gradient, excess = _penalised(penalty, weight, render, variable, value, gradient)
            old = under(best, drawn) if random else best
            improved, best = counted > old[1], _better(old, (variable, counted))
            again = functools.partial(value_of, key=drawn) if random else None
            point = Point(variable, value, gradient, index, own, best[0], improved, again, excess)
            state, variable = step(state, point)
            return (variable, state, best), counted

        variable = start(begin)
        nothing = (variable, jnp.full(images.shape[0], -jnp.inf, images.dtype))
        inputs = (jnp.arange(steps), jax.random.split(keys, (steps, 2)).swapaxes(0, 1))
        inputs = (inputs[0], (inputs[1][0], inputs[1][1]))
        (variable, _, best), values = jax.lax.scan(body, (variable, state(variable), nothing), inputs)
        variable = finish(variable)
        last = value_of(variable, end).astype(images.dtype)
        best = _better(under(best, end) if random else best, (variable, last))
        return *best, jnp.concatenate([values.astype(images.dtype), last[None]])

    # Of more restarts the first ones are those of fewer.
    keys = jax.vmap(functools.partial(jax.random.fold_in, searches))(jnp.arange(restarts))
    if restarts == 1:
        variable, value, trajectory = one(keys[0])
    else:
        # An ensemble's programs branch on what is drawn, which `vmap` would take all branches of.
        variables, values, trajectories = jax.lax.map(one, keys) if random else jax.vmap(one)(keys)
        chosen = jnp.argmax(values, axis=0)
        variable = jax.tree.map(lambda leaf: _pick(leaf, chosen), variables)
        value = _pick(values, chosen)
        trajectory = _pick(trajectories.swapaxes(1, 2), chosen).T
    before = _value(objective, images, judge).astype(images.dtype)
    if origin is not None and not isinstance(objective, Randomised):
        variable, value = _better((origin, before), (variable, value))
    adversarial = render(variable)
    # A value that a random objective drew while the best was chosen is too good.
    if isinstance(objective, Randomised):
        value = _value(objective, adversarial, judge)
    return _summary(objective, images, adversarial, before, value, trajectory), variable


def _summary(
    objective: Any,
    images: Float[Array, "n ..."],
    adversarial: Float[Array, "n ..."],
    before: Float[Array, " n"],
    after: Float[Array, " n"],
    trajectory: Float[Array, "steps n"],
) -> AttackResult:
    """The result of an attack that took the objective from `before` to `after`."""
    after = after.astype(images.dtype)
    # A function that is no Objective has no goal but to rise.
    succeeded = objective.succeeded if isinstance(objective, Objective) else lambda _, before, after: after > before
    change = adversarial - images
    return AttackResult(
        adversarial=adversarial,
        before=before,
        after=after,
        linf=balls.BALLS["linf"].length(change),
        l2=balls.BALLS["l2"].length(change),
        success=succeeded(adversarial, before, after),
        trajectory=trajectory,
    )


def judged(
    objective: Any,
    images: Float[Array, "n ..."],
    adversarial: Float[Array, "n ..."],
    trajectory: Float[Array, "steps n"],
    key: Any,
) -> AttackResult:
    """The result of an attack that ended at `adversarial`, judged with this key, which no choice has used."""
    before, after = (_value(objective, these, key) for these in (images, adversarial))
    return _summary(objective, images, adversarial, before.astype(images.dtype), after, trajectory)


def as_floats(images: Any, value_range: Any) -> tuple[Float[Array, "n ..."], ValueRange]:
    """Images as the loop needs them: a batch of floats in `value_range`; uint8 is scaled to it.

    Raises:
        ImageError: they break the convention of `rlpips_jax.images`, or are no batch.
    """
    value_range = check_value_range(value_range)
    (images,) = check_images(value_range, images=images)
    if images.ndim < 4:
        raise ImageError(f"images has shape {images.shape}; an attack takes a batch (n, h, w, 3): pass images[None]")
    black, white = value_range
    array = jnp.asarray(images)
    if array.dtype == jnp.uint8:
        array = black + array.astype(jnp.float32) * ((white - black) / 255)
    return jnp.clip(array.astype(jnp.promote_types(array.dtype, jnp.float32)), black, white), value_range


def check_counts(**counts: Any) -> None:
    """Raises an AttackError for a count that is not a whole number of 1 or more."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise AttackError(f"{name} must be a whole number, 1 or more, got {count!r}")


def radius_of(
    name: str, radius: Any, images: Float[Array, "n ..."], *, units: str = "value_range"
) -> Float[Array, "..."]:
    """A radius or step as an array: one number, or one for each example.

    Raises:
        AttackError: it has another shape, or is negative or no number (where values are at hand).
    """
    try:
        array = jnp.asarray(radius, images.dtype)
    except (TypeError, ValueError):
        raise AttackError(f"{name} must be a number, or one for each example, got {radius!r}") from None
    if array.shape not in ((), images.shape[:1]):
        raise AttackError(
            f"{name} must be one number or one for each of the {images.shape[0]} examples, got shape {array.shape}"
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(radius)):
        return array
    # By NumPy, as within a jitted function even operations on what has a value are traced.
    values = np.asarray(radius, float)
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise AttackError(f"{name} must be finite and 0 or more, in the units of {units}, got {radius}")
    return array


def _check_objective(objective: Any, images: Float[Array, "n ..."], key: Any) -> None:
    shape = jax.eval_shape(lambda: _value(objective, images, key)).shape
    if shape != images.shape[:1]:
        raise AttackError(
            f"the objective gives shape {shape} for images {images.shape}; it must give a number for each example, "
            f"{images.shape[:1]}: take no mean over the batch"
        )


def _value(objective: Any, images: Any, key: Any) -> Float[Array, " n"]:
    return objective(images, key) if isinstance(objective, Randomised) else objective(images)


def _value_and_gradient(
    objective: Any, render: Callable[[Any], Any], variable: Any, key: Any
) -> tuple[Float[Array, " n"], Any]:
    """The objective and the gradient of its sum; examples do not depend on each other, so it is that of each."""

    def differentiate(function: Callable[[Any], Float[Array, " n"]]) -> tuple[Float[Array, " n"], Any]:
        def total(variable: Any) -> tuple[Array, Array]:
            values = function(render(variable))
            return values.sum(), values

        (_, values), gradient = jax.value_and_grad(total, has_aux=True)(variable)
        return values, gradient

    if not isinstance(objective, Randomised):
        return differentiate(objective)

    # One draw after another, as the activations of all would not fit.
    def add(sums: Any, key: Any) -> tuple[Any, None]:
        drawn = differentiate(lambda images: objective.of_one_draw(images, key))
        return jax.tree.map(jnp.add, sums, drawn), None

    keys = jax.random.split(key, objective.samples)
    shapes = jax.eval_shape(lambda: differentiate(lambda images: objective.of_one_draw(images, keys[0])))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, keys)
    return jax.tree.map(lambda leaf: leaf / objective.samples, sums)


def _penalised(
    penalty: Penalty,
    weight: Float[Array, "..."],
    render: Callable[[Any], Any],
    variable: Any,
    value: Float[Array, " n"],
    gradient: Any,
) -> tuple[Float[Array, " n"], Any, Float[Array, "n ..."]]:
    """The objective as it counts, the gradient less that of the penalty, and how far outside images are."""
    excess, pull = jax.vjp(lambda variable: penalty.excess(render(variable)), variable)
    outside = excess > 0
    (slopes,) = pull(jnp.where(outside, weight, 0).astype(excess.dtype))
    pulls = value <= penalty.enough

    def less(gradient: Array, slope: Array) -> Array:
        return jnp.where(balls.per_example(pulls, gradient), gradient, 0) - slope

    counted = jnp.where(outside.reshape(value.shape[0], -1).any(axis=1), -jnp.inf, value)
    return counted, jax.tree.map(less, gradient, slopes), excess


def _better(best: tuple[Any, Array], found: tuple[Any, Array]) -> tuple[Any, Array]:
    """Example by example, what is worth more; what was found first where both are alike."""
    (old, old_value), (new, new_value) = best, found
    won = new_value > old_value
    variable = jax.tree.map(lambda a, b: jnp.where(balls.per_example(won, a), b, a), old, new)
    return variable, jnp.where(won, new_value, old_value).astype(old_value.dtype)


def _pick(stacked: Array, chosen: Int[Array, " n"]) -> Array:
    """Of arrays `(restarts, n, ...)` the one that was chosen for each example."""
    return jnp.take_along_axis(stacked, chosen.reshape(1, -1, *(1,) * (stacked.ndim - 2)), axis=0)[0]
