"""Arrays in `.npz` files that anyone may have made: only what is asked for is read, and its declared size is true."""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlpips_jax.files.regular import open_regular

SUFFIX = ".npy"


class Declared(NamedTuple):
    """The header of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Npz:
    """The arrays of an `.npz` file by name, each read from the file when it is asked for.

    Args:
        path: the file.
        error: the class of every error about the content; a missing name is a KeyError.
    """

    def __init__(self, path: Path, error: type[Exception]) -> None:
        self._path = path
        self._error = error
        try:
            with open_regular(path) as file:
                if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                    raise error(f"{path} is a single array; an .npz file with several is needed")
                with zipfile.ZipFile(file) as archive:
                    names = archive.namelist()
        except error:
            raise
        except FileNotFoundError as cause:
            raise error(f"{path} does not exist") from cause
        except Exception as cause:  # Damaged archives raise nearly anything.
            raise self._damaged(cause) from cause
        self._names = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name)[1]

    def get(self, name: str) -> np.ndarray | None:
        """The array; None where there is no such name."""
        if name not in self:
            return None
        return self[name]

    def declared(self, name: str) -> Declared:
        """Shape and type of an array, from its header alone."""
        return self._read(name, header_alone=True)[0]

    def _read(self, name: str, *, header_alone: bool = False) -> tuple[Declared, Any]:
        if name not in self._names:
            raise KeyError(name)
        try:
            with (
                open_regular(self._path) as file,
                zipfile.ZipFile(file) as archive,
                archive.open(name + SUFFIX) as member,
            ):
                version = np.lib.format.read_magic(member)
                first = version == (1, 0)
                header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                shape, _, dtype = header(member)
                size = archive.getinfo(name + SUFFIX).file_size
                if dtype.hasobject or size != member.tell() + math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{name} has {size} bytes, and declares {dtype} {shape}")
                if header_alone:
                    return Declared(shape, dtype), None
                member.seek(0)
                return Declared(shape, dtype), np.lib.format.read_array(member, allow_pickle=False)
        except MemoryError as cause:
            raise self._error(f"{self._path}: {name} does not fit into memory") from cause
        except Exception as cause:
            raise self._damaged(cause) from cause

    def _damaged(self, cause: Exception) -> Exception:
        return self._error(f"{self._path} cannot be read as an .npz file of numbers: {cause or type(cause).__name__}")
