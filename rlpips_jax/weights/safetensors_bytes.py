"""Safetensors files out of bytes that are at hand: what was hashed is what is parsed."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rlpips_jax.errors import WeightsCorrupt
from rlpips_jax.files.json_object import json_object

TYPES = {
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{
        f"{sign}{bits}": np.dtype(f"{name}{bits}")
        for sign, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""Types of elements by their names in the format."""


class Header(NamedTuple):
    """The beginning of a safetensors file: its metadata, and the shapes of its tensors by name."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def header_of(content: bytes) -> Header:
    """The header of a safetensors file, of which only the beginning is needed.

    Raises:
        WeightsCorrupt: it is not one.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    try:
        if not 8 < end <= len(content):
            raise ValueError("its header is cut off")
        entries = json_object(content[8:end])
        metadata: Any = entries.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not text")
        return Header(metadata, {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsCorrupt(f"it is not a readable safetensors file ({error})") from error


def tensors_of(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name, each with its own memory.

    Raises:
        WeightsCorrupt: it is not one, or damaged.
    """
    from safetensors import SafetensorError, deserialize

    try:
        return {
            name: np.frombuffer(entry["data"], TYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in deserialize(content)
        }
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise WeightsCorrupt(f"it is not a readable safetensors file ({error})") from error
