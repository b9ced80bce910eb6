"""JSON that anyone may have changed: one kind of error."""

import pytest

from rlpips_jax.files.json_object import json_object, json_value

NESTED = "[" * 200_000


@pytest.mark.parametrize("text", [NESTED, '{"a":' * 200_000, "[]", "null", "1", '"a"', "", "{", b"\xff"])
def test_what_is_not_an_object_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        json_object(text)


def test_values() -> None:
    assert json_object('{"a": [1]}') == {"a": [1]}
    assert json_value("[1, null]") == [1, None]
    with pytest.raises(ValueError, match="nested too deeply"):
        json_value(NESTED)
