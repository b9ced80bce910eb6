"""The library's own files: what is written is read, damage of any bit shows, and writing is all or nothing."""

import json
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import rlpips_jax
from rlpips_jax.backbones import Convolution, Pool, Sequential
from rlpips_jax.errors import WeightsCorrupt, WeightsMismatch
from rlpips_jax.ops.pooling import Pooling
from rlpips_jax.weights import native
from rlpips_jax.weights.parameters import digest, flatten, with_heads

MINI = Sequential("mini", (Convolution(0, 4, 3), Pool(1), Convolution(2, 3, 1)), Pooling("max", 2, 2), tapped=(0, 2))


def drawn(seed: int = 0) -> dict:
    r = np.random.default_rng(seed)
    return {
        "backbone": {
            "features_0": {
                "kernel": r.standard_normal((3, 3, 3, 4), np.float32),
                "bias": r.random(4, np.float32),
            },
            "features_2": {
                "kernel": r.standard_normal((1, 1, 4, 3), np.float32),
                "bias": r.random(3, np.float32),
            },
        },
        "heads": (r.random(4, np.float32), r.random(3, np.float32)),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mini.safetensors"
    native.write(path, drawn(), with_heads(MINI), metric="lpips-alex", source="a test", citation="Kettunen, Härkönen")
    return path


def assert_same(one: dict, other: dict) -> None:
    first, second = dict(flatten(one)), dict(flatten(other))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert second[name].dtype == np.float32


def test_what_is_written_is_read(path: Path) -> None:
    parameters, metadata = native.read(path, with_heads(MINI))
    assert_same(drawn(), parameters)
    assert metadata == native.read_metadata(path)
    assert metadata == {
        "format": "rlpips-jax/1",
        "architecture": "mini",
        "taps": "[0, 2]",
        "library_version": rlpips_jax.__version__,
        "parameters_sha256": digest(parameters),
        "metric": "lpips-alex",
        "source": "a test",
        "citation": "Kettunen, Härkönen",
    }


WRITER = """
import sys
from pathlib import Path
from rlpips_jax.backbones import TINY
from rlpips_jax.weights import native
from rlpips_jax.weights.parameters import with_heads
from rlpips_jax.weights.store import SHIPPED

parameters, metadata = native.read(SHIPPED / "lpips-tiny.safetensors", with_heads(TINY))
native.write(Path(sys.argv[1]), parameters, with_heads(TINY), **{name: metadata[name] for name in set(metadata)})
"""


@pytest.mark.slow
def test_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", WRITER, str(tmp_path / seed)], check=True, env=os.environ | {"PYTHONHASHSEED": seed}
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_header_is_sorted_and_the_tensors_are_aligned(path: Path) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert list(header) == sorted(header)
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    for _ in range(5):
        native.write(
            path, drawn(), with_heads(MINI), citation="Kettunen, Härkönen", source="a test", metric="lpips-alex"
        )
        assert path.read_bytes() == content


def test_floors_are_kept(tmp_path: Path) -> None:
    path = tmp_path
    floors = {"floors": (np.float32(0), np.float32(0.1))}
    for number, parameters in enumerate((drawn() | floors, {"heads": drawn()["heads"]} | floors, floors)):
        path = tmp_path / f"{number}.safetensors"
        native.write(path, parameters, with_heads(MINI))
        read, metadata = native.read(path, with_heads(MINI))
        assert_same(parameters, read)
        assert metadata["parameters_sha256"] == digest(parameters)
    swapped = replace(MINI, layers=(*MINI.layers, Convolution(3, 3, 1)), tapped=(0, 3))
    with pytest.raises(WeightsMismatch, match=r"holds floors for the layers \[0, 2\] of 'mini', not for \[0, 3\]"):
        native.read(path, with_heads(swapped))


def test_other_programs_can_read_it(path: Path) -> None:
    with safe_open(path, framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("heads.1"), drawn()["heads"][1])
        assert file.metadata()["source"] == "a test"


@pytest.mark.parametrize("half", ["backbone", "heads"])
def test_either_half_alone(half: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "half.safetensors"
    native.write(path, {half: drawn()[half]}, with_heads(MINI))
    parameters, metadata = native.read(path, with_heads(MINI))
    assert_same({half: drawn()[half]}, parameters)
    assert "metric" not in metadata


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, jnp.float32])
def test_arrays_of_any_kind_become_float32(dtype: type, tmp_path: Path) -> None:
    other = jax.tree.map(lambda leaf: jnp.asarray(leaf) if dtype is jnp.float32 else leaf.astype(dtype), drawn())
    native.write(tmp_path / "a.safetensors", other, with_heads(MINI))
    expected = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float32), other)
    assert_same(expected, native.read(tmp_path / "a.safetensors", with_heads(MINI))[0])


def test_metadata_can_be_handed_on_but_describe_the_new_file(path: Path) -> None:
    other = path.with_name("other.safetensors")
    native.write(other, drawn(1), with_heads(MINI), **native.read_metadata(path))
    parameters, metadata = native.read(other, with_heads(MINI))
    assert_same(drawn(1), parameters)
    assert metadata == native.read_metadata(path) | {"parameters_sha256": digest(drawn(1))}
    native.write(other, drawn(), with_heads(MINI), format="other", architecture="other", metadata_sha256="0", taps="[]")
    assert_same(drawn(), native.read(other, with_heads(MINI))[0])


@pytest.mark.slow
def test_every_flipped_bit_shows(path: Path) -> None:
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    # Every bit of the length, a quarter of the header, and some of the tensors.
    places = [*range(64), *random.Random(0).sample(range(64, header * 8), header * 2)]
    places += [*random.Random(0).sample(range(header * 8, len(content) * 8), 200)]
    damaged = path.with_name("damaged.safetensors")
    for place in places:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        damaged.write_bytes(changed)
        with pytest.raises(WeightsCorrupt):
            native.read(damaged, with_heads(MINI))


def test_metadata_alone_show_damage_too(path: Path) -> None:
    content = path.read_bytes()
    damaged = path.with_name("damaged.safetensors")
    for word in (b"lpips-alex", b"a test", b"mini", b"rlpips-jax/1", b"[0, 2]", b"metadata_sha256", b"metric"):
        assert content.count(word) == 1
        place = content.index(word)
        for offset in range(len(word)):
            changed = bytearray(content)
            changed[place + offset] ^= 1
            damaged.write_bytes(changed)
            with pytest.raises(WeightsCorrupt):
                native.read_metadata(damaged)


def test_every_cut_shows(path: Path) -> None:
    content = path.read_bytes()
    damaged = path.with_name("damaged.safetensors")
    for length in [*range(32), *range(32, len(content), 17), len(content) - 1]:
        damaged.write_bytes(content[:length])
        with pytest.raises(WeightsCorrupt, match="delete it and get it again"):
            native.read(damaged, with_heads(MINI))
    for more in (b"\0", b"}", bytes(4096)):
        damaged.write_bytes(content + more)
        with pytest.raises(WeightsCorrupt):
            native.read(damaged, with_heads(MINI))


@pytest.mark.parametrize("content", [b"", b"\x80\2}.", b"<!DOCTYPE html>", bytes(1000), b"\xff" * 100])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsCorrupt, match=r"a\.safetensors is not a readable safetensors file"):
        native.read(path, with_heads(MINI))


@pytest.mark.parametrize(
    ("metadata", "found"), [(None, "not stated"), ({"format": "pt"}, "pt"), ({"format": "rlpips-jax/9"}, "jax/9")]
)
def test_safetensors_of_others_are_refused(metadata: dict[str, str] | None, found: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(dict(flatten(drawn())), path, metadata)
    for read in (lambda: native.read(path, with_heads(MINI)), lambda: native.read_metadata(path)):
        with pytest.raises(WeightsCorrupt, match=f"its format is '.*{found}', not 'rlpips-jax/1'"):
            read()


def test_a_seal_is_required(path: Path) -> None:
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    del metadata["metadata_sha256"]
    save_file(dict(flatten(drawn())), path, metadata)
    with pytest.raises(WeightsCorrupt, match="its content does not match its sha256"):
        native.read(path, with_heads(MINI))


def test_another_network_is_refused(path: Path) -> None:
    with pytest.raises(WeightsMismatch, match="holds weights for the network 'mini', not 'other'"):
        native.read(path, with_heads(replace(MINI, name="other")))
    with pytest.raises(WeightsMismatch, match=r"'backbone\.features_0\.kernel' has shape"):
        native.read(path, with_heads(replace(MINI, layers=(Convolution(0, 4, 5), *MINI.layers[1:]))))
    swapped = replace(MINI, layers=(Convolution(0, 4, 3), Convolution(2, 3, 1), Convolution(3, 3, 1)), tapped=(0, 3))
    native.write(path, {"heads": drawn()["heads"]}, with_heads(MINI))
    with pytest.raises(WeightsMismatch, match=r"heads for the layers \[0, 2\] of 'mini', not for \[0, 3\]"):
        native.read(path, with_heads(swapped))


def test_a_backbone_fits_other_taps(tmp_path: Path) -> None:
    path = tmp_path / "mini.safetensors"
    native.write(path, {"backbone": drawn()["backbone"]}, with_heads(MINI))
    other = replace(MINI, tapped=(2,), pooling=Pooling("average", 2, 2))
    assert_same({"backbone": drawn()["backbone"]}, native.read(path, with_heads(other))[0])


def test_what_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        native.read(tmp_path / "nowhere.safetensors", with_heads(MINI))
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(IsADirectoryError):
        native.read(tmp_path / "folder.safetensors", with_heads(MINI))


def _without(name: str) -> dict:
    parameters = drawn()
    del parameters["backbone"][name]
    return parameters


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "holds no tensors"),
        (_without("features_2"), r"missing 'backbone\.features_2\.kernel'"),
        (drawn() | {"heads": drawn()["heads"][:1]}, r"missing 'heads\.1'"),
        (drawn() | {"heads": tuple(-head for head in drawn()["heads"])}, "negative"),
        (drawn() | {"heads": tuple(head * np.nan for head in drawn()["heads"])}, "NaN"),
        (drawn() | {"floors": (np.float32(1), np.float32(-1))}, r"'floors\.1' has negative values"),
        (drawn() | {"floors": (np.float32(1),)}, r"missing 'floors\.1'"),
        (drawn() | {"ranking": {"kernel": np.ones(3)}}, r"left over 'ranking\.kernel'"),
    ],
)
def test_what_could_not_be_read_is_not_written(path: Path, parameters: dict, message: str) -> None:
    before = path.read_bytes()
    with pytest.raises(WeightsMismatch, match=message):
        native.write(path, parameters, with_heads(MINI))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(path: Path, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        native.write(path, drawn(1), with_heads(MINI))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_permissions_are_those_of_any_new_file(path: Path) -> None:
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_readers_see_one_whole_file_or_the_other(path: Path) -> None:
    """One thread goes on reading while others replace the file."""
    native.write(path, drawn(0), with_heads(MINI))
    known = {digest(drawn(seed)) for seed in range(2)}
    done = threading.Event()
    seen = set()

    def read() -> None:
        while not done.is_set():
            seen.add(digest(native.read(path, with_heads(MINI))[0]))

    with ThreadPoolExecutor(4) as pool:
        reader = pool.submit(read)
        writers = [pool.submit(native.write, path, drawn(index % 2), with_heads(MINI)) for index in range(40)]
        for writer in writers:
            writer.result()
        done.set()
        reader.result()
    assert seen <= known
    assert os.listdir(path.parent) == [path.name]
