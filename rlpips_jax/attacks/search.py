"""The loop that all attacks share: evaluate, remember the best, step; one `lax.scan`, restarts by `vmap`."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.keys import Key, Purpose, child
from rlpips_jax.attacks.objectives import Objective, Randomised, TracedObjective
from rlpips_jax.attacks.procedure import Point, Procedure, Rendered, Variable, objective_value
from rlpips_jax.attacks.result import AttackResult, worth
from rlpips_jax.errors import AttackError
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.varying import varying_alike

Found = tuple[Variable, Float[Array, " n"]]
"""A variable and its objective."""


@functools.partial(jax.jit, static_argnames=("steps", "restarts"))
@automatic_axes("images")
def search(
    objective: Objective,
    images: Float[Array, "n ..."],
    procedure: Procedure,
    *,
    key: Key,
    steps: int,
    restarts: int = 1,
) -> AttackResult:
    """Maximises an objective of images from one or several starts.

    The best iterate of all starts is kept for each example; one whose objective is not finite is never better.

    Args:
        objective: `images -> (n,)` or a `Randomised`, as `as_pytree` gives it.
        images: `(n, ..., h, w, 3)`, floats.
        procedure: how to start, to step, and so on.
        key: for everything that is drawn.
        steps: number of steps.
        restarts: starts, each with its own key.

    Returns:
        What `procedure.report` makes of an `AttackResult`.
    """
    judge, searches, last = (child(key, purpose) for purpose in (Purpose.OBJECTIVE, Purpose.SEARCH, Purpose.LAST))
    _check_objective(objective, images, judge)
    random = isinstance(objective, Randomised)
    climb = functools.partial(_climb, objective, procedure, last=last, steps=steps)
    # Of more restarts the first ones are those of fewer.
    keys = jax.vmap(functools.partial(jax.random.fold_in, searches))(jnp.arange(restarts))
    if restarts == 1:
        variable, value, trajectory = climb(keys[0])
    else:
        # The programs of an ensemble branch on its draws, and `vmap` would compute all branches.
        found = jax.lax.map(climb, keys) if random else jax.vmap(climb)(keys)
        chosen = jnp.argmax(worth(found[1]), axis=0)
        variable, value, trajectory = jax.tree.map(lambda leaf: _pick(leaf, chosen), found)
    adversarial, origin = procedure.render(variable), procedure.origin()
    before = objective_value(objective, images, judge).astype(images.dtype)
    if random:
        # The value that was drawn while the best was chosen is too good.
        value = objective_value(objective, adversarial, judge).astype(images.dtype)
    finite = jnp.isfinite(value) | ~jnp.isfinite(before)
    better = finite if random or origin is None else worth(value) > worth(before)
    kept = (variable if origin is None else origin, images, before)
    variable, adversarial, value = _where(better, (variable, adversarial, value), kept)
    return procedure.report(summary(objective, images, adversarial, (before, value), trajectory.T), variable)


def _climb(
    objective: Objective, procedure: Procedure, key: Key, *, last: Key, steps: int
) -> tuple[Variable, Float[Array, " n"], Float[Array, "n steps"]]:
    """One start: the best variable, its objective, and the objective on the way."""
    random = isinstance(objective, Randomised)
    under = functools.partial(Rendered, objective, procedure.render)

    def under_same_draws(best: Found, here: Rendered) -> Found:
        # Of two draws the luckier would win, so both are seen under the same.
        variable, value = best
        return (variable, jnp.where(jnp.isfinite(value), here.value(variable), value)) if random else best

    def advance(carry: Any, inputs: Any) -> tuple[Any, Float[Array, " n"]]:
        variable, state, best = carry
        index, (drawn, own) = inputs
        here = under(drawn)
        at = procedure.gradient(here, variable, state, index)
        best = under_same_draws(best, here)
        improved = worth(at.counted) > worth(best[1])
        best = _where(improved, (variable, at.counted.astype(best[1].dtype)), best)
        point = Point(variable, at, index, own, best[0], improved, here.value if random else None)
        state, variable = procedure.step(state, point)
        return (procedure.project(variable), state, best), at.counted.astype(best[1].dtype)

    def body(carry: Any, inputs: Any) -> tuple[Any, Float[Array, " n"]]:
        if math.isinf(procedure.enough):
            return advance(carry, inputs)
        _, _, (_, found) = carry
        return jax.lax.cond(jnp.all(found > procedure.enough), lambda carry, _: (carry, found), advance, carry, inputs)

    begin, _, draws = jax.random.split(key, 3)
    keys = jax.random.split(draws, (steps, 2))
    variable = procedure.start(begin)
    dtype = jax.tree.leaves(variable)[0].dtype
    nothing = (variable, jnp.full(jax.tree.leaves(variable)[0].shape[:1], jnp.nan, dtype))
    carry = varying_alike((variable, procedure.state(variable), nothing), objective, procedure)
    (variable, _, best), values = jax.lax.scan(body, carry, (jnp.arange(steps), (keys[:, 0], keys[:, 1])))
    variable = procedure.finish(variable)
    here = under(last)
    value = here.value(variable).astype(dtype)
    best = under_same_draws(best, here)
    # Where no iterate had a finite objective the last is as good, and within its bound.
    best = _where((worth(value) > worth(best[1])) | ~jnp.isfinite(best[1]), (variable, value), best)
    return *best, jnp.concatenate([values.astype(dtype), value[None]]).T


def summary(
    objective: Objective,
    images: Float[Array, "n ..."],
    adversarial: Float[Array, "n ..."],
    values: tuple[Float[Array, " n"], Float[Array, " n"]],
    trajectory: Float[Array, "steps n"],
) -> AttackResult:
    """The result of an attack that took the objective from the first of two values to the second."""
    before, after = (value.astype(images.dtype) for value in values)
    # Other functions have no goal but to rise.
    traced = isinstance(objective, TracedObjective)
    change = adversarial - images
    return AttackResult(
        adversarial=adversarial,
        before=before,
        after=after,
        linf=balls.BALLS["linf"].length(change),
        l2=balls.BALLS["l2"].length(change),
        success=objective.succeeded(adversarial, before, after) if traced else after > before,
        trajectory=trajectory,
    )


def _check_objective(objective: Objective, images: Float[Array, "n ..."], key: Key) -> None:
    shape = jax.eval_shape(lambda: objective_value(objective, images, key)).shape
    if shape != images.shape[:1]:
        raise AttackError(
            f"the objective gives shape {shape} for images {images.shape}; it must give a number for each example, "
            f"{images.shape[:1]}: take no mean over the batch"
        )


def _where(condition: Bool[Array, " n"], yes: Any, no: Any) -> Any:
    """Of two pytrees whose leaves have a first axis of examples, the one that the condition picks for each."""
    return jax.tree.map(lambda a, b: jnp.where(balls.per_example(condition, a), a, b), yes, no)


def _pick(stacked: Array, chosen: Array) -> Array:
    """From arrays `(restarts, n, ...)` the restart that was chosen for each example."""
    return jnp.take_along_axis(stacked, chosen.reshape(1, -1, *(1,) * (stacked.ndim - 2)), axis=0)[0]
