"""Arrays of `.npz` files: read when asked for; their declared sizes are checked first."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation import read_npz
from rlpips_jax.files.npz import Npz


class Wrong(Exception):
    pass


def written(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/") + ".npy", content)
    return path


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b/c": np.array("text"), "d": np.asfortranarray(np.eye(3))}
    np.savez_compressed(tmp_path / "some.npz", allow_pickle=False, **arrays)
    found = Npz(tmp_path / "some.npz", Wrong)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found.declared(name) == (array.shape, array.dtype)
    assert "absent" not in found


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "some.npz", good=npy(np.arange(3)), bad=b"nothing")
    np.testing.assert_array_equal(Npz(path, Wrong)["good"], [0, 1, 2])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        npy(np.arange(9))[:-1],
        npy(np.arange(9)) + b"0",
        npy(np.arange(9)).replace(b"(9,)", b"(9e9,)"),
        npy(np.arange(9)).replace(b"(9,), ", b"(99999999999999,), "),
        b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 0xFFFF,
        npy(np.array([{}], object), allow_pickle=True),
    ],
    ids=["empty", "text", "cut", "long", "float", "huge", "nested", "pickle"],
)
def test_a_malformed_array_is_one_documented_error(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "some.npz", part__ref=content)
    with pytest.raises(Wrong, match=r"cannot be read as an \.npz file"):
        Npz(path, Wrong)["part/ref"]
    with pytest.raises(TripletsError):
        read_npz(path)


def test_images_that_do_not_fit_together_are_refused_before_they_are_read(tmp_path: Path) -> None:
    image, header = np.zeros((2, 8, 8, 3), np.uint8), npy(np.zeros((2, 8, 9, 3), np.uint8))
    path = written(tmp_path / "some.npz", ref=npy(image), p0=npy(image), p1=header, judge=npy(np.ones(2)))
    with pytest.raises(TripletsError, match=r"of one shape, got .*p1 uint8 \(2, 8, 9, 3\)"):
        read_npz(path)


def test_a_malformed_source_is_told(tmp_path: Path) -> None:
    image = np.zeros((1, 8, 8, 3), np.uint8)
    parts = {"ref": image, "p0": image, "p1": image, "judge": np.ones(1), "source": np.array("[" * 100_000)}
    np.savez(tmp_path / "some.npz", allow_pickle=False, **parts)
    with pytest.raises(TripletsError, match="source does not say how the set was made"):
        read_npz(tmp_path / "some.npz")
