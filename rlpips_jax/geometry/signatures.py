"""Lines by which the metric of one run is told from that of another, for snapshots.

Of a function, that is a hash of its code and of all values that the code uses: defaults, what it closes over, global
ones. Functions of other packages count by their names alone.
"""

import dataclasses
import dis
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rlpips_jax.errors import GeometryError

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice, np.dtype)
"""What its representation tells."""


def signature(metric: Any) -> str:
    """A line that says which metric or function this is.

    Raises:
        GeometryError: it uses something that cannot be told from another.
    """
    if isinstance(known := getattr(metric, "signature", None), str):
        return known
    function = metric.func if isinstance(metric, functools.partial) else metric
    named = function if hasattr(function, "__qualname__") else type(function)
    text = "\n".join(_parts(metric, _package(named), {}))
    return f"{named.__module__}.{named.__qualname__} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def digest(array: np.ndarray) -> str:
    """The beginning of the SHA-256 of an array's shape, type and values."""
    text = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(text + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _parts(value: Any, home: str, seen: dict[int, Any]) -> Iterator[str]:
    """Lines that tell a value from others.

    Args:
        value: any.
        home: package of the function that is told; those of others count by name.
        seen: objects met before, by identity; kept, so that no other gets the identity of one.
    """
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(known := getattr(value, "signature", None), str):
        yield f"{kind} {known}"
    elif isinstance(value, PLAIN):
        yield f"{kind} {value!r}"
    elif isinstance(value, Tracer):
        raise _untold(value)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        yield f"{kind} {digest(np.asarray(value))}"
    elif isinstance(value, types.ModuleType | np.ufunc):
        yield f"{kind} {value.__name__}"
    elif _counts_by_name(value, home):
        yield f"{kind} {value.__module__}.{value.__qualname__}"
    elif id(value) in seen:
        yield f"{kind} again"
    else:
        seen[id(value)] = value
        yield kind
        for part in _of(value):
            yield from _parts(part, home, seen)
        yield "end"


def _of(value: Any) -> list[Any]:
    """What a value is made of, in a certain order."""
    if isinstance(value, types.FunctionType):
        return [value.__code__, value.__defaults__, value.__kwdefaults__, _surroundings(value)]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_consts, value.co_names, value.co_varnames, value.co_freevars]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if dataclasses.is_dataclass(value):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return [*_code_of(value), *fields]
    if (wrapped := getattr(value, "__wrapped__", None)) is not None:
        return [wrapped]
    if hasattr(value, "__dict__"):
        return [*_code_of(value), vars(value)]
    raise _untold(value)


def _surroundings(function: types.FunctionType) -> dict[str, Any]:
    """Values that a function uses and is not given: what it closes over, and global ones, by their names."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # It is not filled yet.
            found[name] = None
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for instruction in dis.get_instructions(code):
            if instruction.opname == "LOAD_GLOBAL" and instruction.argval in function.__globals__:
                found[instruction.argval] = function.__globals__[instruction.argval]
    return found


def _code_of(value: Any) -> list[Any]:
    """How an object is called, if it can be."""
    method = type(value).__call__ if callable(value) else None
    return [method] if isinstance(method, types.FunctionType) else []


def _counts_by_name(value: Any, home: str) -> bool:
    """Whether it is a class, or a function of another package that its name tells: none made inside another one."""
    name = getattr(value, "__qualname__", None)
    if not isinstance(name, str) or not isinstance(getattr(value, "__module__", None), str):
        return False
    return "<" not in name and (isinstance(value, type | types.BuiltinFunctionType) or _package(value) != home)


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", "")).partition(".")[0]


def _untold(value: Any) -> GeometryError:
    return GeometryError(
        f"the metric uses a {type(value).__qualname__}, which cannot be told from another, so that no snapshot can be "
        "kept for this run alone: give the function an attribute `signature`, a text that names what it computes, or "
        "leave out the snapshot"
    )
