"""PyTorch checkpoints without PyTorch: reads the files of `torch.save`, writes files for `torch.load`.

Four formats are read; the first bytes of a file tell which it is:

- zip (PyTorch 1.6 and later): `<folder>/data.pkl` describes the tensors, `<folder>/data/*` are the storages;
- legacy: five pickles in sequence (magic number, version, platform, object, storage keys), then the storages;
- `.npy` with one pickled dictionary of arrays;
- safetensors, by its own library.

A checkpoint from the internet may be damaged or malicious. Nothing that it names is imported or called (see
`pickle_reader`), and memory stays below four times the size of the file plus a few megabytes.
"""

import errno
import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from rlpips_jax.errors import UnsafeCheckpoint, WeightsCorrupt, WeightsMismatch
from rlpips_jax.files.atomic import replacing
from rlpips_jax.files.regular import open_regular
from rlpips_jax.weights.pickle_reader import BASE_OPERATIONS, PickleReader, printable
from rlpips_jax.weights.pickled_tensors import (
    STAND_INS,
    STORAGE_TYPES,
    PickledArray,
    PickledTensor,
    Storage,
    read_storage,
)
from rlpips_jax.weights.safetensors_bytes import header_of, tensors_of
from rlpips_jax.weights.zip_reader import INFLATION_ALLOWANCE, ZipReader

MAX_EXPANSION = 2
EXPANSION_ALLOWANCE = 4 << 20
"""Bytes that tensors may take beyond `MAX_EXPANSION` times the file: tensors with stride 0 (from `expand`) are
larger in memory than in the file."""

SHORTEST = 16
"""Bytes; every checkpoint has more."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

Result = TypeVar("Result")
_Read = Callable[[Iterable[str]], dict[str, np.ndarray]]

_Contents = tuple[object, Callable[[Storage], np.ndarray], bool]
"""The pickled object, the function that reads the record of a storage, and whether to swap the bytes of records."""


def read_checkpoint(
    path: str | Path, keep: Callable[[str], bool] | None = None, *, content: bytes | None = None
) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch checkpoint, or the arrays of a pickled `.npy` dictionary, by name.

    The file must hold a dictionary. Tensors in dictionaries inside it have names such as `state_dict.lin0.weight`.
    Parameters are read as tensors; lists, numbers, text and other metadata are left out.

    Args:
        path: a `.pth`, `.pt`, `.ckpt`, `.npy` or `.safetensors` file.
        keep: takes a name, tells whether to read that tensor from disk. Default: read all.
        content: the bytes of the file where they are at hand, as after hashing; then `path` only names it.

    Returns:
        name -> array, in the file's order; each array has its own memory, in C order and native byte order.
        bfloat16 and 8-bit floats are `ml_dtypes` types.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsCorrupt: the file is damaged or cut off.
        UnsafeCheckpoint: its pickle asks for something other than tensors and arrays, or for far more memory than
            the size of the file justifies; nothing in it was run.
        WeightsMismatch: the file is of another format, or holds no dictionary of tensors.
    """
    return _use(path, lambda shapes, read: read([name for name in shapes if keep is None or keep(name)]), content)


def checkpoint_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a checkpoint by the names that `read_checkpoint` gives them; it reads no tensor.

    Argument and errors as there.
    """
    return _use(path, lambda shapes, read: shapes)


def _use(
    path: str | Path, use: Callable[[dict[str, tuple[int, ...]], _Read], Result], content: bytes | None = None
) -> Result:
    """What a function makes of the shapes of a checkpoint's tensors, and of a function that reads them by name."""
    path = Path(path)
    with io.BytesIO(content) if content is not None else _opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            head = file.read(9)
            file.seek(0)
            if head[8:] == b"{" and int.from_bytes(head[:8], "little") < size:
                return _use_safetensors(file.read(), use)
            contents, read_record, swap = _read_contents(file, size)
            tensors = _named_tensors(contents)
            limit = MAX_EXPANSION * size + EXPANSION_ALLOWANCE
            return use(
                {name: tuple(tensor.shape) for name, tensor in tensors.items()},
                lambda names: _materialise({name: tensors[name] for name in names}, read_record, swap, limit),
            )
        except WeightsCorrupt as error:
            raise WeightsCorrupt(
                f"{path} cannot be read: {error}. Download it again and compare its sha256."
            ) from error
        except UnsafeCheckpoint as error:
            raise UnsafeCheckpoint(
                f"{path} is refused: {error}. Nothing in it was run. Download it from its authors and "
                "compare its sha256; if you trust it, open it with PyTorch and save only its state_dict()."
            ) from error
        except WeightsMismatch as error:
            raise WeightsMismatch(f"{path}: {error}") from error


def _opened(path: Path) -> io.BufferedIOBase:
    try:
        return cast(io.BufferedIOBase, open_regular(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EISDIR):
            raise
        raise WeightsCorrupt(f"{path} is not a regular file; give the path of a checkpoint") from error


def write_checkpoint(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a PyTorch zip file that `torch.load(path, weights_only=True)` reads as a dictionary of tensors.

    Equal tensors give equal bytes. A file at `path` is replaced atomically.

    Args:
        path: the file to write; missing folders are made.
        tensors: name -> array; float16/32/64, bfloat16, int8/16/32/64, uint8 or bool.

    Raises:
        WeightsMismatch: PyTorch has no storage class for the type of an array, or a name is not Unicode text.
        OSError: the file cannot be written.
    """
    path = Path(path)
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    description = _describe(arrays)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", description)
        _add(archive, "byteorder", b"little")
        for index, array in enumerate(arrays.values()):
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            _add(archive, f"data/{index}", little.reshape(-1).view(np.uint8).data)
        _add(archive, "version", b"3\n")


def _read_contents(file: io.BufferedIOBase, size: int) -> _Contents:
    head = file.read(1024)
    file.seek(0)
    if head.startswith(b"PK\3\4"):
        return _read_zip(file, size)
    if head.startswith(b"\x93NUMPY"):
        return _read_npy(file, size)
    if head.startswith(b"\x80"):
        return _read_legacy(file, size)
    raise _what_else(head)


def _what_else(head: bytes) -> WeightsCorrupt | WeightsMismatch:
    """Says what a file that begins with these bytes probably is."""
    text = head.lstrip().lower()
    if not head:
        return WeightsCorrupt("it is empty, as after a failed download")
    if head.startswith(b"version https://git-lfs"):
        return WeightsCorrupt("it is a Git LFS pointer, not the file itself ('git lfs pull' fetches the file)")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return WeightsCorrupt("it is a web page, such as an error or login page, not the file")
    if len(head) < SHORTEST:
        return WeightsCorrupt("it is cut off")
    if head[257:262] == b"ustar":
        return WeightsMismatch(
            "it is a tar archive, PyTorch's format before version 0.1.10; load it with PyTorch and save it again"
        )
    return WeightsMismatch(
        f"its format is not one of those read here (it begins with {head[:12].hex(' ')}); save the tensors with "
        "torch.save or as .safetensors"
    )


def _use_safetensors(content: bytes, use: Callable[[dict[str, tuple[int, ...]], _Read], Result]) -> Result:
    metadata, shapes = header_of(content)
    if metadata.get("format", "").startswith("rlpips-jax/"):
        raise WeightsMismatch("it is a weight file of this library already; rlpips_jax.load takes its path")

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        tensors = tensors_of(content)
        return {name: tensors[name].copy() for name in names}

    return use(shapes, read)


def _operations(size: int) -> int:
    return BASE_OPERATIONS + size // 128


def _read_zip(file: io.BufferedIOBase, size: int) -> _Contents:
    archive = ZipReader(file, size)
    found = [name for name in archive.entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(found) != 1:
        if any(name.endswith(".npy") for name in archive.entries):
            raise WeightsMismatch(
                "it is a NumPy .npz archive, not a PyTorch checkpoint; save its arrays as .safetensors"
            )
        raise WeightsCorrupt(f"it is a zip archive, but not PyTorch's: it has {len(found)} files named 'data.pkl'")
    folder = found[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in archive.entries:
        raise WeightsMismatch("it is a TorchScript archive; load it with torch.jit.load and save its state_dict()")
    byte_order = b"little"
    if folder + "byteorder" in archive.entries:
        byte_order = archive.read(folder + "byteorder").tobytes()
    if byte_order not in (b"little", b"big"):
        raise WeightsCorrupt("its byte order is neither 'little' nor 'big'")

    if archive.entries[found[0]].size > size + INFLATION_ALLOWANCE:
        raise UnsafeCheckpoint("its pickle would inflate to more than the whole file")
    data = archive.read(found[0]).tobytes()
    contents = PickleReader(io.BytesIO(data), len(data), STAND_INS, read_storage, _operations(size)).load()
    return contents, partial(_zip_record, archive, folder), _must_swap(byte_order)


def _zip_record(archive: ZipReader, folder: str, storage: Storage) -> np.ndarray:
    return archive.read(f"{folder}data/{storage.key}")


def _read_legacy(file: io.BufferedIOBase, size: int) -> _Contents:
    storages: dict[str, Storage] = {}
    reader = PickleReader(file, size, STAND_INS, partial(_noted_storage, storages), _operations(size))
    if reader.load() != _LEGACY_MAGIC:
        raise WeightsMismatch(
            "it is a pickle, but torch.save did not write it; save the tensors with torch.save or as .safetensors"
        )
    if reader.load() != _LEGACY_VERSION:
        raise WeightsCorrupt(f"its format version is not {_LEGACY_VERSION}")
    reader.load()  # byte order and C types of the machine that wrote it; storages are little-endian in any case
    contents = reader.load()
    keys = reader.load()

    records: dict[str, tuple[int, int]] = {}
    position = file.tell()
    for key in keys if isinstance(keys, list) else [None]:
        if not isinstance(key, str) or key not in storages or key in records:
            raise WeightsCorrupt("its list of storages is not a list of distinct storages that its tensors use")
        file.seek(position)
        header = file.read(8)
        nbytes = storages[key].record_nbytes
        if len(header) < 8 or position + 8 + nbytes > size:
            raise WeightsCorrupt("it is cut off within its tensors")
        if int.from_bytes(header, "little") * storages[key].dtype.itemsize != nbytes:
            raise WeightsCorrupt(f"the storage {printable(key)} does not have the size that its tensors state")
        records[key] = position + 8, nbytes
        position += 8 + nbytes
    return contents, partial(_legacy_record, file, records), _must_swap(b"little")


def _noted_storage(storages: dict[str, Storage], identity: object) -> Storage:
    storage = read_storage(identity)
    storages[storage.key] = storage
    return storage


def _legacy_record(file: io.BufferedIOBase, records: Mapping[str, tuple[int, int]], storage: Storage) -> np.ndarray:
    if storage.key not in records:
        raise WeightsCorrupt(f"it does not contain the storage {printable(storage.key)}")
    start, nbytes = records[storage.key]
    record = np.empty(nbytes, np.uint8)
    file.seek(start)
    if file.readinto(record.data) != nbytes:
        raise WeightsCorrupt("it is cut off within its tensors")
    return record


def _read_npy(file: io.BufferedIOBase, size: int) -> _Contents:
    version = file.read(8)[6:]
    length_bytes = file.read(2 if version[:1] == b"\1" else 4)
    header = file.read(min(int.from_bytes(length_bytes, "little"), 10_000))
    if not header.endswith(b"\n"):
        raise WeightsCorrupt("the header of the .npy file is damaged")
    if not re.search(rb"'descr': '[|<>=]?O[48]?'", header):
        raise WeightsMismatch("it is a .npy file of numbers, not of a pickled dictionary of arrays")
    contents = PickleReader(file, size - file.tell(), STAND_INS, operations=_operations(size)).load()
    if not isinstance(contents, PickledArray):
        raise WeightsCorrupt("the .npy file does not hold an array")
    return contents.item(), _no_record, False


def _no_record(storage: Storage) -> np.ndarray:
    raise WeightsCorrupt("a .npy file holds arrays, not tensors")


def _must_swap(byte_order: bytes) -> bool:
    return np.dtype(np.int16).newbyteorder("<" if byte_order == b"little" else ">") != np.dtype(np.int16)


def _named_tensors(contents: object) -> dict[str, PickledTensor | PickledArray]:
    """The tensors in a dictionary and in those inside it, by their dotted names."""
    if not isinstance(contents, dict):
        raise WeightsMismatch(f"it holds {printable(contents)}, not a state dict (name -> tensor)")
    tensors: dict[str, PickledTensor | PickledArray] = {}
    # A dictionary may contain itself, or another one many times: each is visited once.
    seen, waiting = {id(contents)}, [("", contents)]
    while waiting:
        prefix, dictionary = waiting.pop()
        inner = []
        for key, value in dictionary.items():
            name = f"{prefix}{key}"
            if isinstance(value, PickledTensor | PickledArray) and isinstance(key, str | int):
                if name in tensors:
                    raise WeightsMismatch(f"it has two tensors that are called {printable(name)}")
                tensors[name] = value
            elif isinstance(value, dict) and isinstance(key, str | int) and id(value) not in seen:
                seen.add(id(value))
                inner.append((f"{name}.", value))
        waiting += reversed(inner)
    if contents and not tensors:
        raise WeightsMismatch(
            f"it holds no tensors by name, only {', '.join(printable(key) for key in list(contents)[:8])}; a state "
            "dict (name -> tensor) is needed, alone or inside other dictionaries"
        )
    return tensors


def _materialise(
    tensors: Mapping[str, PickledTensor | PickledArray],
    read_record: Callable[[Storage], np.ndarray],
    swap: bool,
    max_nbytes: int,
) -> dict[str, np.ndarray]:
    """Returns the arrays; reads each storage once, and holds only one in memory at a time."""
    if (nbytes := sum(tensor.nbytes() for tensor in tensors.values())) > max_nbytes:
        raise UnsafeCheckpoint(f"its tensors would take {nbytes} bytes of memory, far more than the size of the file")
    by_storage: dict[str, list[str]] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, PickledArray):
            arrays[name] = tensor.array()
        else:
            by_storage.setdefault(tensor.storage.key, []).append(name)
    for names in by_storage.values():
        record = None
        for name in names:
            tensor = tensors[name]
            assert isinstance(tensor, PickledTensor)
            record = read_record(tensor.storage) if record is None else record
            if record.nbytes != tensor.storage.record_nbytes:
                raise WeightsCorrupt(f"the storage of {printable(name)} does not have the size that its tensor states")
            arrays[name] = tensor.array(record, swap)
    return {name: arrays[name] for name in tensors}


def _describe(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the pickle of an OrderedDict of tensors, as `torch.save` writes it (but without memo)."""
    storage_names = {dtype: name for name, dtype in STORAGE_TYPES.items()}
    ordered_dict = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\2", ordered_dict, b"("]
    for index, (name, array) in enumerate(arrays.items()):
        if not isinstance(name, str) or any("\ud800" <= character <= "\udfff" for character in name):
            raise WeightsMismatch(f"the name {printable(name)} of a tensor is not Unicode text")
        if (storage := storage_names.get(array.dtype.newbyteorder("="))) is None:
            allowed = ", ".join(str(dtype) for dtype in STORAGE_TYPES.values())
            raise WeightsMismatch(f"tensor {name!r} is of type {array.dtype}, not one of {allowed}")
        strides = [1]
        for length in reversed(array.shape[1:]):
            strides.insert(0, strides[0] * max(length, 1))
        parts += [
            _pickled(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(" + _pickled("storage") + b"ctorch\n" + storage.encode() + b"\n",
            _pickled(str(index)) + _pickled("cpu") + _pickled(array.size) + b"tQ",  # the persistent id
            _pickled(0),
            b"(" + b"".join(map(_pickled, array.shape)) + b"t",
            b"(" + b"".join(map(_pickled, strides[: array.ndim])) + b"t",
            b"\x89" + ordered_dict,  # no gradient, no hooks
            b"tR",
        ]
    return b"".join([*parts, b"u."])


def _pickled(value: str | int) -> bytes:
    if isinstance(value, int):
        return struct.pack("<ci", b"J", value) if value < 2**31 else struct.pack("<2sq", b"\x8a\x08", value)
    text = value.encode()
    return struct.pack("<cI", b"X", len(text)) + text


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Adds an uncompressed entry, dated 1980, whose data begin at a multiple of 64 bytes, as mapping requires."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    entry.create_system = 3  # the same bytes on every platform
    entry.file_size = len(data)
    unpadded = archive.fp.tell() + 30 + len(entry.filename) + 4  # type: ignore[union-attr]
    padding = -unpadded % 64
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with archive.open(entry, "w") as file:
        file.write(data)
