"""BAPPS: built from a server, from archives and from folders; what is wrong with it is named, and nothing is left."""

import errno
import fcntl
import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlpips_jax.errors import ImageFileError, TripletsError
from rlpips_jax.evaluation.triplet_files import read_bapps
from training.data.bapps.bapps_dataset_builder import LOCK, prepare
from training.data.sources import RecordSource, materialise, read_pairs

VAL = {"traditional": 3, "cnn": 2, "superres": 1, "deblur": 1, "color": 1, "frameinterp": 1}
TRAIN = {"traditional": 5, "cnn": 4, "mix": 3}


def png(size: tuple[int, int] = (256, 256), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()


def npy(*values: float) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, np.float32))
    return file.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def left(data: Path) -> list[str]:
    """What lies in a folder of data sets, but for downloads, TFDS's own notes and the lock."""
    files = (path.relative_to(data) for path in data.rglob("*") if path.is_file() and path != data / LOCK)
    return [path.as_posix() for path in files if path.parts[0] != "downloads" and ".config" not in path.parts]


def published(path: Path) -> np.ndarray:
    """As the published loader reads a file: torchvision's Resize(64) of a Pillow image is this."""
    return np.asarray(Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))


@pytest.mark.slow
def test_built_from_a_server(server, tree, tmp_path):
    twoafc = prepare(tmp_path, "twoafc", base_url=server.url)
    jnd = prepare(tmp_path, "jnd", base_url=server.url)
    assert sorted(server.asked) == ["/jnd.tar.gz", "/twoafc_train.tar.gz", "/twoafc_val.tar.gz"]
    for portion, categories in (("train", TRAIN), ("val", VAL)):
        for category, count in categories.items():
            source = RecordSource(twoafc, f"{portion}_{category}")
            assert len(source) == count
            folder = tree / "2afc" / portion / category
            for index in range(count):
                example = source[index]
                for name, part in (("reference", "ref"), ("p0", "p0"), ("p1", "p1")):
                    np.testing.assert_array_equal(example[name], published(folder / part / f"{index:06d}.png"))
                assert type(example["judgment"]) is np.float32
                assert example["judgment"] == np.load(folder / "judge" / f"{index:06d}.npy")
    pairs = read_pairs(jnd, "val_traditional")
    folder = tree / "jnd" / "val" / "traditional"
    np.testing.assert_array_equal(pairs.p0, [published(folder / "p0" / f"{index:06d}.png") for index in range(3)])
    np.testing.assert_array_equal(pairs.p1, [published(folder / "p1" / f"{index:06d}.png") for index in range(3)])
    assert pairs.same.tolist() == [0, 0.25, 0.5]
    assert len(read_pairs(jnd, "val_cnn").same) == 2
    # Built again, it is read from where it is.
    assert prepare(tmp_path, "twoafc", base_url="http://127.0.0.1:9") == twoafc
    assert len(server.asked) == 3
    assert not list(tmp_path.rglob("unpacked"))


BUILDER = """
import sys, time
from pathlib import Path
from training.data.bapps.bapps_dataset_builder import prepare

data, url, own, others = sys.argv[1:]
Path(own).touch()
while not Path(others).exists():
    time.sleep(0.001)
print(prepare(data, base_url=url))
"""
"""Builds when another process is ready to do so too."""


@pytest.mark.slow
def test_of_two_processes_one_builds_and_the_other_waits(server, tmp_path):
    marks = [tmp_path / "one", tmp_path / "other"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, tmp_path / "data", server.url, own, others],
            cwd=Path(__file__).parents[3],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for own, others in (marks, reversed(marks))
    ]
    ended = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    folders = {out.strip() for out, _ in ended}
    assert folders == {str(tmp_path / "data" / "bapps" / "twoafc" / "1.0.0")}
    assert sum("building" in errors for _, errors in ended) == 1
    assert sorted(server.asked) == ["/twoafc_train.tar.gz", "/twoafc_val.tar.gz"]
    (folder,) = folders
    assert len(RecordSource(folder, "train_traditional")) == TRAIN["traditional"]


def test_without_locks_it_is_built_all_the_same(tree, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert len(RecordSource(prepare(tmp_path, manual_dir=tree), "val_cnn")) == VAL["cnn"]


def test_images_are_kept_as_they_are_and_the_set_is_read_as_from_folders(prepared, tree):
    source = RecordSource(prepared / "bapps" / "twoafc" / "1.0.0", "val_traditional", size=None)
    assert source[2]["p1"].shape == (256, 256, 3)
    np.testing.assert_array_equal(source[2]["p1"], np.asarray(Image.open(tree / "2afc/val/traditional/p1/000002.png")))
    triplets = materialise(RecordSource(prepared / "bapps" / "twoafc" / "1.0.0", "val_traditional"))
    expected = read_bapps(tree / "2afc" / "val" / "traditional")
    for name in ("reference", "p0", "p1", "judgment", "sure", "kinds"):
        np.testing.assert_array_equal(getattr(triplets, name), getattr(expected, name))
    assert triplets.source["sha256"] == expected.source["sha256"]


def test_an_archive_that_changed_is_refused(server, archives, tree, pack, tmp_path):
    server.folder = tmp_path / "served"
    shutil.copytree(archives, server.folder)
    prepare(tmp_path / "data", base_url=server.url, archives=["twoafc_val"])
    downloads = tmp_path / "data" / "downloads" / "bapps"
    hash_ = hashlib.sha256((archives / "twoafc_val.tar.gz").read_bytes()).hexdigest()
    assert (downloads / "bapps.sha256").read_text() == f"{hash_}  twoafc_val.tar.gz\n"

    shutil.rmtree(tmp_path / "data" / "bapps")
    (downloads / "twoafc_val.tar.gz").unlink()
    pack(server.folder / "twoafc_val.tar.gz", tree, "twoafc_val", {"val/cnn/judge/000001.npy": npy(1)})
    with pytest.raises(TripletsError, match=r"twoafc_val\.tar\.gz is not the .* recorded in .*bapps\.sha256"):
        prepare(tmp_path / "data", base_url=server.url, archives=["twoafc_val"])
    assert left(tmp_path / "data") == []
    assert not (downloads / "twoafc_val.tar.gz").exists()

    # The record outlives the archive: the true one is taken, and of this disk's copies too only the true one.
    server.folder = archives
    (downloads / "twoafc_val.tar.gz").write_bytes(b"changed on this disk")
    prepare(tmp_path / "data", base_url=server.url, archives=["twoafc_val"])
    assert (downloads / "twoafc_val.tar.gz").read_bytes() == (archives / "twoafc_val.tar.gz").read_bytes()


def test_a_mirror_is_named_by_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RLPIPS_BAPPS_URL", server.url)
    assert len(read_pairs(prepare(tmp_path, "jnd"), "val_cnn").same) == 2


def test_what_no_server_has_is_said(server, tmp_path):
    server.folder = tmp_path
    with pytest.raises(TripletsError, match=r"/jnd\.tar\.gz could not be downloaded: 404 .* as manual_dir"):
        prepare(tmp_path / "data", "jnd", base_url=server.url)
    assert left(tmp_path / "data") == []


def test_archives_fetched_by_hand(archives, tmp_path):
    by_hand = tmp_path / "by hand"
    by_hand.mkdir()
    shutil.copy(archives / "twoafc_val.tar.gz", by_hand)
    directory = prepare(tmp_path / "data", "twoafc", manual_dir=by_hand)
    assert sum(len(RecordSource(directory, f"val_{category}")) for category in VAL) == 9
    with pytest.raises(TripletsError, match=r"no split 'train_cnn', only val_.* build it again with the archive"):
        RecordSource(directory, "train_cnn")
    with pytest.raises(TripletsError, match=r"has none of jnd\.tar\.gz"):
        prepare(tmp_path / "data", "jnd", manual_dir=by_hand)
    with pytest.raises(TripletsError, match="has judgment, name, p0, p1, reference, not same: "):
        read_pairs(directory, "val_cnn")


def test_folders_extracted_by_hand(tree, tmp_path):
    # One category of another folder level, beside the pairs, whose folders have the same names.
    shutil.copytree(tree / "2afc" / "val" / "color", tmp_path / "here" / "x" / "val" / "color")
    shutil.copytree(tree / "jnd", tmp_path / "here" / "jnd")
    directory = prepare(tmp_path / "data", "twoafc", manual_dir=tmp_path / "here")
    assert len(RecordSource(directory, "val_color")) == 1
    with pytest.raises(TripletsError, match="only val_color"):
        RecordSource(directory, "val_cnn")
    assert len(read_pairs(prepare(tmp_path / "data", "jnd", manual_dir=tmp_path / "here"), "val_cnn").same) == 2


@pytest.mark.parametrize("prefix", ["2afc", "./dataset/2afc"])
def test_leading_folders_of_an_archive_do_not_matter(tree, tmp_path, prefix):
    with tarfile.open(tmp_path / "twoafc_val.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(tree / "2afc" / "val", f"{prefix}/val")
        hidden = tarfile.TarInfo(f"{prefix}/val/cnn/ref/._000000.png")
        archive.addfile(hidden, io.BytesIO(b""))
    directory = prepare(tmp_path / "data", manual_dir=tmp_path, archives=["twoafc_val"])
    assert len(RecordSource(directory, "val_cnn")) == 2


CHANGES = {
    "missing judgment": ({"val/cnn/judge/000001.npy": None}, r"cnn/judge/000001\.npy is missing; there is"),
    "missing image": ({"val/cnn/p1/000000.png": None}, r"cnn/p1/000000\.png is missing; there is"),
    "further judgment": ({"val/cnn/judge/000002.npy": npy(1)}, r"cnn/.*/000002\.png is missing; there is"),
    "damaged image": ({"val/deblur/ref/000000.png": png()[:200]}, r"deblur/ref/000000\.png cannot be read"),
    "no image": ({"val/deblur/p0/000000.png": b"text"}, r"deblur/p0/000000\.png is not an image"),
    "no PNG": ({"val/deblur/p0/000000.png": png(kind="JPEG")}, r"deblur/p0/000000\.png is not a PNG file"),
    "other size": ({"val/deblur/p0/000000.png": png((256, 200))}, r"deblur/p0/000000\.png is 200x256 pixels"),
    "two numbers": ({"val/color/judge/000000.npy": npy(0, 1)}, r"color/judge/000000\.npy is not a \.npy file of one"),
    "no fraction": ({"val/color/judge/000000.npy": npy(1.5)}, r"color/judge/000000\.npy holds 1\.5; a judgment is"),
    "not a number": ({"val/color/judge/000000.npy": npy(np.nan)}, r"color/judge/000000\.npy holds nan"),
    "no array": ({"val/color/judge/000000.npy": b"1"}, r"color/judge/000000\.npy is not a \.npy file"),
    "outside": ({"../outside.png": png()}, r"twoafc_val\.tar\.gz has a member '\.\./outside\.png', which lies outside"),
    "absolute": ({"/val/cnn/ref/000007.png": png()}, r"has a member '/val/cnn/ref/000007\.png', which lies outside"),
    "link": (
        {"x": link("val/cnn/ref/000002.png", "/etc/passwd")},
        r"member 'val/cnn/ref/000002\.png', which is a link",
    ),
    "too large": ({"val/cnn/ref/000007.png": bytes((1 << 22) + 1)}, r"member 'val/cnn/ref/000007\.png' of 4,194,305"),
    "twice": ({"x/val/cnn/ref/000000.png": png()}, r"has val/cnn/ref/000000\.png twice"),
}


@pytest.mark.parametrize(("changes", "words"), CHANGES.values(), ids=CHANGES)
def test_a_malformed_archive_is_named_and_leaves_nothing(pack, tree, tmp_path, changes, words):
    pack(tmp_path / "twoafc_val.tar.gz", tree, "twoafc_val", changes)
    with pytest.raises((TripletsError, ImageFileError), match=words) as raised:
        prepare(tmp_path / "data", manual_dir=tmp_path)
    # The place named is the archive, as the folder it was unpacked to is gone.
    assert str(raised.value).startswith(str(tmp_path / "twoafc_val.tar.gz"))
    assert "unpacked" not in str(raised.value)
    assert left(tmp_path / "data") == []
    assert not (tmp_path / "outside.png").exists()


def test_a_missing_category_is_named(tree, tmp_path):
    with tarfile.open(tmp_path / "jnd.tar.gz", "w:gz") as archive:
        archive.add(tree / "jnd" / "val" / "cnn", "jnd/val/cnn")
    with pytest.raises(TripletsError, match=r"jnd\.tar\.gz has no folder val/traditional"):
        prepare(tmp_path / "data", "jnd", manual_dir=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "cut at the end", "checksum", "not gzip", "empty", "not tar"])
def test_a_damaged_archive_is_named_and_binds_no_later_download(server, archives, tmp_path, damage):
    whole = (archives / "jnd.tar.gz").read_bytes()
    content = {
        "cut": whole[: len(whole) // 2],
        "cut at the end": whole[:-6],
        "checksum": whole[:-8] + bytes(byte ^ 1 for byte in whole[-8:-4]) + whole[-4:],
        "not gzip": b"<html>Please log in</html>",
        "empty": b"",
        "not tar": gzip.compress(b"text" * 1000),
    }[damage]
    server.folder = tmp_path / "served"
    server.folder.mkdir()
    (server.folder / "jnd.tar.gz").write_bytes(content)
    with pytest.raises(TripletsError, match=r"jnd\.tar\.gz is damaged, cut off or not a \.tar\.gz file: .+; remove it"):
        prepare(tmp_path / "data", "jnd", base_url=server.url)
    assert left(tmp_path / "data") == []
    downloads = tmp_path / "data" / "downloads" / "bapps"
    assert [path.name for path in downloads.iterdir()] == ["jnd.tar.gz"]
    (downloads / "jnd.tar.gz").unlink()
    server.folder = archives
    assert prepare(tmp_path / "data", "jnd", base_url=server.url).is_dir()


def test_wrong_choices_are_named(prepared, tmp_path):
    with pytest.raises(TripletsError, match="no configuration '2afc'; it has twoafc, jnd"):
        prepare(tmp_path, "2afc")
    for archives in (["jnd"], []):
        with pytest.raises(TripletsError, match=r"archives are .*; twoafc is made of twoafc_train, twoafc_val"):
            prepare(tmp_path, "twoafc", archives=archives)
    with pytest.raises(TripletsError, match=r"holds no prepared data set; .*prepare makes one"):
        RecordSource(tmp_path, "val_cnn")
    with pytest.raises(TripletsError, match="size is 0"):
        RecordSource(prepared / "bapps" / "twoafc" / "1.0.0", "val_cnn", size=0)


WITHOUT_TENSORFLOW = """
import importlib.machinery, sys

class Refused:
    # The search alone is allowed: it is how others find out that there is none.
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] == "tensorflow" else None

    def create_module(self, spec):
        raise SystemExit("TensorFlow was asked for")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Refused())
import training.data.feed, training.data.sources
assert not {"tensorflow_datasets", "tensorflow"} & set(sys.modules)
from training.data.bapps.bapps_dataset_builder import prepare
source = training.data.sources.RecordSource(prepare(sys.argv[1], "twoafc", manual_dir=sys.argv[2]), "train_mix")
assert source[0]["p0"].shape == (64, 64, 3)
assert not {name for name in sys.modules if name.partition(".")[0] == "tensorflow"}
"""


@pytest.mark.slow
def test_tensorflow_is_not_needed(tree, tmp_path):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TENSORFLOW, tmp_path, tree]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
