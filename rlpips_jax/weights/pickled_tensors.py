"""Stand-ins for the objects in a pickled checkpoint, and their conversion to NumPy arrays.

A stand-in describes a tensor (storage, type, shape, strides); its numbers are read later, and only if the caller
wants them. `STAND_INS` lists every name that a pickle may refer to.
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
"""PyTorch's storage classes and the type of their elements."""

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
    """A range of a record: `nbytes` bytes from `start`, in the record `key`, which has `record_nbytes` bytes."""

    key: str
    dtype: np.dtype
    record_nbytes: int
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class PickledTensor:
    """A PyTorch tensor; `offset` (from the start of its storage) and `strides` are in elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def nbytes(self) -> int:
        """Checks that the tensor lies within its storage, and returns the size of its array in bytes."""
        if len(self.strides) != len(self.shape) or min(self.offset, *self.strides, 0) < 0:
            raise WeightsCorrupt("a tensor has an impossible layout")
        reach = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        within = (self.offset + reach + 1) * self.dtype.itemsize <= self.storage.nbytes
        if 0 not in self.shape and not within:
            raise WeightsCorrupt("a tensor reaches outside its storage")
        return _nbytes(self.shape, self.dtype)

    def array(self, record: np.ndarray, swap: bool) -> np.ndarray:
        """Copies the tensor out of its storage's record into a contiguous array; `swap` reverses the byte order."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        itemsize = self.dtype.itemsize
        stored = np.uint8 if self.dtype == np.bool_ else self.dtype
        offset = self.storage.start + self.offset * itemsize
        strides = [stride * itemsize for stride in self.strides]
        copy = np.array(np.ndarray(self.shape, stored, record, offset, strides), order="C")
        if swap:
            copy.view(f"u{itemsize}").byteswap(inplace=True)
        return copy.astype(self.dtype, copy=False)  # in booleans every byte except 0 is true


@dataclass(slots=True, eq=False)
class PickledDtype(Stateful):
    """A NumPy type: kind and size (such as `f4`) and byte order."""

    code: str
    byte_order: str = "="

    def set_state(self, state: object) -> None:
        match state:
            case (int(), str(order), None, None, None, *_) if order in ("<", ">", "|", "="):
                self.byte_order = order
            case _:
                raise WeightsCorrupt("a NumPy type is neither a plain number type nor the object type")

    def dtype(self) -> np.dtype:
        if self.code not in _NUMPY_DTYPES:
            raise WeightsCorrupt(f"an array has the type {printable(self.code)}; only numbers and booleans are read")
        return np.dtype(self.code).newbyteorder(self.byte_order)  # type: ignore[arg-type]


@dataclass(slots=True, eq=False)
class PickledArray(Stateful):
    """A NumPy array; its data are bytes, or text that encodes bytes in Latin-1, or a list of objects."""

    shape: tuple[int, ...] = ()
    type: PickledDtype | None = None
    fortran_order: bool = False
    data: str | bytes | list = b""
    axes: tuple[int, ...] | None = None
    """The order of the axes of `shape` in the array; None for their own."""

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
                raise WeightsCorrupt("the state of a NumPy array is not one that NumPy writes")

    def nbytes(self) -> int:
        """Checks that the data have the size of the array, and returns that size in bytes."""
        if self.type is None:
            raise WeightsCorrupt("a NumPy array has no contents")
        size = _nbytes(self.shape, dtype := self.type.dtype())
        if isinstance(self.data, list) or len(self.data) != math.prod(self.shape) * dtype.itemsize:
            raise WeightsCorrupt(f"the data of an array do not have the size of its shape {self.shape}")
        return size

    def array(self) -> np.ndarray:
        """Returns a contiguous copy in native byte order; call `nbytes` first, which checks the sizes."""
        assert self.type is not None
        assert not isinstance(self.data, list)
        try:
            data = self.data.encode("latin-1") if isinstance(self.data, str) else self.data
        except UnicodeEncodeError:
            raise WeightsCorrupt("an array's data are text, not bytes") from None
        dtype = self.type.dtype()
        view = np.ndarray(self.shape, dtype, data, order="F" if self.fortran_order else "C")
        if dtype == np.bool_:
            view = view.view(np.uint8)  # every byte except 0 is true
        if self.axes is not None:
            view = view.transpose(self.axes)
        return np.array(view, dtype.newbyteorder("="), order="C")

    def item(self) -> object:
        """Returns the only element of an array of objects."""
        if self.type is None or self.type.code not in ("O4", "O8", "O") or not isinstance(self.data, list):
            raise WeightsCorrupt("the array does not hold objects")
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
    """`numpy.ndarray`, as the argument of `_reconstruct`."""


def read_storage(identity: object) -> Storage:
    """Decodes a persistent id of PyTorch: ('storage', type, key, device, elements[, view])."""
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
            raise WeightsCorrupt(f"the storage {printable(key)} has an impossible size or view")
        case _:
            raise UnsafeCheckpoint("its pickle refers to an external object that is not the storage of a tensor")


def _tensor(*arguments: object) -> PickledTensor:
    """Stands for `torch._utils._rebuild_tensor`, `_v2` and `_v3`.

    Their arguments are storage, offset, shape, strides[, requires_grad, hooks[, type (v3 only)][, metadata]].
    """
    match arguments:
        case (Storage() as storage, int(offset), shape, strides, _, _, _TensorType(dtype), *_):
            pass  # the storage is untyped, so its elements are bytes
        case (Storage(dtype=dtype) as storage, int(offset), shape, strides, *_):
            pass
        case _:
            raise WeightsCorrupt("the description of a tensor has the wrong arguments")
    return PickledTensor(storage, dtype, offset, _sizes(shape), _sizes(strides))


def _parameter(tensor: object, _requires_grad: object, _hooks: object) -> PickledTensor:
    """Stands for `torch._utils._rebuild_parameter`: a parameter becomes its tensor."""
    if not isinstance(tensor, PickledTensor):
        raise WeightsCorrupt("a parameter does not contain a tensor")
    return tensor


def _size(sizes: object = ()) -> tuple[int, ...]:
    return _sizes(sizes)


def _ordered_dict(pairs: object = ()) -> dict:
    """Stands for `collections.OrderedDict`, which Python 2 pickles with a list of [key, value] lists."""
    if pairs == () and type(pairs) is tuple:
        return {}
    if type(pairs) is not list or not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise WeightsCorrupt("an OrderedDict is not built from pairs")
    ordered: dict = {}
    set_items(ordered, [part for pair in pairs for part in pair])
    return ordered


def _array(array_class: object, _shape: object, _code: object) -> PickledArray:
    """Stands for `numpy.core.multiarray._reconstruct`: an empty array, which the BUILD opcode fills later."""
    if not isinstance(array_class, _ArrayClass):
        raise WeightsCorrupt("a NumPy array has a class other than numpy.ndarray")
    return PickledArray()


def _from_buffer(data: object, type: object, shape: object, order: object, axes: object = None) -> PickledArray:
    """Stands for `numpy.core.numeric._frombuffer`, by which protocol 5 writes arrays."""
    if not isinstance(data, bytes) or not isinstance(type, PickledDtype) or order not in ("C", "F", "K"):
        raise WeightsCorrupt("an array of protocol 5 is not one that NumPy writes")
    sizes, permutation = _sizes(shape), None if axes is None else _sizes(axes)
    if permutation is not None and (order != "K" or sorted(permutation) != list(range(len(sizes)))):
        raise WeightsCorrupt(f"the axes {permutation} are not those of the shape {sizes}")
    return PickledArray(sizes, type, order == "F", data, permutation)


def _scalar(_type: object, _data: object) -> None:
    """Stands for `numpy.core.multiarray.scalar`: single numbers (an accuracy, a rate) are dropped."""


def _numpy_dtype(code: object, _align: object = False, _copy: object = True) -> PickledDtype:
    if not isinstance(code, str):
        raise WeightsCorrupt("the name of a NumPy type is not text")
    return PickledDtype(code)


def _encode(text: object, encoding: object) -> str:
    """Stands for `_codecs.encode`, by which protocol 2 writes bytes; the text itself is kept, without a copy."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafeCheckpoint("its pickle encodes text in another encoding than Latin-1")
    return text


def _empty_bytes() -> bytes:
    """Stands for `__builtin__.bytes`, by which protocol 2 writes an empty bytes object."""
    return b""


def _sizes(sizes: object) -> tuple[int, ...]:
    match sizes:
        case tuple() if len(sizes) <= _MAX_DIMENSIONS and all(type(size) is int for size in sizes):
            return sizes
        case _:
            raise WeightsCorrupt(f"a shape is not a tuple of at most {_MAX_DIMENSIONS} integers")


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Returns the bytes of an array; lengths of 0 count as 1, because NumPy refuses a shape such as (0, 2**62)."""
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
        ("numpy.core.numeric", "_frombuffer"): Constructor(_from_buffer),
        ("numpy._core.numeric", "_frombuffer"): Constructor(_from_buffer),
        ("numpy", "ndarray"): _ArrayClass(),
        ("numpy", "dtype"): Constructor(_numpy_dtype),
        ("_codecs", "encode"): Constructor(_encode),
        ("__builtin__", "bytes"): Constructor(_empty_bytes),
    }
)
"""What each (module, name) in a pickle becomes: always a stand-in, never the object of that name."""
