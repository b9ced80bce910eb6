"""The sha256 of arrays."""

import hashlib
from collections.abc import Sequence

import numpy as np


def array_hash(*arrays: np.ndarray, labels: Sequence[str] = ()) -> str:
    """sha256, in hexadecimal, of the types, shapes and values of arrays, and of labels; the same on every platform."""
    sha = hashlib.sha256()
    for array in arrays:
        little_endian = array.dtype.newbyteorder("<")
        sha.update(f"{little_endian.str} {array.shape} ".encode())
        sha.update(np.ascontiguousarray(array, little_endian).data)
    sha.update("\n".join(labels).encode())
    return sha.hexdigest()
