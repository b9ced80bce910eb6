"""The pieces of an attack that `rlpips_jax.attacks.search` puts together: start, gradient, step, project."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.keys import Key
from rlpips_jax.attacks.objectives import Randomised
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.images import ValueRange

Variable = Float[Array, "n ..."]
"""What an attack varies: images, or a flow."""
State = PyTree[Array]
"""What steps remember."""


class Evaluation(NamedTuple):
    """An objective at a variable.

    Attributes:
        value: `(n,)`, the objective.
        counted: `(n,)`, what the best iterate is chosen by: the value, -inf where an image breaks a constraint.
        gradient: of the sum of the objective, less any penalty, by the variable; None in attacks without gradients.
        excess: `(n, ...)`, how far outside its constraint each image is; None in attacks without a penalty.
    """

    value: Float[Array, " n"]
    counted: Float[Array, " n"]
    gradient: Any = None
    excess: Float[Array, "n ..."] | None = None


@dataclass(frozen=True)
class Point:
    """An iterate and what is known about it.

    Attributes:
        variable: what the attack varies.
        at: the objective there.
        index: the step, from 0.
        key: for what the step draws.
        best: the best variable so far, this one included.
        improved: `(n,)`, whether it is this one.
        again: `variable -> (n,)`, the objective of another variable under this step's draws; None for an objective
            that is not randomised, as its values do not change.
    """

    variable: Variable
    at: Evaluation
    index: Int[Array, ""]
    key: Key
    best: Variable
    improved: Bool[Array, " n"]
    again: Callable[[Variable], Float[Array, " n"]] | None


class Rendered(NamedTuple):
    """An objective as a function of an attack's variable, under the draws of one key."""

    objective: Any
    render: Callable[[Variable], Float[Array, "n ..."]]
    key: Key

    def value(self, variable: Variable) -> Float[Array, " n"]:
        """The objective of each example."""
        return objective_value(self.objective, self.render(variable), self.key)

    def value_and_gradient(self, variable: Variable) -> tuple[Float[Array, " n"], Variable]:
        """The objective and the gradient of its sum; examples do not depend on each other, so it is that of each."""

        def differentiate(function: Callable[[Any], Float[Array, " n"]]) -> tuple[Float[Array, " n"], Variable]:
            def total(variable: Variable) -> tuple[Array, Array]:
                values = function(self.render(variable))
                return values.sum(), values

            (_, values), gradient = jax.value_and_grad(total, has_aux=True)(variable)
            return values, gradient

        objective = self.objective
        if not isinstance(objective, Randomised):
            return differentiate(objective)

        # One draw after another, as the activations of all would not fit.
        def add(sums: Any, key: Key) -> tuple[Any, None]:
            drawn = differentiate(lambda images: objective.function(images, key))
            return jax.tree.map(jnp.add, sums, drawn), None

        keys = jax.random.split(self.key, objective.samples)
        shapes = jax.eval_shape(lambda: differentiate(lambda images: objective.function(images, keys[0])))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        sums, _ = jax.lax.scan(add, zeros, keys)
        return jax.tree.map(lambda leaf: leaf / objective.samples, sums)


def objective_value(objective: Any, images: Float[Array, "n ..."], key: Key) -> Float[Array, " n"]:
    """An objective of images; the key is used by a randomised one alone."""
    return objective(images, key) if isinstance(objective, Randomised) else objective(images)


class Procedure:
    """What one attack does differently from another. A subclass is a pytree: a registered dataclass.

    Arrays in its fields are arguments of the compiled loop, so that it is compiled once for all batches; fields with
    `metadata={"static": True}` are compiled in.
    """

    enough: float = math.inf
    """Where the best objective of every example is above this, the search stops."""

    def start(self, key: Key) -> Variable:
        """Where a search begins."""
        raise NotImplementedError

    def state(self, variable: Variable) -> State:
        """What the first step remembers."""
        return ()

    def gradient(self, objective: Rendered, variable: Variable, state: State, index: Int[Array, ""]) -> Evaluation:
        """The objective and its gradient at a variable."""
        value, gradient = objective.value_and_gradient(variable)
        return Evaluation(value, value, gradient)

    def step(self, state: State, point: Point) -> tuple[State, Variable]:
        """The next state and variable."""
        raise NotImplementedError

    def project(self, variable: Variable) -> Variable:
        """A step's variable brought back to where it may be."""
        return variable

    def finish(self, variable: Variable) -> Variable:
        """What is done to the last variable."""
        return variable

    def render(self, variable: Variable) -> Float[Array, "n ..."]:
        """The images that a variable stands for."""
        return variable

    def origin(self) -> Variable | None:
        """The variable of the images themselves, which are kept where nothing better is found.

        None: the best iterate is kept even if it is worse.
        """
        return None

    def report(self, result: AttackResult, variable: Variable) -> AttackResult:
        """The result, with whatever else it tells about the variable that was chosen."""
        return result


class ByValues(Procedure):
    """An attack that needs values alone."""

    def gradient(self, objective: Rendered, variable: Variable, state: State, index: Int[Array, ""]) -> Evaluation:
        value = objective.value(variable)
        return Evaluation(value, value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class InBall(Procedure):
    """An attack whose variable is the images, in a ball around each.

    Attributes:
        images: `(n, ..., h, w, 3)`, floats in `value_range`.
        epsilon: radius, one number or one for each example.
        norm: of the ball.
        value_range: black and white of the images.
        random_start: whether to start at a point drawn from the ball, or at the image.
    """

    images: Float[Array, "n ..."]
    epsilon: Float[Array, "..."]
    norm: str = field(metadata={"static": True})
    value_range: ValueRange = field(metadata={"static": True})
    random_start: bool = field(default=True, metadata={"static": True})

    def start(self, key: Key) -> Float[Array, "n ..."]:
        if not self.random_start:
            return self.images
        return balls.draw(key, self.images, self.epsilon, self.norm, self.value_range)

    def project(self, variable: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return balls.project(variable, self.images, self.epsilon, self.norm, self.value_range)

    def origin(self) -> Float[Array, "n ..."] | None:
        return self.images

    def steepest(self, gradient: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """The direction of unit length along which the objective rises most, to first order."""
        return balls.BALLS[self.norm].steepest(gradient)
