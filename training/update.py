"""What every step of training ends with: an update that is taken if all is finite, and a moving average."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


class State(NamedTuple):
    """What a step changes.

    Attributes:
        trained: parameters.
        optimiser: of optax.
        average: moving average of `trained`; None without one.
        step: steps done.
    """

    trained: Any
    optimiser: optax.OptState
    average: Any
    step: Int[Array, ""]

    @property
    def result(self) -> Any:
        """The parameters as they are evaluated and exported."""
        return self.trained if self.average is None else self.average


class Report(NamedTuple):
    """How a step's batch did before the update.

    Attributes:
        loss: mean over the batch.
        natural: share of examples as they are that are judged right; NaN where no loss needs it.
        attacked: the same after the attack; NaN without one.
        gradient: Euclidean norm of the gradient.
        finite: whether loss and gradient are; if not, the state stays as it was.
    """

    loss: Float[Array, ""]
    natural: Float[Array, ""]
    attacked: Float[Array, ""]
    gradient: Float[Array, ""]
    finite: Bool[Array, ""]


Projection = Callable[[Any], Any]
"""Gives the nearest allowed parameters."""


def unchanged(trained: Any) -> Any:
    """The projection where all parameters are allowed."""
    return trained


def first_state(
    trained: Any, optimiser: optax.GradientTransformation, *, average: float, project: Projection = unchanged
) -> State:
    """The state before the first step, in memory of its own, which a step may reuse.

    Args:
        trained: parameters to start from.
        optimiser: of the run.
        average: decay of the moving average; 0 for none.
        project: of the parameters that are averaged; those to start from may lie outside.
    """
    trained = jax.tree.map(jnp.array, trained)
    kept = jax.tree.map(jnp.array, project(trained)) if average else None
    return State(trained, optimiser.init(trained), kept, jnp.zeros((), jnp.int32))


def updated(
    state: State,
    gradient: Any,
    optimiser: optax.GradientTransformation,
    *,
    means: tuple[Array, Array, Array],
    average: float,
    project: Projection = unchanged,
) -> tuple[State, Report]:
    """The state after a step, and its report; where something is not finite, the state stays as it was.

    Args:
        state: before the step.
        gradient: of the loss by `state.trained`.
        optimiser: of the run.
        means: loss, natural and attacked, as in `Report`.
        average: decay of the moving average.
        project: of the changed parameters.
    """
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(means[0]) & jnp.isfinite(norm)
    updates, moments = optimiser.update(gradient, state.optimiser, state.trained)
    trained: Any = project(optax.apply_updates(state.trained, updates))
    kept: Any = None
    if state.average is not None:
        # Early averages forget the start sooner.
        decay = jnp.minimum(average, (1 + state.step) / (10 + state.step))
        kept = optax.incremental_update(trained, state.average, 1 - decay)
    changed = State(trained, moments, kept, state.step + 1)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, state)
    return state, Report(*means, norm, finite)
