"""Checkpoints: what is read equals what was saved, and no file, however damaged or hostile, does any harm."""

import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import rlpips_jax
from rlpips_jax.errors import UnsafeCheckpoint, WeightsCorrupt, WeightsError, WeightsMismatch
from rlpips_jax.weights.pytorch import checkpoint_shapes, read_checkpoint, write_checkpoint

NUMPY_DTYPES = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "bool"]
DTYPES = [*NUMPY_DTYPES, ml_dtypes.bfloat16]

MAGIC = 0x1950A86A20F9469CFC6C


# Files from opcodes, so that every byte of them is chosen here.


def plain(value: object) -> bytes:
    """Opcodes that push a plain value, and leave the memo alone."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()[2:-1]


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


ORDERED_DICT = named("collections", "OrderedDict")


def identity(*parts: bytes) -> bytes:
    """Opcodes that push what a persistent id stands for."""
    return b"(" + b"".join(parts) + b"tQ"


def tensor(
    key: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    offset: int = 0,
    stored: int,
    kind: str = "FloatStorage",
    device: str = "cpu",
    view: tuple = (),
) -> bytes:
    """Opcodes that push a tensor in a storage of `stored` elements; `view` holds the metadata of a view."""
    where = [plain("storage"), named("torch", kind), *map(plain, (key, device, stored, *view))]
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, identity(*where), plain(offset), plain(shape), plain(strides), b"\x89", call(ORDERED_DICT))


def vector(key: str, length: int, **options) -> bytes:
    return tensor(key, (length,), (1,), stored=length, **options)


def dictionary(items: Mapping[Any, bytes]) -> bytes:
    return b"}(" + b"".join(plain(name) + value for name, value in items.items()) + b"u"


def pickled(value: bytes) -> bytes:
    return b"\x80\2" + value + b"."


def zip_file(contents: bytes, records: dict[str, bytes], byte_order: bytes = b"little", **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr("model/data.pkl", contents)
        archive.writestr("model/byteorder", byte_order)
        for key, record in records.items():
            archive.writestr(f"model/data/{key}", record)
        archive.writestr("model/version", b"3\n")
    return buffer.getvalue()


def legacy_file(contents: bytes, records: dict[str, bytes], itemsize: int = 4) -> bytes:
    sizes = {"short": 2, "int": 4, "long": 4}
    platform = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, platform))
    storages = [struct.pack("<q", len(record) // itemsize) + record for record in records.values()]
    return head + contents + pickle.dumps(list(records), 2) + b"".join(storages)


def npy_file(contents: bytes, descr: str = "|O") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (), }}"
    return b"\x93NUMPY\1\0" + struct.pack("<H", 118) + header.ljust(117).encode() + b"\n" + contents


def npy_of(value: object, protocol: int = 2) -> bytes:
    boxed = np.empty((), object)
    boxed[()] = value
    return npy_file(pickle.dumps(boxed, protocol))


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


SMALL_STATE = {"lin0.weight": tensor("7", (1, 2, 2), (4, 2, 1), stored=4), "lin0.bias": vector("8", 3)}
SMALL_RECORDS = {"7": floats(1, 2, 3, 4), "8": floats(-1, 0.5, 9)}
SMALL_ARRAYS = {
    "lin0.weight": np.array([[[1, 2], [3, 4]]], np.float32),
    "lin0.bias": np.array([-1, 0.5, 9], np.float32),
}
SMALL_FILES = {
    "zip": zip_file(pickled(dictionary(SMALL_STATE)), SMALL_RECORDS),
    "legacy": legacy_file(pickled(dictionary(SMALL_STATE)), SMALL_RECORDS),
    "npy": npy_of(SMALL_ARRAYS),
}


EMPTY_ZIP = zip_file(pickled(b"}"), {})


@pytest.fixture
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Reads a checkpoint from its bytes; the path says nothing that a message could say."""
    path = tmp_path_factory.mktemp("files") / "model.pth"

    def read(data: bytes, *, shapes: bool = False, **options) -> dict[str, Any]:
        path.write_bytes(data)
        return checkpoint_shapes(path) if shapes else read_checkpoint(path, **options)

    return read


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Same names in the same order, types, shapes, bits; arrays contiguous, native, with their own memory."""
    assert list(got) == list(wanted)
    for name, array in got.items():
        assert type(array) is np.ndarray
        assert (array.dtype, array.shape) == (wanted[name].dtype.newbyteorder("="), wanted[name].shape)
        assert array.tobytes() == np.asarray(wanted[name], array.dtype).tobytes()
        assert array.flags.c_contiguous
        assert array.flags.owndata
        assert array.flags.writeable
        assert array.dtype.isnative


# What was written is read.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (2, 0, 3), (64, 3, 11, 11)], ids=str)
def test_round_trip(tmp_path: Path, dtype: object, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.RandomState(0).randint(-9, 9, shape)).astype(dtype)  # type: ignore[arg-type]
    write_checkpoint(tmp_path / "a.pth", {"a": array, "b.c": array})
    assert_same(read_checkpoint(tmp_path / "a.pth"), {"a": array, "b.c": array})


any_array = st.sampled_from(NUMPY_DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=20), any_array, max_size=6))
def test_round_trip_of_anything(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pth"
    write_checkpoint(path, tensors)
    assert_same(read_checkpoint(path), tensors)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=20), any_array, max_size=6), st.sampled_from([2, 3, 4, 5]))
def test_numpy_files_round_trip(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray], protocol: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npy"
    path.write_bytes(npy_of(tensors, protocol))
    assert_same(read_checkpoint(path), tensors)


def test_numpy_layouts(tmp_path: Path) -> None:
    grid = np.arange(24.0).reshape(2, 3, 4)
    arrays = {
        "fortran": np.asfortranarray(grid),
        "big": grid.astype(">f4"),
        "sliced": grid[:, ::2].T,
        "bool": grid > 3,
    }
    np.save(tmp_path / "a.npy", arrays, allow_pickle=True)  # type: ignore[arg-type]
    assert_same(read_checkpoint(tmp_path / "a.npy"), arrays)
    (tmp_path / "a.npy").write_bytes(npy_of(arrays | {"permuted": grid.transpose(1, 0, 2)}, protocol=5))
    assert_same(read_checkpoint(tmp_path / "a.npy"), arrays | {"permuted": grid.transpose(1, 0, 2)})


def test_writing_takes_any_layout(tmp_path: Path) -> None:
    grid = np.arange(24, dtype=np.int32).reshape(4, 6)
    tensors = {
        "transposed": grid.T,
        "big": grid.astype(">i4"),
        "sliced": grid[::2, ::-1],
    }
    write_checkpoint(tmp_path / "a.pth", tensors)
    assert_same(read_checkpoint(tmp_path / "a.pth"), tensors)


def test_writing_is_deterministic_and_aligned(tmp_path: Path) -> None:
    tensors = {"a": np.arange(5.0), "b": np.ones(3, np.float32)}
    write_checkpoint(tmp_path / "one.pth", tensors)
    write_checkpoint(tmp_path / "another.pth", {name: array.copy() for name, array in tensors.items()})
    data = (tmp_path / "one.pth").read_bytes()
    assert data == (tmp_path / "another.pth").read_bytes()
    assert data.index(tensors["a"].tobytes()) % 64 == data.index(tensors["b"].tobytes()) % 64 == 0


def test_writing_replaces_the_file_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    write_checkpoint(path, {"a": np.zeros(2)})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(path, {"a": np.ones(2)})
    assert_same(read_checkpoint(path), {"a": np.zeros(2)})
    write_checkpoint(path, {"a": np.ones(2)})
    assert_same(read_checkpoint(path), {"a": np.ones(2)})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", ["<U4", "O", "complex128", "uint16", "M8[s]"])
def test_writing_refuses_other_types(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(WeightsMismatch, match=r"'a' is of type.*not one of float32"):
        write_checkpoint(tmp_path / "a.pth", {"a": np.zeros(2, dtype)})


def test_writing_refuses_a_name_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(WeightsMismatch, match="not Unicode text"):
        write_checkpoint(tmp_path / "a.pth", {"\ud800": np.zeros(2)})
    assert not list(tmp_path.iterdir())


# The formats and what they can say.


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_formats(read: Callable, kind: str) -> None:
    assert_same(read(SMALL_FILES[kind]), SMALL_ARRAYS)


def test_python_2_pickles(read: Callable) -> None:
    """As PyTorch 0.3 wrote them: byte strings, long integers, pairs in an OrderedDict, a tensor on a GPU."""

    def string(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode()

    def long(number: int) -> bytes:
        return b"\x8a\1" + bytes([number])

    kind = named("torch", "FloatStorage")
    storage = identity(string("storage"), kind, string("11"), string("cuda:0"), long(4), b"N")
    rebuild = named("torch._utils", "_rebuild_tensor")
    shape, strides = b"(" + long(2) + long(2) + b"t", b"(" + long(2) + long(1) + b"t"
    pair = b"](" + string("lin0.weight") + call(rebuild, storage, b"K\0", shape, strides) + b"e"
    data = legacy_file(pickled(call(ORDERED_DICT, b"](" + pair + b"e")), {"11": floats(1, 2, 3, 4)})
    assert_same(read(data), {"lin0.weight": np.array([[1, 2], [3, 4]], np.float32)})


@pytest.mark.parametrize("build", [zip_file, legacy_file])
def test_layouts_of_tensors(read: Callable, build: Callable) -> None:
    state = {
        "transposed": tensor("0", (3, 2), (1, 3), stored=8),
        "offset": tensor("0", (2,), (2,), offset=5, stored=8),
        "overlapping": tensor("0", (3, 2), (1, 1), stored=8),
        "expanded": tensor("0", (2, 3), (0, 1), stored=8, device="cuda:1"),
        "scalar": tensor("0", (), (), offset=7, stored=8),
        "empty": tensor("0", (0, 2), (2, 1), stored=8),
        "view": tensor("0", (2,), (1,), offset=1, stored=8, view=(("v", 4, 3),)),
    }
    data = build(pickled(dictionary(state)), {"0": floats(*range(8))})
    wanted = {
        "transposed": [[0, 3], [1, 4], [2, 5]],
        "offset": [5, 7],
        "overlapping": [[0, 1], [1, 2], [2, 3]],
        "expanded": [[0, 1, 2], [0, 1, 2]],
        "scalar": 7,
        "empty": np.zeros((0, 2)),
        "view": [5, 6],
    }
    assert_same(read(data), {name: np.array(values, np.float32) for name, values in wanted.items()})


def test_big_endian_archive(read: Callable) -> None:
    state = {
        "f": vector("0", 3, kind="FloatStorage"),
        "b": vector("1", 2, kind="BFloat16Storage"),
        "i": vector("2", 2, kind="LongStorage"),
        "t": vector("3", 3, kind="BoolStorage"),
    }
    records = {
        "0": struct.pack(">3f", 1, 2, 3),
        "1": struct.pack(">2H", 0x3F80, 0x4000),
        "2": struct.pack(">2q", 1, -2),
        "3": b"\0\1\2",
    }
    wanted = {
        "f": np.array([1, 2, 3], np.float32),
        "b": np.array([1, 2], ml_dtypes.bfloat16),
        "i": np.array([1, -2]),
        "t": np.array([False, True, True]),
    }
    assert_same(read(zip_file(pickled(dictionary(state)), records, b"big")), wanted)


def test_deflated_and_zip64_archives(read: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = pickled(dictionary(SMALL_STATE))
    assert_same(read(zip_file(contents, SMALL_RECORDS, compression=zipfile.ZIP_DEFLATED)), SMALL_ARRAYS)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
    data = zip_file(contents, SMALL_RECORDS)
    assert b"PK\6\6" in data
    assert_same(read(data), SMALL_ARRAYS)


def test_large_deflated_entry(read: Callable) -> None:
    """Several chunks of compressed data, and of inflated data from one compressed chunk."""
    values = np.random.RandomState(0).standard_normal(1_000_000).astype(np.float32)
    values[:200_000] = 0
    contents = pickled(dictionary({"a": vector("0", len(values))}))
    data = zip_file(contents, {"0": values.tobytes()}, compression=zipfile.ZIP_DEFLATED)
    assert len(data) < values.nbytes
    assert_same(read(data), {"a": values})


def test_nested_state_dict_and_metadata(read: Callable) -> None:
    ordered = call(ORDERED_DICT) + b"(" + b"".join(plain(k) + v for k, v in SMALL_STATE.items()) + b"u"
    with_metadata = ordered + dictionary({"_metadata": call(ORDERED_DICT)}) + b"b"
    parameter = call(named("torch._utils", "_rebuild_parameter"), vector("8", 3), b"\x88", call(ORDERED_DICT))
    double = call(named("numpy", "dtype"), plain("f8"))
    scalar = call(named("numpy.core.multiarray", "scalar"), double, plain("x" * 8))
    training = {
        "epoch": plain(3),
        "arch": plain("alex"),
        "rate": plain(1e-4),
        "nothing": b"N",
        "best": scalar,
        "state_dict": with_metadata,
        "optimizer": dictionary({"state": dictionary({0: vector("8", 3)}), "betas": plain((0.5, 0.999))}),
    }
    nested = {f"state_dict.{name}": array for name, array in SMALL_ARRAYS.items()}
    nested["optimizer.state.0"] = SMALL_ARRAYS["lin0.bias"]
    data = zip_file(pickled(dictionary(training)), SMALL_RECORDS)
    assert_same(read(data), nested)
    assert read(data, shapes=True) == {name: array.shape for name, array in nested.items()}
    flat = {
        "w": parameter,
        "version": plain("1"),
        "sizes": call(named("torch", "Size"), plain((1, 2))),
        "steps": plain([1]),
    }
    assert_same(read(zip_file(pickled(dictionary(flat)), SMALL_RECORDS)), {"w": SMALL_ARRAYS["lin0.bias"]})


def test_an_empty_state_dict_is_one(read: Callable) -> None:
    assert read(zip_file(pickled(b"}"), {})) == {}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (plain([1, 2]), "holds 'a list', not a state dict"),
        (plain({"epoch": 3}), "holds no tensors by name, only 'epoch'; a state dict"),
        (vector("8", 3), "holds 'a PickledTensor'"),
        (dictionary({"all": b"](" + vector("8", 3) + b"e"}), "holds no tensors by name, only 'all'"),
        (dictionary({"a.b": vector("8", 3), "a": dictionary({"b": vector("8", 3)})}), "two tensors.*called 'a[.]b'"),
    ],
)
def test_what_is_no_state_dict(read: Callable, contents: bytes, message: str) -> None:
    with pytest.raises(WeightsMismatch, match=message):
        read(zip_file(pickled(contents), SMALL_RECORDS))


def test_keep_leaves_the_rest_unread(read: Callable) -> None:
    data = SMALL_FILES["zip"].replace(SMALL_RECORDS["7"], floats(1, 2, 3, 5))
    with pytest.raises(WeightsCorrupt, match="'model/data/7' does not match its checksum"):
        read(data)
    only = {"lin0.bias": SMALL_ARRAYS["lin0.bias"]}
    assert_same(read(data, keep=lambda name: name.endswith("bias")), only)
    assert_same(read(SMALL_FILES["legacy"], keep=lambda name: name.endswith("bias")), only)
    assert read(data, keep=lambda name: False) == {}


# Files that are no checkpoints, or no longer.


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def npz_file() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def plain_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", WeightsCorrupt, "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", WeightsCorrupt, "Git LFS pointer"),
        (b"\n <!DOCTYPE html><html>404</html>", WeightsCorrupt, "web page"),
        (tar_file(), WeightsMismatch, "tar archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), WeightsMismatch, "format is not one of.*89 48 44 46.*torch.save or as"),
        (npz_file(), WeightsMismatch, r"\.npz archive.*as \.safetensors"),
        (bytes([9]) + bytes(7) + b"{" + bytes(9), WeightsCorrupt, "not a readable safetensors file"),
        (plain_npy(), WeightsMismatch, "file of numbers"),
        (npy_file(pickled(plain({"a": 1}))), WeightsCorrupt, "does not hold an array"),
        (pickle.dumps({"a": 1}, 2), WeightsMismatch, "a pickle, but torch.save did not write it"),
        (SMALL_FILES["legacy"].replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2)), WeightsCorrupt, "1001"),
        (EMPTY_ZIP.replace(b"data.pkl", b"data.txt"), WeightsCorrupt, "it has 0 files"),
        (EMPTY_ZIP.replace(b"model/version", b"else/data.pkl"), WeightsCorrupt, "it has 2 files"),
        (SMALL_FILES["zip"].replace(b"model/", b"a/b/c/"), WeightsCorrupt, "it has 0 files"),
        (EMPTY_ZIP.replace(b"byteorder", b"byte\xffrder"), WeightsCorrupt, "not UTF-8"),
        (zip_file(pickled(b"}"), {}, b"middle"), WeightsCorrupt, "byte order"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files(read: Callable, data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        read(data)
    assert "model.pth" in str(caught.value)
    assert ("Download it again and compare its sha256" in str(caught.value)) == (error is WeightsCorrupt)


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16], ids=str)
def test_safetensors_are_read(tmp_path: Path, dtype: Any) -> None:
    from safetensors.numpy import save_file

    arrays = {name: array.astype(dtype) for name, array in SMALL_ARRAYS.items()}
    save_file(arrays, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors").keys() == arrays.keys()
    for name, array in read_checkpoint(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(array, arrays[name])
    only = read_checkpoint(tmp_path / "a.safetensors", keep=lambda name: name == "lin0.bias")
    assert list(only) == ["lin0.bias"]
    assert checkpoint_shapes(tmp_path / "a.safetensors")["lin0.weight"] == (1, 2, 2)
    save_file(arrays, tmp_path / "b.safetensors", {"format": "rlpips-jax/1"})
    with pytest.raises(WeightsMismatch, match=r"a weight file of this library already; rlpips_jax[.]load takes"):
        read_checkpoint(tmp_path / "b.safetensors")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(WeightsCorrupt, match="not a regular file"):
        read_checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(WeightsCorrupt, match="not a regular file"):
        read_checkpoint(tmp_path / "pipe.pth")


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_every_truncation_is_noticed(read: Callable, kind: str) -> None:
    data = SMALL_FILES[kind]
    for length in range(len(data)):
        with pytest.raises(WeightsCorrupt):
            read(data[:length])


def test_every_damaged_bit_of_an_archived_tensor_is_noticed(read: Callable) -> None:
    data = SMALL_FILES["zip"]
    for record in SMALL_RECORDS.values():
        start = data.index(record)
        for bit in range(8 * len(record)):
            damaged = bytearray(data)
            damaged[start + bit // 8] ^= 1 << bit % 8
            with pytest.raises(WeightsCorrupt, match="checksum"):
                read(bytes(damaged))


def edits(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies of `data` with a few bits flipped, bytes replaced, removed, inserted or moved."""
    rng = random.Random(seed)
    for _ in range(count):
        edited = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            at = rng.randrange(len(edited))
            match rng.randrange(6):
                case 0 | 1:
                    edited[at] ^= 1 << rng.randrange(8)
                case 2:
                    edited[at] = rng.choice(b"\0\xff().}]tuRbcsQqh\x85\x86\x93\x94\x8a" + bytes(range(256)))
                case 3:
                    del edited[at : at + rng.choice((1, 2, 4, 8, 64))]
                case 4:
                    edited[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
                case 5:
                    other = rng.randrange(len(edited))
                    edited[at : at + 8] = edited[other : other + 8]
            if not edited:
                break
        yield bytes(edited)


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_edited_files_are_read_or_refused(read: Callable, kind: str) -> None:
    refused = 0
    for data in edits(SMALL_FILES[kind], 1000, seed=1):
        try:
            arrays = read(data)
        except WeightsError as error:
            assert isinstance(error, WeightsCorrupt | UnsafeCheckpoint | WeightsMismatch)  # noqa: PT017
            refused += 1
        else:
            assert all(type(name) is str and type(array) is np.ndarray for name, array in arrays.items())
    assert refused > 300


@pytest.mark.parametrize("kind", ["zip", "legacy", "npy"])
def test_edited_pickles_are_read_or_refused(read: Callable, kind: str) -> None:
    """The pickle is edited before it is put in its container, so that no checksum hides it."""
    original = SMALL_FILES["npy"][128:] if kind == "npy" else pickled(dictionary(SMALL_STATE))
    refused = 0
    for contents in edits(original, 1000, seed=2):
        files = {"zip": zip_file, "legacy": legacy_file, "npy": lambda contents, _: npy_file(contents)}
        try:
            read(files[kind](contents, SMALL_RECORDS))
        except (WeightsCorrupt, UnsafeCheckpoint, WeightsMismatch):
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor("8", (4,), (1,), stored=3), "outside its storage"),
        (tensor("8", (3,), (1,), offset=1, stored=3), "outside its storage"),
        (tensor("8", (2, 2), (2, 1), stored=3), "outside its storage"),
        (tensor("8", (3,), (-1,), offset=2, stored=3), "impossible layout"),
        (tensor("8", (3,), (1,), offset=-1, stored=3), "impossible layout"),
        (tensor("8", (3,), (1, 1), stored=3), "impossible layout"),
        (tensor("8", (-3,), (1,), stored=3), "impossible shape"),
        (tensor("8", (1,) * 33, (1,) * 33, stored=3), "at most 32"),
        (tensor("8", (2,), (1,), stored=3, view=(("v", 2, 2),)), "the storage '8' has an impossible size or view"),
        (tensor("8", (2,), (1,), stored=3, view=(("v", 2, 1),)), "outside its storage"),
        (tensor("8", (2,), (1,), stored=2), "not have the size"),
        (tensor("8", (2,), (1,), stored=-2), "size or view"),
        (tensor("nowhere", (2,), (1,), stored=2), "no entry 'model/data/nowhere'"),
        (tensor("8", (2,), (1,), stored=3, kind="DoubleStorage"), "not have the size"),
        (call(named("torch._utils", "_rebuild_tensor_v2"), plain(1), plain(2)), "wrong arguments"),
        (
            call(named("torch._utils", "_rebuild_parameter"), plain(1), plain(2), plain(3)),
            "does not contain a tensor",
        ),
        (b"h\5", "pickle is invalid"),
        (b"\xff", "0xff"),
    ],
)
def test_impossible_tensors(read: Callable, value: bytes, message: str) -> None:
    with pytest.raises(WeightsCorrupt, match=message):
        read(zip_file(pickled(dictionary({"w": value})), SMALL_RECORDS))


def test_legacy_storages_must_match(read: Callable) -> None:
    contents = pickled(dictionary(SMALL_STATE))
    for keys in (["7"], ["7", "8", "9"], ["7", "7"], [7, 8]):
        data = legacy_file(contents, {}).replace(pickle.dumps([], 2), pickle.dumps(keys, 2))
        data += b"".join(struct.pack("<q", len(record) // 4) + record for record in SMALL_RECORDS.values())
        with pytest.raises(WeightsCorrupt):
            read(data)
    with pytest.raises(WeightsCorrupt, match="not have the size"):
        read(legacy_file(contents, SMALL_RECORDS | {"7": floats(1, 2, 3)}))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(2, complex), "type 'c16'"),
        (np.zeros(2, "M8[s]"), "neither a plain number|the type 'M8'"),
        (np.zeros(2, [("x", "f4")]), "neither a plain number"),
        (np.array(["text"]), "type 'U4'"),
        (np.array([{}]), "type 'O8'"),
    ],
)
def test_arrays_of_other_things(read: Callable, array: np.ndarray, message: str) -> None:
    with pytest.raises(WeightsCorrupt, match=message):
        read(npy_of({"a": array}))


# Archives that lie.


def test_torchscript_is_recognised(read: Callable) -> None:
    buffer = io.BytesIO(SMALL_FILES["zip"])
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("model/constants.pkl", pickled(b"}"))
    with pytest.raises(WeightsMismatch, match="TorchScript"):
        read(buffer.getvalue())


def test_duplicate_names_are_refused(read: Callable) -> None:
    data = zip_file(pickled(dictionary(SMALL_STATE)), {**SMALL_RECORDS, "9": floats(4, 3, 2, 1)})
    with pytest.raises(WeightsCorrupt, match="two entries named 'model/data/7'"):
        read(data.replace(b"model/data/9", b"model/data/7"))


def test_sizes_must_agree(read: Callable) -> None:
    """The directory says other sizes, checksum, method or place than the local header."""
    data = SMALL_FILES["zip"]
    entry = data.index(b"PK\1\2")
    for field, value in ((10, 8), (16, 1), (20, 5), (24, 5), (42, 1)):
        lying = bytearray(data)
        struct.pack_into("<H" if field == 10 else "<I", lying, entry + field, value)
        with pytest.raises(WeightsCorrupt, match="zip"):
            read(bytes(lying))


def test_encrypted_entries_are_refused(read: Callable) -> None:
    data = bytearray(SMALL_FILES["zip"])
    data[data.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(WeightsCorrupt, match="encrypted"):
        read(bytes(data))


def with_directory(local: bytes, entries: list[bytes]) -> bytes:
    directory = b"".join(entries)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), len(local), 0)
    return local + directory + end


def directory_of(data: bytes) -> tuple[bytes, list[bytes]]:
    """What comes before the directory of a zip archive, and the directory's entries."""
    start = position = data.index(b"PK\1\2")
    entries = []
    while data[position : position + 4] == b"PK\1\2":
        length = 46 + sum(struct.unpack_from("<3H", data, position + 28))
        entries.append(data[position : position + length])
        position += length
    return data[:start], entries


def overlapping_archive(copies: int) -> bytes:
    """Many entries that inflate the same half megabyte, the idea of David Fifield's zip bombs."""
    data = zip_file(pickled(b"}"), {"00000": bytes(500_000)}, compression=zipfile.ZIP_DEFLATED)
    local, entries = directory_of(data)
    (entry,) = (entry for entry in entries if b"data/00000" in entry)
    return with_directory(local, entries + [entry.replace(b"00000", b"%05d" % (i + 1)) for i in range(copies)])


def test_overlapping_entries_are_refused(read: Callable) -> None:
    """An entry whose data include the next entry, local header and all."""
    local, entries = directory_of(SMALL_FILES["zip"])
    (index,) = (index for index, entry in enumerate(entries) if b"data/7" in entry)
    here, following = (struct.unpack_from("<I", entry, 42)[0] for entry in entries[index : index + 2])
    reach = following - here
    wider = bytearray(entries[index])
    struct.pack_into("<2I", wider, 20, reach, reach)
    entries[index] = bytes(wider)
    local = local[: here + 18] + struct.pack("<2I", reach, reach) + local[here + 26 :]
    with pytest.raises(WeightsCorrupt, match="entries of its zip archive overlap"):
        read(with_directory(local, entries))
    with pytest.raises(WeightsCorrupt, match="not where the directory says"):
        read(overlapping_archive(2))


# Hostile pickles: a sentinel file shows whether anything ran.


def hostile_values(command: str, code: str) -> dict[str, bytes]:
    """Opcodes, by what they try; `command` is one for the shell, `code` a Python expression."""
    stack_global = plain("posix") + plain("system") + b"\x93"
    float_storage = named("torch", "FloatStorage")
    return {
        "os.system": call(named("os", "system"), plain(command)),
        "posix.system": call(named("posix", "system"), plain(command)),
        "stack global": call(stack_global, plain(command)),
        "eval": call(named("builtins", "eval"), plain(code)),
        "python 2's eval": call(named("__builtin__", "eval"), plain(code)),
        "exec": call(named("builtins", "exec"), plain(code)),
        "inst": b"(" + plain(command) + b"iposix\nsystem\n",
        "obj": b"(" + named("posix", "system") + plain(command) + b"o",
        "newobj": named("subprocess", "Popen") + plain(([*command.split()],)) + b"\x81",
        "newobj of an allowed name": ORDERED_DICT + b")\x81",
        "newobj_ex": named("subprocess", "Popen") + plain((command.split(),)) + b"}\x92",
        "numpy.load": call(named("numpy", "load"), plain("/dev/null"), b"N", b"\x88"),
        "load_from_bytes": call(named("torch.storage", "_load_from_bytes"), plain("x")),
        "torch.load": call(named("torch", "load"), plain("/dev/null")),
        "copyreg": call(named("copyreg", "_reconstructor"), named("os", "_wrap_close"), b"N", b"N"),
        "copyreg extension": b"\x82\1",
        "copyreg extension, two bytes": b"\x83\1\0",
        "partial": call(named("functools", "partial"), named("os", "system"), plain(command)),
        "getattr": call(named("builtins", "getattr"), ORDERED_DICT, plain("__init__")),
        "attribute chain": call(named("collections", "OrderedDict.fromkeys"), plain("a")),
        "dotted module": call(named("torch", "_utils._rebuild_tensor_v2.__globals__"), plain("a")),
        "state of a name": ORDERED_DICT + plain({"__reduce__": 1}) + b"b",
        "state of a list": b"]" + plain({"__setstate__": 1}) + b"b",
        "state of a number": b"K\1" + plain({"__class__": 1}) + b"b",
        "state by slots": float_storage + plain((None, {"dtype": 1})) + b"b",
        "call of a list": call(b"]", plain(1)),
        "call of a storage type": call(float_storage, plain(2**40)),
        "call of a result": call(call(ORDERED_DICT), plain(1)),
        "persistent id: text": plain("os.system") + b"Q",
        "persistent id: module": identity(plain("module"), float_storage, plain("a"), plain("b")),
        "persistent id: line": b"Pos.system\n",
        "persistent id: class": identity(plain("storage"), ORDERED_DICT, plain("8"), plain("cpu"), plain(3)),
        "encode by another codec": call(named("_codecs", "encode"), plain("x"), plain("idna")),
        "decode": call(named("_codecs", "decode"), plain("x"), plain("zlib")),
        "long integer": b"\x8b" + struct.pack("<i", 4) + bytes(4),
        "out-of-band buffer": b"\x97",
        "webbrowser": call(named("webbrowser", "open"), plain("file:///dev/null")),
        "our own code": call(named("rlpips_jax.weights.pytorch", "write_checkpoint"), plain("x"), b"}"),
    }


LIVE = ("os.system", "posix.system", "stack global", "eval", "inst", "obj")
HOSTILE = tuple(hostile_values("", ""))


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "something-ran"


def hostile_value(name: str, sentinel: Path) -> bytes:
    return hostile_values(f"touch {sentinel}", f"__import__('pathlib').Path({str(sentinel)!r}).touch()")[name]


@pytest.mark.skipif(os.name != "posix", reason="the payloads are for POSIX")
@pytest.mark.parametrize("name", LIVE)
def test_the_payloads_are_live(name: str, sentinel: Path) -> None:
    """Python's own unpickler does run them: that nothing runs here is due to the reader."""
    pickle.loads(pickled(hostile_value(name, sentinel)))
    assert sentinel.exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_run_nothing(read: Callable, name: str, sentinel: Path) -> None:
    value = hostile_value(name, sentinel)
    modules = set(sys.modules)
    for contents in (pickled(value), pickled(dictionary({"w": value})), pickled(b"]" + value + b"a")):
        head = pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2)
        files = [
            zip_file(contents, SMALL_RECORDS),
            legacy_file(contents, SMALL_RECORDS),
            npy_file(contents),
            contents,  # in place of the magic number
            head + contents,  # of the platform
            legacy_file(pickled(b"}"), {}).replace(pickle.dumps([], 2), contents),  # of the storage keys
        ]
        for data in files:
            with pytest.raises(UnsafeCheckpoint, match=r"is refused: .*Nothing in it was run"):
                read(data)
    assert not sentinel.exists()
    assert set(sys.modules) - modules <= {"pickletools"}


def test_refusals_name_what_was_asked_for(read: Callable) -> None:
    for module, name in (("os", "system"), ("builtins", "getattr"), ("torch", "_utils.x"), ("numpy", "load")):
        with pytest.raises(UnsafeCheckpoint, match=re.escape(f"asks for '{module}.{name}'")):
            read(zip_file(pickled(call(named(module, name))), {}))


def test_messages_are_short_and_printable(read: Callable) -> None:
    with pytest.raises(UnsafeCheckpoint) as caught:
        read(zip_file(pickled(plain("\x1b[31m" + "x" * 10_000) + plain("\u202etxt") + b"\x93"), {}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


# Bombs: read under a limit of memory.


def tensors_sharing(count: int, length: int) -> bytes:
    shared = vector("0", length) + b"q\1"
    return b"}(" + plain("first") + shared + b"".join(plain(f"t{i}") + b"h\1" for i in range(count)) + b"u"


def bombs() -> dict[str, bytes]:
    big = 3_000_000
    megabyte = {"0": bytes(1 << 20)}
    laughs = b"()q\0" + b"h\0h\0\x86q\0" * 60 + b"t"
    pairs = b"".join(b"](" + plain(i) + b"Ne" for i in range(10_000))
    reconstruct = named("numpy.core.multiarray", "_reconstruct")
    array = call(reconstruct, named("numpy", "ndarray"), plain((0,)), plain("b"))
    bytes_type = call(named("numpy", "dtype"), plain("u1"), plain(False), plain(True))

    def array_of(shape: tuple[int, ...], data: bytes) -> bytes:
        return array + b"(K\1" + plain(shape) + bytes_type + b"\x89" + data + b"tb"

    values = {
        "claimed bytes": b"\x8e" + struct.pack("<Q", 2**62),
        "claimed bytes, 2 GB": b"B" + struct.pack("<I", 2**31),
        "claimed text": b"\x8d" + struct.pack("<Q", 2**62),
        "claimed string": b"T" + struct.pack("<i", -1),
        "claimed frame": b"\x95" + struct.pack("<Q", 2**60) + b"N",
        "claimed memo": b"Nr" + struct.pack("<I", 2**32 - 1),
        "dictionaries": b"}" * big,
        "lists": b"]" * big,
        "marks": b"(" * big,
        "memo": b"N" + b"\x94" * big,
        "numbers": b"M\xff\xff" * big,
        "floats": (b"G" + bytes(8)) * (big // 2),
        "texts": b"".join(b"\x8c\4%04d" % (i % 10_000) for i in range(big // 6)),
        "nested lists": b"]" * 30_000 + b"a" * 29_999,
        "nested tuples": b")" + b"\x85" * 60_000,
        "nested key": b"})" + b"\x85" * 60_000 + b"Ns",
        "nested dictionaries": b"}" + (plain("a") + b"}") * 15_000 + b"s" * 15_000,
        "laughs": laughs,
        "laughs beside a tensor": dictionary({"a": laughs, "w": vector("0", 1 << 18)}),
        "self-containing list": dictionary({"a": b"]q\0h\0a", "w": vector("0", 1 << 18)}),
        "self-containing dictionary": b"}q\0" + plain("state_dict") + b"h\0s",
        "emoji": plain("a" * 20_000_000 + "\N{GRINNING FACE}"),
        "expanded tensor": dictionary({"w": tensor("0", (2**40,), (0,), stored=1 << 18)}),
        "expanded dimensions": dictionary({"w": tensor("0", (1000,) * 6, (0,) * 6, stored=1 << 18)}),
        "overlapping tensor": dictionary({"w": tensor("0", (2**17, 2**17), (1, 1), stored=1 << 18)}),
        "empty but vast tensor": dictionary({"w": tensor("0", (0, 2**62), (1, 1), stored=1 << 18)}),
        "huge numbers": dictionary({"w": tensor("0", (2**120,) * 32, (2**120,) * 32, stored=2**120)}),
        "shared storage": tensors_sharing(1000, 1 << 18),
        "vast storage": dictionary({"w": vector("0", 2**61)}),
        "copied pairs": b"](" + pairs + b"eq\1" + call(ORDERED_DICT, b"h\1") * 3000,
        "vast array": dictionary({"w": array_of((2**40,), plain("x"))}),
        "array of objects": dictionary({"w": array_of((2**40,), b"]")}),
        "shared array data": dictionary(
            {"a": array_of((1 << 20,), plain("\xff" * (1 << 20)) + b"q\1")}
            | {f"a{i}": array_of((1 << 20,), b"h\1") for i in range(600)}
        ),
    }
    files = {}
    for name, value in values.items():
        files[f"{name}, zip"] = zip_file(pickled(value), megabyte)
        files[f"{name}, legacy"] = legacy_file(pickled(value), megabyte)
        files[f"{name}, npy"] = npy_file(pickled(array_of((), b"](" + value + b"e").replace(b"u1", b"O8", 1)))
    zeros = pickled(dictionary({"w": vector("0", 25_000_000)}))
    files["deflated zeros"] = zip_file(zeros, {"0": bytes(100_000_000)}, compression=8)
    one = pickled(dictionary({"w": vector("0", 1)}))
    files["deflated zeros around a tensor"] = zip_file(one, {"0": bytes(100_000_000)}, compression=8)
    files["deflated pickle"] = zip_file(b"\x80\2" + b"}" * 50_000_000, {}, compression=8)
    files["deflated pickle within bounds"] = zip_file(b"\x80\2" + b"}" * 1_000_000, {}, compression=8)
    files["entries"] = zip_file(pickled(b"}"), {str(i): b"" for i in range(40_000)})
    files["most entries"] = zip_file(pickled(b"}"), {str(i): b"" for i in range(19_000)})
    files["overlapping entries"] = overlapping_archive(5_000)
    files["claimed entries"] = with_directory(b"PK\3\4", [b"PK\1\2" + b"\xff" * 42])
    wide_extra = b"PK\1\2" + bytes(24) + struct.pack("<3H", 1, 65535, 0) + bytes(12 + 1 + 65535)
    files["extra fields"] = with_directory(b"PK\3\4", [wide_extra] * 50)
    return files


def sound_files() -> dict[str, bytes]:
    """Files whose reading takes the most memory for their size, and which must be read nonetheless."""
    length = 2_000_000
    noise = np.random.RandomState(0).standard_normal(length).astype(np.float32)
    half = np.where(np.arange(length) % 2000 < 1000, noise, 0).astype(np.float32)
    contents, records = pickled(dictionary({"w": vector("0", length)})), {"0": noise.tobytes()}
    transposed = tensor("0", (2000, 1000), (1, 2000), stored=length)
    return {
        "one tensor, zip": zip_file(contents, records),
        "one tensor, legacy": legacy_file(contents, records),
        "two of one storage": zip_file(pickled(dictionary({"w": transposed, "v": vector("0", length)})), records),
        "deflated": zip_file(contents, {"0": half.tobytes()}, compression=zipfile.ZIP_DEFLATED),
        "Latin-1 text": npy_of({"w": noise}),
        "ASCII text": npy_of({"w": np.full(4 * length, ord("a"), np.uint8)}),
        "bytes": npy_of({"w": noise}, 4),
    }


JUDGE = """
import json, os, resource, sys
from rlpips_jax.errors import WeightsError
from rlpips_jax.weights.pytorch import read_checkpoint

def attempt(path, factor):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limit = used + factor * os.path.getsize(path) + (16 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    try:
        if path.endswith("control"):
            return "read" if bytes(5 * os.path.getsize(path) + (17 << 20)) else ""
        read_checkpoint(path)
        return "read"
    except WeightsError as error:
        return type(error).__name__
    except BaseException as error:
        return "FAILED with " + repr(error)[:200]

for path in sys.argv[1:]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = attempt(path, 4)
        os.write(writing, outcome.encode())
        os._exit(0)
    os.close(writing)
    outcome = os.read(reading, 1000).decode()
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    print(json.dumps([path, outcome or f"DIED with status {status}"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
def test_bombs_stay_within_memory_and_time(tmp_path: Path) -> None:
    """A process reads each file; it may take four times its size and 16 MiB more, and 20 s of CPU time."""
    (tmp_path / "control").write_bytes(bytes(1 << 20))
    sound = sound_files()
    names = {}
    for index, (name, data) in enumerate((bombs() | sound).items()):
        path = tmp_path / f"{index}.pth"
        path.write_bytes(data)
        names[str(path)] = name
    root = str(Path(rlpips_jax.__file__).parents[1])
    judged = subprocess.run(
        [sys.executable, "-c", JUDGE, str(tmp_path / "control"), *names],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (_, control), *outcomes = [json.loads(line) for line in judged.stdout.splitlines()]
    assert control == "FAILED with MemoryError()"
    assert len(outcomes) == len(names)
    answers = {names[path]: outcome for path, outcome in outcomes}
    allowed = {"WeightsCorrupt", "UnsafeCheckpoint", "WeightsMismatch", "read"}
    assert {name: answer for name, answer in answers.items() if answer not in allowed} == {}
    read = {name for name, answer in answers.items() if answer == "read"}
    harmless = {f"laughs beside a tensor, {kind}" for kind in ("zip", "legacy")}
    harmless |= {f"self-containing list, {kind}" for kind in ("zip", "legacy")}
    assert read == {*sound, *harmless, "most entries"}


# PyTorch itself as the reference.


@pytest.fixture
def torch() -> ModuleType:
    import torch

    return torch


@pytest.mark.torch
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_as_torch_does(torch: ModuleType, tmp_path: Path, new_format: bool, protocol: int) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    state = {
        "contiguous": base,
        "transposed": base.T,
        "sliced": base[1:, ::2],
        "expanded": base[:1].expand(3, 6),
        "channels last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "bool": base > 0,
    }
    for name in (
        "float64",
        "float16",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    ):
        state[name] = (base.abs() * 9).to(getattr(torch, name))
    bits = {
        "bfloat16": base.to(torch.bfloat16),
        "float8_e4m3fn": base.to(torch.float8_e4m3fn),
        "float8_e5m2": base.to(torch.float8_e5m2),
    }
    path = tmp_path / "a.pth"
    options = {"_use_new_zipfile_serialization": new_format, "pickle_protocol": protocol}
    torch.save({**state, **bits, "epoch": 3}, path, **options)
    wanted = {name: np.array(value.detach().numpy(), order="C") for name, value in state.items()}
    for name, value in bits.items():
        raw = value.view(torch.int16 if name == "bfloat16" else torch.uint8).numpy()
        wanted[name] = raw.view(getattr(ml_dtypes, name))
    assert_same(read_checkpoint(path), wanted)


@pytest.mark.torch
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_reads_a_module_and_its_training(torch: ModuleType, tmp_path: Path, new_format: bool) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2))
    assert hasattr(network.state_dict(), "_metadata")
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    wanted = {name: value.numpy() for name, value in network.state_dict().items()}
    training = {
        "epoch": 1,
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": np.float64(1),
    }
    for contents in (network.state_dict(), training):
        torch.save(contents, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
        prefix = "" if contents is not training else "state_dict."
        found = read_checkpoint(tmp_path / "a.pth", keep=lambda name, prefix=prefix: name.startswith(prefix))
        assert_same(found, {f"{prefix}{name}": array for name, array in wanted.items()})
    torch.save(network, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(UnsafeCheckpoint, match=r"torch\.nn\.modules"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.torch
@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_is_written(torch: ModuleType, tmp_path: Path, mapped: bool) -> None:
    rng = np.random.RandomState(0)
    tensors = {f"{dtype}": (rng.standard_normal((2, 3, 4)) * 9).astype(dtype) for dtype in NUMPY_DTYPES}
    tensors |= {
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "ünï.cødé": np.ones(2),
        "large": np.zeros(70_000),
    }
    write_checkpoint(tmp_path / "a.pth", {**tensors, "bfloat16": np.array([1, -2], ml_dtypes.bfloat16)})
    loaded = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mapped)
    bfloat16 = loaded.pop("bfloat16")
    assert (bfloat16.dtype, bfloat16.tolist()) == (torch.bfloat16, [1, -2])
    assert list(loaded) == list(tensors)
    for name, value in loaded.items():
        assert value.is_contiguous()
        assert value.numpy().dtype == tensors[name].dtype
        np.testing.assert_array_equal(value.numpy(), tensors[name])


@pytest.mark.torch
@pytest.mark.shared
def test_the_published_weights(torch: ModuleType, shared: Path) -> None:
    paths = sorted([*shared.glob("weights/**/*.pth"), *shared.glob("weights/**/*.npy")])
    assert len(paths) >= 13
    for path in paths:
        if path.suffix == ".npy":
            wanted = np.load(path, allow_pickle=True, encoding="latin1").item()
        else:
            wanted = {name: value.numpy() for name, value in torch.load(path, map_location="cpu").items()}
        assert_same(read_checkpoint(path), wanted)
        some = list(wanted)[::3]
        assert_same(read_checkpoint(path, keep=some.__contains__), {name: wanted[name] for name in some})
