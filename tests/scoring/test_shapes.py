"""Few shapes for many sizes, and little padding."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpips_jax.scoring.shapes import MOST, Shape, Shapes, Size

sides = st.integers(48, 512)
sizes_of_bytes = st.builds(Size, sides, sides, st.just("uint8"))


def many(seed: int, count: int = 30, largest: int = 512) -> list[Size]:
    rng = np.random.default_rng(seed)
    sides = rng.integers(48, largest + 1, (count, 2)).tolist()
    return [Size(height, width, "uint8") for height, width in sides]


def padding(shapes: Shapes, sizes: list[Size]) -> float:
    """Computed pixels over true pixels."""
    return sum(shapes.shape(size).pixels for size in sizes) / sum(size.pixels for size in sizes)


@given(st.lists(sizes_of_bytes, min_size=1, max_size=30), st.integers(0, 30))
def test_every_size_has_one_shape_that_holds_it(sizes: list[Size], planned: int) -> None:
    shapes = Shapes()
    shapes.plan(Counter(sizes[:planned]), complete=False)
    chosen = [shapes.shape(size) for size in sizes]
    assert all(shape.holds(size) for shape, size in zip(chosen, sizes, strict=True))
    assert [shapes.shape(size) for size in sizes] == chosen
    assert len(set(chosen)) <= len(shapes) <= MOST


@pytest.mark.parametrize("planned", [True, False])
def test_one_size_is_never_padded(planned: bool) -> None:
    shapes, size = Shapes(), Size(100, 77, "uint8")
    if planned:
        shapes.plan(Counter({size: 5}), complete=False)
    assert shapes.shape(size) == Shape(100, 77, "uint8", exact=True)
    assert len(shapes) == 1


@pytest.mark.parametrize("seed", range(5))
def test_sizes_planned_together_are_padded_little(seed: int) -> None:
    shapes, sizes = Shapes(), many(seed)
    shapes.plan(Counter(sizes), complete=False)
    assert padding(shapes, sizes) < 1.4


@pytest.mark.parametrize("order", [None, lambda size: size.pixels, lambda size: -size.pixels, lambda size: size.height])
def test_sizes_that_come_one_by_one_are_few_shapes_too(order) -> None:
    found = []
    for seed in range(20):
        shapes = Shapes()
        sizes = many(seed) if order is None else sorted(many(seed), key=order)
        found.append(padding(shapes, sizes))
        assert len(shapes) <= MOST
    assert np.mean(found) < 2.5


def test_the_number_grows_as_the_logarithm_of_the_largest_size() -> None:
    shapes = Shapes()
    for size in sorted(many(0, 2000, largest=1 << 14)):
        assert shapes.shape(size).holds(size)
    assert len(shapes) <= MOST + 2 * 14


def test_frequent_sizes_are_padded_least() -> None:
    often, seldom = Size(200, 200, "uint8"), many(1, 40)
    shapes = Shapes()
    shapes.plan(Counter({often: 10_000} | dict.fromkeys(seldom, 1)), complete=False)
    assert shapes.shape(often) == Shape(200, 200, "uint8", exact=True)


def test_types_do_not_share_a_shape() -> None:
    shapes = Shapes()
    shapes.plan(Counter([Size(50, 50, "uint8"), Size(50, 50, "float32"), Size(51, 50, "uint8")]), complete=True)
    assert {shapes.shape(Size(50, 50, dtype)).dtype for dtype in ("uint8", "float32")} == {"uint8", "float32"}
    assert len(shapes) == 2


def test_few_pairs_are_not_worth_several_programs() -> None:
    sizes = Counter([Size(60, 50, "uint8"), Size(50, 60, "uint8")])
    small, endless = Shapes(), Shapes()
    small.plan(sizes, complete=True)
    endless.plan(sizes, complete=False)
    assert (len(small), len(endless)) == (1, 2)
