"""Whole numbers and keys: what passes, as what, and what the error of a wrong one says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.arguments import check_key, whole_number
from rlpips_jax.errors import AttackError, MetricError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_becomes_an_integer(value: Any) -> None:
    found = whole_number("steps", value, error=AttackError)
    assert type(found) is int
    assert found == 3


@pytest.mark.parametrize("value", [0, -1, True, np.True_, 2.0, np.float32(2), "2", None, np.array([2]), float("nan")])
def test_what_is_not_a_whole_number_within_the_bounds_is_refused(value: Any) -> None:
    with pytest.raises(AttackError, match="steps must be a whole number, 1 or more, got ") as caught:
        whole_number("steps", value, error=AttackError)
    assert repr(value) in str(caught.value)


def test_bounds_are_within() -> None:
    assert [whole_number("size", size, minimum=0, maximum=2, error=MetricError) for size in range(3)] == [0, 1, 2]
    for size in (-1, 3):
        with pytest.raises(MetricError, match=f"size must be a whole number, from 0 to 2, got {size}"):
            whole_number("size", size, minimum=0, maximum=2, error=MetricError)


def test_keys_of_either_style_are_one_key() -> None:
    new, old = jax.random.key(7), jax.random.PRNGKey(7)
    for key in (new, old, np.asarray(old)):
        found = check_key("noise", key, error=AttackError)
        assert found.dtype == new.dtype
        assert (jax.random.key_data(found) == old).all()

    def checked(key: Any) -> jax.Array:
        return jax.random.key_data(check_key("noise", key, error=AttackError))

    assert (jax.jit(checked)(new) == old).all()
    assert (jax.vmap(checked)(jnp.stack([old, old])) == jnp.stack([old, old])).all()


@pytest.mark.parametrize(
    "key",
    [
        None,
        0,
        "key",
        np.zeros(2, np.int32),
        np.zeros(3, np.uint32),
        np.zeros((2, 2), np.uint32),
        jnp.zeros(2),
        jax.random.split(jax.random.key(0)),
    ],
)
def test_what_is_not_one_key_is_refused(key: Any) -> None:
    with pytest.raises(AttackError, match=r"^noise draws at random and needs one key .*key=jax.random.key\(0\)"):
        check_key("noise", key, error=AttackError)
