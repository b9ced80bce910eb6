"""The stand-ins that pickled checkpoints are made of, and the NumPy arrays that they become.

A stand-in says what a tensor is (storage, type, shape, strides); its numbers are read later, and only if
wanted. `STAND_INS` is all that a pickle may name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import ml_dtypes
import numpy as np

from rlpips_jax.errors import UnsafeCheckpoint, WeightsCorrupt
from rlpips_jax.weights.pickle_reader import Constructor, Stateful, printable, set_items

STORAGE_TYPES: Final[Mapping[str, np.dtype]] = MappingProxyType(
    {
        "FloatStorage": np.dtype(np.float32),
        "DoubleStorage": np.dtype(np.float64),
        "HalfStorage": np.dtype(np.float16),
        "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
        "CharStorage": np.dtype(np.int8),
        "ShortStorage": np.dtype(np.int16),
        "IntStorage": np.dtype(np.int32),
        "LongStorage": np.dtype(np.int64),
        "ByteStorage": np.dtype(np.uint8),
        "BoolStorage": np.dtype(np.bool_),
    }
)
"""PyTorch's storage classes and the types of their elements."""

_UNTYPED_DTYPES = {
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_NUMPY_DTYPES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
_MAX_DIMENSIONS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Where elements lie: `nbytes` from `start` on, of the `record_nbytes` that the file has under `key`."""

    key: str
    dtype: np.dtype
    record_nbytes: int
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class PickledTensor:
    """A PyTorch tensor; offset and strides count elements, from the start of its storage."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def nbytes(self) -> int:
        """Bytes of the array that it becomes, once it is known to lie within its storage."""
        if len(self.strides) != len(self.shape) or min(self.offset, *self.strides, 0) < 0:
            raise WeightsCorrupt("a tensor has an impossible layout")
        reach = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        within = (self.offset + reach + 1) * self.dtype.itemsize <= self.storage.nbytes
        if 0 not in self.shape and not within:
            raise WeightsCorrupt("a tensor reaches outside its storage")
        return _nbytes(self.shape, self.dtype)

    def array(self, record: np.ndarray, swap: bool) -> np.ndarray:
        """A contiguous copy, from the bytes of the storage's record, whose order is another if `swap`."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        itemsize = self.dtype.itemsize
        stored = np.uint8 if self.dtype == np.bool_ else self.dtype
        offset = self.storage.start + self.offset * itemsize
        strides = [stride * itemsize for stride in self.strides]
        copy = np.array(np.ndarray(self.shape, stored, record, offset, strides), order="C")
        if swap:
            copy.view(f"u{itemsize}").byteswap(inplace=True)
        return copy.astype(self.dtype, copy=False)  # for booleans: any byte but 0 is true


@dataclass(slots=True, eq=False)
class PickledDtype(Stateful):
    """A NumPy type: kind and size (`f4`), byte order."""

    code: str
    byte_order: str = "="

    def set_state(self, state: object) -> None:
        match state:
            case (int(), str(order), None, None, None, *_) if order in ("<", ">", "|", "="):
                self.byte_order = order
            case _:
                raise WeightsCorrupt("a NumPy type is neither a plain number nor an object")

    def dtype(self) -> np.dtype:
        if self.code not in _NUMPY_DTYPES:
            raise WeightsCorrupt(f"an array is of type {printable(self.code)}, not of numbers or booleans")
        return np.dtype(self.code).newbyteorder(self.byte_order)  # type: ignore[arg-type]


@dataclass(slots=True, eq=False)
class PickledArray(Stateful):
    """A NumPy array; its data may be bytes, or Latin-1 text that spells them, or a list of objects."""

    shape: tuple[int, ...] = ()
    type: PickledDtype | None = None
    fortran_order: bool = False
    data: str | bytes | list = b""

    def set_state(self, state: object) -> None:
        match state:
            case (
                int(),
                tuple(shape),
                PickledDtype() as type,
                int(fortran),
                str() | bytes() | list() as data,
            ):
                self.shape, self.type = _sizes(shape), type
                self.fortran_order, self.data = bool(fortran), data
            case _:
                raise WeightsCorrupt("a NumPy array has a state that makes no sense")

    def nbytes(self) -> int:
        """Bytes of the array that it becomes, once it is known that its data are as many."""
        if self.type is None:
            raise WeightsCorrupt("a NumPy array has no contents")
        size = _nbytes(self.shape, dtype := self.type.dtype())
        if isinstance(self.data, list) or len(self.data) != math.prod(self.shape) * dtype.itemsize:
            raise WeightsCorrupt(f"an array of shape {self.shape} has data of another size")
        return size

    def array(self) -> np.ndarray:
        """A contiguous copy in native byte order; `nbytes` must have passed."""
        assert self.type is not None
        assert not isinstance(self.data, list)
        try:
            data = self.data.encode("latin-1") if isinstance(self.data, str) else self.data
        except UnicodeEncodeError:
            raise WeightsCorrupt("an array's data are text, not bytes") from None
        dtype = self.type.dtype()
        view = np.ndarray(self.shape, dtype, data, order="F" if self.fortran_order else "C")
        if dtype == np.bool_:
            view = view.view(np.uint8)  # any byte but 0 is true
        return np.array(view, dtype.newbyteorder("="), order="C")

    def item(self) -> object:
        """The one object in an array of objects."""
        if self.type is None or self.type.code not in ("O4", "O8", "O") or not isinstance(self.data, list):
            raise WeightsCorrupt("the array is not one of objects")
        if len(self.data) != 1:
            raise WeightsCorrupt(f"the array holds {len(self.data)} objects, not one dictionary")
        return self.data[0]


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class _TensorType:
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class _ArrayClass:
    """`numpy.ndarray`, as an argument of its own reconstruction."""


def read_storage(identity: object) -> Storage:
    """The storage that a persistent id of PyTorch names: ('storage', type, key, device, elements[, view])."""
    match identity:
        case ("storage", _StorageType(dtype), str(key), str(), int(elements), *view):
            match view:
                case [] | [None]:
                    first, count = 0, elements
                case [(str(), int(first), int(count))]:
                    pass
                case _:
                    first, count = -1, 0
            if 0 <= first <= first + count <= elements:
                size = dtype.itemsize
                return Storage(key, dtype, elements * size, first * size, count * size)
            raise WeightsCorrupt(f"the size or the view of the storage {printable(key)} makes no sense")
        case _:
            raise UnsafeCheckpoint("its pickle refers to something outside it that is not a tensor's storage")


def _tensor(*arguments: object) -> PickledTensor:
    """`torch._utils._rebuild_tensor`, `_v2` and `_v3`, whose arguments are

    storage, offset, shape, strides[, requires_grad, hooks[, type (v3 alone)][, metadata]].
    """
    match arguments:
        case (Storage() as storage, int(offset), shape, strides, _, _, _TensorType(dtype), *_):
            pass  # the storage is one of bytes
        case (Storage(dtype=dtype) as storage, int(offset), shape, strides, *_):
            pass
        case _:
            raise WeightsCorrupt("a tensor is described in a way that makes no sense")
    return PickledTensor(storage, dtype, offset, _sizes(shape), _sizes(strides))


def _parameter(tensor: object, _requires_grad: object, _hooks: object) -> PickledTensor:
    """`torch._utils._rebuild_parameter`: a parameter is its tensor."""
    if not isinstance(tensor, PickledTensor):
        raise WeightsCorrupt("a parameter is not made of a tensor")
    return tensor


def _size(sizes: object = ()) -> tuple[int, ...]:
    return _sizes(sizes)


def _ordered_dict(pairs: object = ()) -> dict:
    """`collections.OrderedDict`, also as Python 2 pickles it: with a list of [key, value] lists."""
    if pairs == () and type(pairs) is tuple:
        return {}
    if type(pairs) is not list or not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise WeightsCorrupt("an OrderedDict is not made of pairs")
    ordered: dict = {}
    set_items(ordered, [part for pair in pairs for part in pair])
    return ordered


def _array(array_class: object, _shape: object, _code: object) -> PickledArray:
    """`numpy.core.multiarray._reconstruct`: an empty array, whose BUILD will fill it."""
    if not isinstance(array_class, _ArrayClass):
        raise WeightsCorrupt("a NumPy array is of a class that makes no sense")
    return PickledArray()


def _scalar(_type: object, _data: object) -> None:
    """`numpy.core.multiarray.scalar`: a number beside the tensors (an accuracy, a rate) is not needed."""


def _numpy_dtype(code: object, _align: object = False, _copy: object = True) -> PickledDtype:
    if not isinstance(code, str):
        raise WeightsCorrupt("a NumPy type is not named by text")
    return PickledDtype(code)


def _encode(text: object, encoding: object) -> str:
    """`_codecs.encode`, how protocol 2 writes bytes: the text that spells them serves as well, uncopied."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafeCheckpoint("its pickle encodes something other than bytes spelt in Latin-1")
    return text


def _empty_bytes() -> bytes:
    """`__builtin__.bytes`, how protocol 2 writes no bytes at all."""
    return b""


def _sizes(sizes: object) -> tuple[int, ...]:
    match sizes:
        case tuple() if len(sizes) <= _MAX_DIMENSIONS and all(type(size) is int for size in sizes):
            return sizes
        case _:
            raise WeightsCorrupt(f"a shape is not a tuple of at most {_MAX_DIMENSIONS} integers")


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array, where dimensions of length zero count as one: NumPy refuses (0, 2**62) as well."""
    if any(length < 0 for length in shape):
        raise WeightsCorrupt(f"a tensor has the impossible shape {shape}")
    return math.prod(max(length, 1) for length in shape) * dtype.itemsize


STAND_INS: Final[Mapping[tuple[str, str], object]] = MappingProxyType(
    {
        ("collections", "OrderedDict"): Constructor(_ordered_dict),
        ("torch", "Size"): Constructor(_size),
        ("torch._utils", "_rebuild_tensor"): Constructor(_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): Constructor(_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): Constructor(_tensor),
        ("torch._utils", "_rebuild_parameter"): Constructor(_parameter),
        **{("torch", name): _StorageType(dtype) for name, dtype in STORAGE_TYPES.items()},
        ("torch.storage", "UntypedStorage"): _StorageType(np.dtype(np.uint8)),
        **{("torch", name): _TensorType(dtype) for name, dtype in _UNTYPED_DTYPES.items()},
        ("numpy.core.multiarray", "_reconstruct"): Constructor(_array),
        ("numpy._core.multiarray", "_reconstruct"): Constructor(_array),
        ("numpy.core.multiarray", "scalar"): Constructor(_scalar),
        ("numpy._core.multiarray", "scalar"): Constructor(_scalar),
        ("numpy", "ndarray"): _ArrayClass(),
        ("numpy", "dtype"): Constructor(_numpy_dtype),
        ("_codecs", "encode"): Constructor(_encode),
        ("__builtin__", "bytes"): Constructor(_empty_bytes),
    }
)
"""What each (module, name) in a pickle becomes. None of them is what it is named after."""
