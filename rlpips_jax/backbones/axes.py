"""Tensors as PyTorch lays them out, and as this library does; and the names that they have in files of other programs.

PyTorch's kernels are (out, in, h, w) and its matrices (out, in); here they are (h, w, in, out) and (in, out). Tensors
with other numbers of axes are alike.
"""

import functools
import re
from collections.abc import Iterable, Mapping

import numpy as np


def of_pytorch(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch of a parameter of this shape."""
    return {4: (*shape[:1:-1], *shape[:2]), 2: shape[::-1]}.get(len(shape), shape)


def from_pytorch(tensor: np.ndarray) -> np.ndarray:
    """A parameter with the axes that it has here."""
    return np.ascontiguousarray(tensor.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim, range(tensor.ndim))))


def to_pytorch(tensor: np.ndarray) -> np.ndarray:
    """Inverse of `from_pytorch`."""
    return np.ascontiguousarray(tensor.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(tensor.ndim, range(tensor.ndim))))


def pytorch_name(name: str) -> str:
    """PyTorch's name of a parameter, by its dotted path: what is a kernel or a scale here is a weight there."""
    return re.sub(r"\.(kernel|scale)$", ".weight", name)


def renamed(tensors: Mapping[str, np.ndarray], rules: Iterable[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Tensors under the names that a table of regular expressions and their replacements gives them, in this order."""
    rules = tuple(rules)
    return {
        functools.reduce(lambda name, rule: re.sub(*rule, name), rules, name): tensor
        for name, tensor in tensors.items()
    }


def below(tensors: Mapping[str, np.ndarray], module: str) -> dict[str, np.ndarray]:
    """The tensors of a module, by their names within it; all tensors where there is no such module."""
    found = ((re.search(rf"(?:^|\.){module}\.(.+)", name), tensor) for name, tensor in tensors.items())
    return {match[1]: tensor for match, tensor in found if match} or dict(tensors)


def dense(path: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of `Computation.dense`."""
    return {f"{path}.kernel": (inputs, outputs), f"{path}.bias": (outputs,)}


def normalisation(path: str, channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of `Computation.normalise`."""
    return {f"{path}.scale": (channels,), f"{path}.bias": (channels,)}
