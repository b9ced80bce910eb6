"""Metrics as pytrees, whose name is not part of what is compiled, and that can be stored by Flax and `jax.export`."""

import dataclasses
import importlib
import json
from dataclasses import dataclass
from typing import Any

import jax
from flax import serialization
from jax import export

PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True, eq=False)
class Label:
    """A text beside a pytree that is equal to every other, so that it compiles nothing again."""

    text: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Label)

    def __hash__(self) -> int:
        return 0


def register_metric(cls: type, leaves: tuple[str, ...] = ("parameters",)) -> None:
    """Makes a frozen dataclass a pytree, and storable by `flax.serialization` and `jax.export`.

    Args:
        cls: the class; a field `name` is a label that programs do not depend on.
        leaves: its fields that hold arrays. All others are static.
    """
    static = tuple(field.name for field in dataclasses.fields(cls) if field.name not in leaves)

    def beside(metric: Any) -> tuple[Any, ...]:
        return tuple(Label(metric.name) if name == "name" else getattr(metric, name) for name in static)

    def with_keys(metric: Any) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        return tuple((jax.tree_util.GetAttrKey(name), getattr(metric, name)) for name in leaves), beside(metric)

    def flatten(metric: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(metric, name) for name in leaves), beside(metric)

    def unflatten(aside: Any, children: Any) -> Any:
        values = (value.text if isinstance(value, Label) else value for value in aside)
        return cls(**dict(zip(leaves, children, strict=True)), **dict(zip(static, values, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, with_keys, unflatten, flatten)
    export.register_pytree_node_serialization(
        cls, serialized_name=f"{PACKAGE}.{cls.__name__}", serialize_auxdata=_to_bytes, deserialize_auxdata=_from_bytes
    )

    def to_state(metric: Any) -> dict[str, Any]:
        return {name: serialization.to_state_dict(getattr(metric, name)) for name in leaves}

    def from_state(metric: Any, state: dict[str, Any]) -> Any:
        restored = {name: serialization.from_state_dict(getattr(metric, name), state[name]) for name in leaves}
        return dataclasses.replace(metric, **restored)

    serialization.register_serialization_state(cls, to_state, from_state)


def _to_bytes(aside: tuple[Any, ...]) -> bytes:
    return json.dumps(_encoded(aside)).encode()


def _from_bytes(data: bytes) -> tuple[Any, ...]:
    return _decoded(json.loads(data))


def _encoded(value: Any) -> Any:
    """Numbers, texts, tuples and this library's dataclasses, as JSON."""
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    if dataclasses.is_dataclass(value) and type(value).__module__.partition(".")[0] == PACKAGE:
        fields = {field.name: _encoded(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a metric with {value!r} cannot be stored in an exported program")


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    module, _, name = value["class"].partition(":")
    if module.partition(".")[0] != PACKAGE:
        raise ValueError(f"an exported program names the class {value['class']!r}, which is not of this library")
    cls: Any = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"an exported program names {value['class']!r}, which holds no static values")
    return cls(**{name: _decoded(item) for name, item in value["fields"].items()})
