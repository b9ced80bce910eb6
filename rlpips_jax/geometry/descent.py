"""The descent that averages and paths share: Adam on images, from coarse to fine, resumable.

Images are in [0, 1] here. A level works on images reduced to half the height and width of the next one's. What it finds
is enlarged, and what the start has in finer detail is added: that is where the next level begins.
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
from jaxtyping import Array, Bool, Float

from rlpips_jax.errors import GeometryError
from rlpips_jax.geometry import snapshots
from rlpips_jax.geometry.arguments import check_count, checked_key
from rlpips_jax.geometry.signatures import signature

BLOCK = 10
"""Steps that are one call of a compiled program."""

STEPS = 200
"""Of each level, where nothing else is said."""


class Schedule(NamedTuple):
    """When in the course of a rate each level is.

    Attributes:
        begin: the t of its first step.
        pace: by how much t grows with each step.
    """

    begin: float
    pace: float


PUBLISHED = Schedule(0.0, 1.0)
"""As E-LPIPS's authors have it: with `published_rate`, rates of 0.03 to 0.017 in 200 steps, which lead anywhere."""

LATE = Schedule(2000.0, 50.0)
"""For starts that are near already: rates of 0.0044 to 0.0013 in 200 steps, which sum to 0.43.

The full rate leads away from there, and fills what a metric hardly sees with noise. Sums of squared distances after
200 steps a level at 64x64 by lpips-tiny, as a share of those at the start: of six shifted copies from their mean 0.081,
and 0.097 by the published schedule; of three photographs 0.60 and 0.61; of a path from its crossfade 0.31 and 0.52.
From noise it is the other way about: 0.87 of the three photographs' sum at their mean, and 0.68.
"""

SNAPSHOT_SECONDS = 10.0
"""Between two snapshots."""

Variable = Float[Array, "n h w 3"]
"""The images that move."""

Size = tuple[int, int]
Rate = Callable[[Any], Any]


class Progress(NamedTuple):
    """How far a descent is.

    Attributes:
        step: steps done, over all levels.
        steps: steps in all.
        size: height and width that images are reduced to at the moment.
        objective: of the last step.
    """

    step: int
    steps: int
    size: Size
    objective: float


@dataclass(frozen=True)
class Descent:
    """How to descend.

    Attributes:
        sizes: heights and widths of the levels; the last one is the images' own.
        steps: of each level.
        rate: learning rate by the time t.
        begin: t at the first step of each level.
        pace: by how much t grows with each step.
        key: of everything that is drawn.
        run: everything that the result follows from, for snapshots.
        snapshot: file to keep the state in; None for none.
        progress: whether to draw a progress bar.
        watch: is called after every `BLOCK` steps.
    """

    sizes: Sequence[Size]
    steps: Sequence[int]
    rate: Rate
    begin: float
    pace: float
    key: Any
    run: snapshots.Run
    snapshot: Path | None
    progress: bool
    watch: Callable[[Progress], Any] | None


class State(NamedTuple):
    """Where a descent stands."""

    variable: Variable
    adam: Any


def published_rate(t: Any) -> Any:
    """E-LPIPS's learning rate: 0.03 / (1 + 0.02 t'^0.75) with t' = sqrt(100^2 + t^2) - 100 (Kettunen et al. 2019).

    Args:
        t: steps done before, of 100,000.

    Returns:
        The rate, in units of the whole range of values.
    """
    gradual = jnp.sqrt(100.0**2 + jnp.square(jnp.asarray(t, jnp.float32))) - 100
    return 0.03 / (1 + 0.02 * gradual**0.75)


def planned(
    shape: tuple[int, ...],
    *,
    metric: Any,
    steps: int | Sequence[int],
    coarsest: Any,
    rate: Rate,
    schedule: Schedule,
    begin: Any,
    pace: Any,
    key: Any,
    drawing: str,
    snapshot: str | PathLike[str] | None,
    progress: bool,
    watch: Callable[[Progress], Any] | None,
    run: dict[str, Any],
) -> Descent:
    """How to descend, from what a user asked for.

    Args:
        shape: of the images, `(n, h, w, 3)`.
        metric: that distances come from.
        schedule: where `begin` or `pace` is None.
        drawing: who needs a key; "" if nobody does.
        run: what else the result follows from.

    The others are as in `average`.

    Raises:
        GeometryError: one makes no sense.
    """
    smallest = max(check_count("coarsest", coarsest), getattr(metric, "minimum_size", 1))
    sizes = sizes_of(shape[1], shape[2], smallest)
    if isinstance(steps, int | np.integer):
        counts = [check_count("steps", steps)] * len(sizes)
    else:
        counts = [check_count("steps", count) for count in steps]
        if len(counts) != len(sizes):
            levels = ", ".join(f"{height}x{width}" for height, width in sizes)
            raise GeometryError(f"steps must be one number, or one for each of the levels {levels}, got {len(counts)}")
    if not callable(rate):
        raise GeometryError(f"rate must be a function of time, such as published_rate, got {rate!r}")
    begin = schedule.begin if begin is None else begin
    pace = schedule.pace if pace is None else pace
    if not (isinstance(pace, int | float) and 0 < pace < float("inf")):
        raise GeometryError(f"pace must be a number above 0, got {pace!r}")
    if not (isinstance(begin, int | float) and 0 <= begin < float("inf")):
        raise GeometryError(f"begin must be a number, 0 or more, got {begin!r}")
    key = checked_key(key, drawing)
    # Functions cannot be told apart, but what they say can.
    rates = [f"{float(rate(t)):.6g}" for t in (0, 10, 100, 1000, 10_000)]
    everything = {
        **run,
        # Only snapshots need to know it, and of some functions it cannot be said.
        "metric": None if snapshot is None else signature(metric),
        "sizes": [list(size) for size in sizes],
        "steps": counts,
        "begin": float(begin),
        "pace": float(pace),
        "rates": rates,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }
    where = None if snapshot is None else Path(snapshot)
    return Descent(sizes, counts, rate, float(begin), float(pace), key, everything, where, progress, watch)


def sizes_of(height: int, width: int, coarsest: int) -> list[Size]:
    """Heights and widths of the levels, from coarse to fine; neither side is below `coarsest`, if images are not."""
    sizes = [(height, width)]
    while min(half := (-(-sizes[0][0] // 2), -(-sizes[0][1] // 2))) >= coarsest:
        sizes.insert(0, half)
    return sizes


def reduced(images: Float[Array, "n h w 3"], size: Size) -> Float[Array, "n i j 3"]:
    """Images made smaller, each pixel from all that it covers; as they are, where they have this size."""
    return images if images.shape[1:3] == size else _resized(images, size, "linear")


def enlarged(images: Float[Array, "n h w 3"], size: Size) -> Float[Array, "n i j 3"]:
    """Images made larger, cubically."""
    return images if images.shape[1:3] == size else _resized(images, size, "cubic")


@functools.partial(jax.jit, static_argnames=("size", "method"))
def _resized(images: Float[Array, "n h w 3"], size: Size, method: str) -> Float[Array, "n i j 3"]:
    return jax.image.resize(images, (len(images), *size, 3), method)


def descend(
    start: Variable, objective_at: Callable[[Size], Any], descent: Descent
) -> tuple[Variable, Float[np.ndarray, " steps"]]:
    """Minimises objectives of images, each level's with what the one before found.

    Args:
        start: images in [0, 1], of the last level's size.
        objective_at: the objective of a level: a pytree, `variable, key -> ()`.
        descent: how.

    Returns:
        What was found, and the objective at every step, before it.

    Raises:
        GeometryError: an objective or an image is no longer finite.
        SnapshotError: the snapshot cannot be read or written, or is of another run.
    """
    values = np.full(sum(descent.steps), np.nan, np.float32)
    done, state = 0, None
    if descent.snapshot is not None and (arrays := snapshots.read(descent.snapshot, descent.run)) is not None:
        done, state = _restored(arrays, values)
    with _bar(descent, done) as bar:
        saved = time.monotonic()
        for size, first, end in _levels(descent):
            if done >= end:
                continue
            if done == first:
                state = _begun(start, None if state is None else state.variable, size)
            assert state is not None
            objective = objective_at(size)
            while done < end:
                count = min(BLOCK, end - done)
                t = descent.begin + descent.pace * (done - first)
                state, found, finite = _block(objective, state, descent.key, done, count, t, descent.pace, descent.rate)
                values[done : done + count] = np.asarray(found)[:count]
                _check_finite(values[: done + count], bool(finite), done)
                done += count
                try:
                    bar.update(count)
                    bar.set_postfix_str(f"{size[0]}x{size[1]}, objective {values[done - 1]:.4g}")
                    if descent.watch is not None:
                        descent.watch(Progress(done, len(values), size, float(values[done - 1])))
                except BaseException:  # An interrupt too.
                    _save(descent, done, state, values)
                    raise
                if done == len(values) or time.monotonic() - saved > SNAPSHOT_SECONDS:
                    _save(descent, done, state, values)
                    saved = time.monotonic()
    assert state is not None
    return state.variable, values


@functools.partial(jax.jit, static_argnames="rate")
def _block(
    objective: Any, state: State, key: Any, done: Any, count: Any, t: Any, pace: Any, rate: Rate
) -> tuple[State, Float[Array, " block"], Bool[Array, ""]]:
    """Up to `BLOCK` steps: the state, the objectives before each, and whether the images are finite."""
    optimizer = optax.scale_by_adam()

    def step(index: Any, carry: tuple[State, Array]) -> tuple[State, Array]:
        (variable, adam), values = carry
        value, gradient = jax.value_and_grad(objective)(variable, jax.random.fold_in(key, done + index))
        # Each pixel's share of a mean falls with their number, and would fall below Adam's epsilon.
        update, adam = optimizer.update(gradient * variable[0].size, adam)
        variable = variable - rate(t + pace * index) * cast(Array, update)
        projected = optax.projections.projection_box(variable, 0.0, 1.0)
        return State(projected, adam), values.at[index].set(value.astype(values.dtype))

    # The number of steps is traced, so that a shorter last block needs no program of its own.
    state, values = jax.lax.fori_loop(0, count, step, (state, jnp.zeros(BLOCK, jnp.float32)))
    return state, values, jnp.isfinite(state.variable).all()


def _levels(descent: Descent) -> Iterator[tuple[Size, int, int]]:
    """Size of each level, its first step, and the one after its last."""
    ends = list(itertools.accumulate(descent.steps))
    yield from zip(descent.sizes, [0, *ends[:-1]], ends, strict=True)


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
            f"the objective is {values[bad[0]]} at step {bad[0]}: the metric is not finite there, so nothing can be "
            "descended; a smaller rate may keep images where it is"
        )
    if not finite:
        raise GeometryError(
            f"an image is not finite after step {done + 1} or one of the next {BLOCK - 1}: the metric's gradient or "
            "the rate is not"
        )


def _save(descent: Descent, done: int, state: State, values: Float[np.ndarray, " steps"]) -> None:
    if descent.snapshot is None:
        return
    leaves = {f"adam{number}": leaf for number, leaf in enumerate(jax.tree.leaves(state.adam))}
    arrays = {"done": done, "values": values[:done], "variable": state.variable, **leaves}
    snapshots.write(descent.snapshot, descent.run, arrays)


def _restored(arrays: dict[str, np.ndarray], values: Float[np.ndarray, " steps"]) -> tuple[int, State]:
    """Steps done and the state; fills in the objectives so far."""
    done, variable = int(arrays["done"]), jnp.asarray(arrays["variable"])
    values[:done] = arrays["values"]
    structure = jax.tree.structure(optax.scale_by_adam().init(variable))
    leaves = [jnp.asarray(arrays[f"adam{number}"]) for number in range(structure.num_leaves)]
    return done, State(variable, jax.tree.unflatten(structure, leaves))


def _bar(descent: Descent, done: int) -> Any:
    from tqdm import tqdm

    # `None` draws it on terminals alone.
    return tqdm(total=sum(descent.steps), initial=done, unit="step", disable=None if descent.progress else True)
