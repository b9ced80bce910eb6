"""Functions are told from each other by what they compute, and are the same when they are made again."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import rlpips_jax as rl
from rlpips_jax import geometry
from rlpips_jax.geometry.signatures import signature

WEIGHT = 1.0


def scaled(weight: Any) -> Callable[..., Any]:
    def distance(x: Any, y: Any, key: Any) -> Any:
        return weight * jnp.mean(jnp.square(x - y), axis=(1, 2, 3))

    return distance


def powered(power: float) -> Callable[..., Any]:
    inner = scaled(1.0)
    return lambda x, y, key: inner(x, y, key) ** power


def plain(x: Any, y: Any, key: Any, factor: float = 1.0) -> Any:
    return WEIGHT * factor * helped(x - y).mean(axis=(1, 2, 3))


def helped(difference: Any) -> Any:
    return jnp.square(difference) + (helped(0 * difference) if difference.ndim < 0 else 0)


class Weighted:
    """Something that can be called."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, x: Any, y: Any, key: Any) -> Any:
        return self.between(x, y)

    def between(self, x: Any, y: Any, key: Any = None) -> Any:
        return self.weight * jnp.mean(jnp.square(x - y), axis=(1, 2, 3))


DIFFERENT: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "closures": (lambda: scaled(0.5), lambda: scaled(2.0)),
    "closures over arrays": (lambda: scaled(jnp.ones(3)), lambda: scaled(jnp.zeros(3))),
    "closures over keys": (lambda: scaled(jax.random.key(0)), lambda: scaled(jax.random.key(1))),
    "closures over functions": (lambda: scaled(math.sqrt), lambda: scaled(math.cos)),
    "closures over closures": (lambda: scaled(scaled(1)), lambda: scaled(scaled(2))),
    "closures over universal functions": (lambda: scaled(np.sin), lambda: scaled(np.cos)),
    "code": (lambda: lambda x, y, key: x - y, lambda: lambda x, y, key: x + y),
    "constants": (lambda: lambda x, y, key: 2 * x, lambda: lambda x, y, key: 3 * x),
    "inner code": (lambda: lambda x, y, key: (lambda: x)(), lambda: lambda x, y, key: (lambda: y)()),
    "attributes": (lambda: lambda x, y, key: jnp.sin(x), lambda: lambda x, y, key: jnp.cos(x)),
    "bound arguments": (lambda: Partial(plain, factor=1.0), lambda: Partial(plain, factor=2.0)),
    "of functools": (lambda: functools.partial(plain, factor=1), lambda: functools.partial(plain, factor=2)),
    "bound arrays": (lambda: Partial(plain, jnp.ones(2)), lambda: Partial(plain, jnp.zeros(2))),
    "compiled": (lambda: jax.jit(scaled(1.0)), lambda: jax.jit(scaled(2.0))),
    "lambdas": (lambda: powered(1), lambda: powered(2)),
    "objects": (lambda: Weighted(1), lambda: Weighted(2)),
    "methods": (lambda: Weighted(1).between, lambda: Weighted(2).between),
    "containers": (lambda: scaled({"a": [1, {2}]}), lambda: scaled({"a": [1, {3}]})),
    "metrics": (
        lambda: Partial(scaled(1), rl.load("lpips-tiny")),
        lambda: Partial(scaled(1), rl.load("lpips-tiny", unweighted=True)),
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_computes_another_thing_has_another_signature(case: str) -> None:
    one, other = DIFFERENT[case]
    assert signature(one()) == signature(one())
    assert signature(one()) != signature(other())


def test_global_values_and_functions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signature(plain)
    assert before.startswith(f"{__name__}.plain ")
    with monkeypatch.context() as patched:
        patched.setitem(globals(), "WEIGHT", 2.0)
        assert signature(plain) != before
    with monkeypatch.context() as patched:
        patched.setitem(globals(), "helped", lambda difference: difference)
        assert signature(plain) != before
    assert signature(plain) == before


def test_another_closure_is_refused_a_snapshot_and_the_same_one_goes_on(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    options: dict[str, Any] = {"steps": 1, "key": jax.random.key(0), "snapshot": tmp_path / "state.npz"}
    first = geometry.average(images, scaled(0.5), **options)
    again = geometry.average(images, scaled(0.5), **options)
    np.testing.assert_array_equal(first.image, again.image)
    with pytest.raises(rl.SnapshotError, match=r"another run: metric is .*scaled.<locals>.distance \w+. there"):
        geometry.average(images, scaled(2.0), **options)


def test_what_cannot_be_told_apart_needs_a_signature_of_its_own_for_a_snapshot(tmp_path: Path) -> None:
    def distance(x: Any, y: Any, key: Any) -> Any:
        assert source
        return jnp.mean(jnp.square(x - y), axis=(1, 2, 3))

    source = iter([0.5])
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    options: dict[str, Any] = {"steps": 1, "key": jax.random.key(0)}
    with pytest.raises(rl.GeometryError, match=r"uses a list_iterator, which cannot be told .* attribute `signature`"):
        geometry.average(images, distance, snapshot=tmp_path / "state.npz", **options)
    geometry.average(images, distance, **options)
    distance.signature = "the mean square"  # type: ignore[attr-defined]
    geometry.average(images, distance, snapshot=tmp_path / "state.npz", **options)
    assert signature(distance) == "the mean square"
