"""The descent that averages and paths share: Adam on images, from coarse to fine, resumable.

Images are in [0, 1] here. Each level works on images of half the height and width of the next level. Its result is
enlarged, and the finer detail of the start is added: there the next level begins.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from rlpips_jax.arguments import whole_number
from rlpips_jax.errors import GeometryError, SnapshotError
from rlpips_jax.geometry import snapshots
from rlpips_jax.geometry.pair_distances import AnyDistance

BLOCK = 10
"""Steps in one call of the compiled program."""

STEPS = 200
"""Default number of steps of each level."""


class Schedule(NamedTuple):
    """The times t of a level's steps, for a learning rate that depends on t.

    Attributes:
        begin: t at the first step.
        pace: increase of t per step.
    """

    begin: float
    pace: float


PUBLISHED = Schedule(0.0, 1.0)
"""That of E-LPIPS's authors: with `published_rate`, rates of 0.03 to 0.017 in 200 steps, which lead anywhere."""

LATE = Schedule(2000.0, 50.0)
"""For starts close to the result: rates of 0.0044 to 0.0013 in 200 steps, which sum to 0.43.

The full rate leads away from such a start, and adds noise that a metric hardly sees. Sums of squared distances after
200 steps per level at 64x64 by lpips-tiny, as a share of the sum at the start, and the same with the published
schedule: six shifted copies from their mean 0.081 and 0.097; three photographs 0.60 and 0.61; a path from its crossfade
0.31 and 0.52. From noise the published schedule is better: 0.68 of the three photographs' sum at their mean, and 0.87.
"""

SNAPSHOT_SECONDS = 10.0
"""Seconds between two snapshots."""

Variable = Float[Array, "n h w 3"]
"""The images that the descent changes."""

Size = tuple[int, int]
Rate = Callable[[Array], ArrayLike]


class Progress(NamedTuple):
    """The progress of a descent.

    Attributes:
        step: steps done, over all levels.
        steps: all steps.
        size: height and width of the current level.
        objective: before the last step.
    """

    step: int
    steps: int
    size: Size
    objective: float


def published_rate(t: ArrayLike) -> Array:
    """E-LPIPS's learning rate: 0.03 / (1 + 0.02 t'^0.75) with t' = sqrt(100^2 + t^2) - 100 (Kettunen et al. 2019).

    Args:
        t: steps done before, of 100,000.

    Returns:
        The rate, as a share of the range of values.
    """
    gradual = jnp.sqrt(100.0**2 + jnp.square(jnp.asarray(t, jnp.float32))) - 100
    return 0.03 / (1 + 0.02 * gradual**0.75)


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How `average` and `geodesic` descend.

    Attributes:
        steps: of each level, from coarse to fine; one number for all levels.
        coarsest: smallest height or width that images are reduced to, in pixels.
        exponent: of the distances in the objective, 1 or more. LPIPS is itself a mean of squares: 1 minimises the sum
            of squares of its root.
        samples: draws of a randomised metric in each step. Squares are estimated by the product of the means of two
            halves of them, rounded up, as the square of one mean would add its variance to the objective. Exponents
            other than 1 and 2 have such a bias, which falls with the number of samples. A function is called once per
            step, for squares twice.
        rate: learning rate by the time t, as a share of the range of values.
        begin: t at the first step of each level. None for 0, as published, from noise and from a given image, which
            may be far away; and for 2,000 from the mean, which is near: the full rate would lead away from it.
        pace: increase of t per step. None for 1, as published, or 50 from the mean.
        snapshot: file for the state, written every ten seconds and at the end. If it exists, the descent continues from
            it, to the same result bit for bit; a file of another run is refused.
        name: of the distance, by which a snapshot knows it; None for the `signature` of a metric. A function needs a
            name, and another one when it changes.
        progress: draw a progress bar (on a terminal).
        watch: called after every `BLOCK` steps with a `Progress`; an exception from it ends the descent, after a
            snapshot.

    Raises:
        GeometryError: a value makes no sense.
    """

    steps: int | Sequence[int] = STEPS
    coarsest: int = 64
    exponent: int | float = 2
    samples: int = 2
    rate: Rate = published_rate
    begin: float | int | None = None
    pace: float | int | None = None
    snapshot: str | PathLike[str] | None = None
    name: str | None = None
    progress: bool = False
    watch: Callable[[Progress], object] | None = None

    def __post_init__(self) -> None:
        for count in (self.steps,) if isinstance(self.steps, int | np.integer) else self.steps:
            whole_number("steps", count, error=GeometryError)
        for name in ("coarsest", "samples"):
            whole_number(name, getattr(self, name), error=GeometryError)
        if not callable(self.rate):
            raise GeometryError(f"rate must be a function of time, such as published_rate, got {self.rate!r}")
        for name, least, words in (("exponent", 1, "1 or more"), ("begin", 0, "0 or more"), ("pace", 0, "above 0")):
            number = getattr(self, name)
            if number is None and name != "exponent":
                continue
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or not least <= number < float("inf")
                or (number == 0 and name == "pace")
            ):
                raise GeometryError(f"{name} must be a number, {words}, got {number!r}")
        if float(self.exponent).is_integer():
            # The derivative of an integer power has no logarithm.
            object.__setattr__(self, "exponent", int(self.exponent))


@dataclass(frozen=True)
class Plan:
    """A descent whose choices are made.

    Attributes:
        descent: as the user asked for it.
        sizes: heights and widths of the levels; the last one is that of the images.
        steps: of each level.
        schedule: times of the steps of each level.
        key: for everything random.
        run: everything else that the result depends on, for snapshots.
    """

    descent: Descent
    sizes: Sequence[Size]
    steps: Sequence[int]
    schedule: Schedule
    key: Key[Array, ""]
    run: snapshots.Run

    @functools.cached_property
    def snapshot(self) -> Path | None:
        """The file for the state."""
        return None if self.descent.snapshot is None else Path(self.descent.snapshot)

    @functools.cached_property
    def rates(self) -> Float[np.ndarray, " steps"]:
        """The learning rate at every step."""
        begin, pace = self.schedule
        times = np.concatenate([begin + pace * np.arange(count, dtype=np.float32) for count in self.steps])
        return np.asarray(jax.vmap(self.descent.rate)(jnp.asarray(times)), np.float32)


class State(NamedTuple):
    """The state of a descent."""

    variable: Variable
    adam: Any


def planned(
    descent: Descent,
    shape: tuple[int, ...],
    *,
    metric: AnyDistance,
    schedule: Schedule,
    key: Key[Array, ""],
    run: dict[str, Any],
) -> Plan:
    """The plan of a descent.

    Args:
        descent: as the user asked for it.
        shape: of the images, `(n, h, w, 3)`.
        metric: gives the distances.
        schedule: where `descent` has no `begin` or `pace`.
        key: for everything random.
        run: what the result depends on beside the other arguments.

    Raises:
        GeometryError: the number of steps does not fit the levels, or a snapshot cannot know the distance.
    """
    sizes = sizes_of(shape[1], shape[2], max(descent.coarsest, getattr(metric, "minimum_size", 1)))
    counts = [descent.steps] * len(sizes) if isinstance(descent.steps, int | np.integer) else list(descent.steps)
    if len(counts) != len(sizes):
        levels = ", ".join(f"{height}x{width}" for height, width in sizes)
        raise GeometryError(f"steps must be one number, or one for each of the levels {levels}, got {len(counts)}")
    name = getattr(metric, "signature", None) if descent.name is None else descent.name
    if descent.snapshot is not None and not isinstance(name, str):
        raise GeometryError(
            "a snapshot knows a distance by the signature of a metric, and a function has none: name the function, as "
            "in Descent(snapshot=..., name='mean square, version 1'), and change the name when it changes"
        )
    schedule = Schedule(
        float(schedule.begin if descent.begin is None else descent.begin),
        float(schedule.pace if descent.pace is None else descent.pace),
    )
    everything = run | {
        "distance": name,
        "exponent": descent.exponent,
        "samples": descent.samples,
        "sizes": [list(size) for size in sizes],
        "steps": [int(count) for count in counts],
        **schedule._asdict(),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }
    return Plan(descent, sizes, counts, schedule, key, everything)


def sizes_of(height: int, width: int, coarsest: int) -> list[Size]:
    """Heights and widths of the levels, from coarse to fine; only images below `coarsest` have a side below it."""
    sizes = [(height, width)]
    while min(half := (-(-sizes[0][0] // 2), -(-sizes[0][1] // 2))) >= coarsest:
        sizes.insert(0, half)
    return sizes


def reduced(images: Float[Array, "n h w 3"], size: Size) -> Float[Array, "n i j 3"]:
    """Images made smaller, antialiased; unchanged if they have this size."""
    return images if images.shape[1:3] == size else _resized(images, size, "linear")


def enlarged(images: Float[Array, "n h w 3"], size: Size) -> Float[Array, "n i j 3"]:
    """Images made larger, bicubically; unchanged if they have this size."""
    return images if images.shape[1:3] == size else _resized(images, size, "cubic")


@functools.partial(jax.jit, static_argnames=("size", "method"))
def _resized(images: Float[Array, "n h w 3"], size: Size, method: str) -> Float[Array, "n i j 3"]:
    return jax.image.resize(images, (len(images), *size, 3), method)


def descend(
    start: Variable, objective_at: Callable[[Size], Any], plan: Plan
) -> tuple[Variable, Float[np.ndarray, " steps"]]:
    """Minimises the objectives of the levels, each from the result of the one before.

    Args:
        start: images in [0, 1], of the last level's size.
        objective_at: the objective of a level: a pytree, `variable, key -> ()`.
        plan: how to descend.

    Returns:
        The images found, and the objective before every step.

    Raises:
        GeometryError: an objective or an image is not finite.
        SnapshotError: the snapshot cannot be read or written, or is of another run.
    """
    values = np.full(sum(plan.steps), np.nan, np.float32)
    done, state = _restored(plan, values)
    begin, pace = plan.schedule
    with _bar(plan, done) as bar:
        saved = time.monotonic()
        for size, first, end in _levels(plan):
            if done >= end:
                continue
            if done == first:
                state = _begun(start, None if state is None else state.variable, size)
            assert state is not None
            objective = objective_at(size)
            while done < end:
                count = min(BLOCK, end - done)
                t = begin + pace * (done - first)
                state, found, finite = _block(objective, state, plan.key, done, count, t, pace, rate=plan.descent.rate)
                values[done : done + count] = np.asarray(found)[:count]
                _check_finite(values[: done + count], bool(finite), done)
                done += count
                try:
                    bar.update(count)
                    bar.set_postfix_str(f"{size[0]}x{size[1]}, objective {values[done - 1]:.4g}")
                    if plan.descent.watch is not None:
                        plan.descent.watch(Progress(done, len(values), size, float(values[done - 1])))
                except BaseException:  # An interrupt too.
                    _save(plan, done, state, values)
                    raise
                if done == len(values) or time.monotonic() - saved > SNAPSHOT_SECONDS:
                    _save(plan, done, state, values)
                    saved = time.monotonic()
    assert state is not None
    return state.variable, values


@functools.partial(jax.jit, static_argnames="rate")
def _block(
    objective: Any, state: State, key: Any, done: Any, count: Any, t: Any, pace: Any, *, rate: Rate
) -> tuple[State, Float[Array, " block"], Bool[Array, ""]]:
    """Up to `BLOCK` steps: the state, the objectives before each, and whether the images are finite."""
    optimizer = optax.scale_by_adam()

    def step(index: Any, carry: tuple[State, Array]) -> tuple[State, Array]:
        (variable, adam), values = carry
        value, gradient = jax.value_and_grad(objective)(variable, jax.random.fold_in(key, done + index))
        # The gradient of a mean by one pixel falls with the number of pixels, and would fall below Adam's epsilon.
        update, adam = optimizer.update(gradient * variable[0].size, adam)
        variable = variable - rate(t + pace * index) * cast(Array, update)
        projected = optax.projections.projection_box(variable, 0.0, 1.0)
        return State(projected, adam), values.at[index].set(value.astype(values.dtype))

    # The number of steps is traced, so that a shorter last block uses the same program.
    state, values = jax.lax.fori_loop(0, count, step, (state, jnp.zeros(BLOCK, jnp.float32)))
    return state, values, jnp.isfinite(state.variable).all()


def _levels(plan: Plan) -> Iterator[tuple[Size, int, int]]:
    """Size of each level, its first step, and the step after its last."""
    ends = list(itertools.accumulate(plan.steps))
    yield from zip(plan.sizes, [0, *ends[:-1]], ends, strict=True)


def _begun(start: Variable, coarser: Float[Array, "n i j 3"] | None, size: Size) -> State:
    variable = reduced(start, size)
    if coarser is not None:
        _, *coarser_size, _ = coarser.shape
        of_start = enlarged(reduced(start, (coarser_size[0], coarser_size[1])), size)
        variable = jnp.clip(enlarged(coarser, size) + (variable - of_start), 0, 1)
    return State(variable, optax.scale_by_adam().init(variable))


def _check_finite(values: Float[np.ndarray, " steps"], finite: bool, done: int) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise GeometryError(
            f"the objective is {values[bad[0]]} at step {bad[0]}: the metric is not finite there; a smaller "
            "rate may keep images where it is"
        )
    if not finite:
        raise GeometryError(
            f"an image is not finite after step {done + 1} or one of the next {BLOCK - 1}: the metric's gradient or "
            "the rate is not"
        )


def _save(plan: Plan, done: int, state: State, values: Float[np.ndarray, " steps"]) -> None:
    if plan.snapshot is None:
        return
    leaves = {f"adam{number}": leaf for number, leaf in enumerate(jax.tree.leaves(state.adam))}
    arrays = {"done": done, "values": values[:done], "rates": plan.rates, "variable": state.variable, **leaves}
    snapshots.write(plan.snapshot, plan.run, arrays)


def _restored(plan: Plan, values: Float[np.ndarray, " steps"]) -> tuple[int, State | None]:
    """Steps done and the state of the snapshot, if there is one; fills in the objectives so far."""
    if plan.snapshot is None or (arrays := snapshots.read(plan.snapshot, plan.run)) is None:
        return 0, None
    # Machines may differ in the last bit of a rate.
    differing = np.flatnonzero(~np.isclose(arrays["rates"], plan.rates, rtol=1e-6, atol=0))
    if len(differing):
        step = differing[0]
        raise SnapshotError(
            f"{plan.snapshot} is a snapshot of another run: the learning rate at step {step} is "
            f"{arrays['rates'][step]:.6g} there and {plan.rates[step]:.6g} here: {snapshots.ADVICE}"
        )
    done, variable = int(arrays["done"]), jnp.asarray(arrays["variable"])
    values[:done] = arrays["values"]
    structure = jax.tree.structure(optax.scale_by_adam().init(variable))
    leaves = [jnp.asarray(arrays[f"adam{number}"]) for number in range(structure.num_leaves)]
    return done, State(variable, jax.tree.unflatten(structure, leaves))


def _bar(plan: Plan, done: int) -> Any:
    from tqdm import tqdm

    # `None` draws it on terminals alone.
    return tqdm(total=sum(plan.steps), initial=done, unit="step", disable=None if plan.descent.progress else True)
