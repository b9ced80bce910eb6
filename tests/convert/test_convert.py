"""`python -m convert`: files hold the tensors that were read, refusals say why, and verification compares numbers."""

import hashlib
import importlib.util
import math
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

import rlpips_jax as rl
from convert import program
from convert.program import main
from rlpips_jax.backbones import (
    ALEX,
    ELPIPS_SQUEEZE,
    ELPIPS_VGG,
    RESNET18,
    RESNET50,
    SQUEEZE,
    SQUEEZE_FLOOR,
    STALEX,
    VGG,
    VGG19,
    Backbone,
    Sequential,
)
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.weights import native, store
from rlpips_jax.weights.parameters import digest, from_pytorch, to_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint, write_checkpoint

ROOT = Path(__file__).parents[2]
Tensors = dict[str, np.ndarray]

BACKBONE_FILES = {
    "alex": "alexnet-features.pth",
    "squeeze": "squeezenet1_1-features.pth",
    "vgg": "vgg16-features.pth",
}


def drawn(architecture: Backbone, half: str = "") -> Tensors:
    """A checkpoint of a backbone and its heads, or the tensors of it whose names begin with `half`."""
    random = np.random.default_rng(0)
    tensors: Tensors = {}
    for name, shape in with_heads(architecture).pytorch_shapes.items():
        values = random.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / math.prod(shape[1:])))
        tensors[name] = np.abs(values).reshape(1, -1, 1, 1) if name.startswith("lin") else values
    return {name: tensor for name, tensor in tensors.items() if name.startswith(half)}


SQUEEZE_PARAMETERS = from_pytorch(drawn(SQUEEZE), with_heads(SQUEEZE), "drawn weights")
HEADS = {"heads": SQUEEZE_PARAMETERS["heads"]}


@pytest.fixture(autouse=True)
def no_lpips_package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads come from the test alone, whether or not the lpips package is installed."""
    if "package" not in request.fixturenames:
        monkeypatch.setattr(store, "_shared_places", lambda official: iter(()))


@pytest.fixture
def files(tmp_path: Path) -> SimpleNamespace:
    """Checkpoints of a drawn SqueezeNet: the backbone, the heads, and the whole."""
    folder = tmp_path / "files"
    folder.mkdir()
    paths = SimpleNamespace(
        weights=folder / "squeezenet.pth", heads=folder / "squeeze.pth", whole=folder / "latest_net_.pth"
    )
    write_checkpoint(paths.weights, drawn(SQUEEZE, "features."))
    write_checkpoint(paths.heads, drawn(SQUEEZE, "lin"))
    write_checkpoint(paths.whole, to_pytorch(SQUEEZE_PARAMETERS, SQUEEZE))
    return paths


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# To this library.


def test_backbone_and_heads(files: SimpleNamespace, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--weights", files.weights, "--heads", files.heads, "--out", out) == 0
    assert names(out) == ["lpips-squeeze.safetensors", "squeeze.safetensors"]
    metric = rl.load("lpips-squeeze", weights_dir=out)
    assert digest(metric.parameters) == digest(SQUEEZE_PARAMETERS)
    printed = capsys.readouterr()
    assert printed.err == ""
    for path, tensors, source in (
        (out / "squeeze.safetensors", 50, files.weights),
        (out / "lpips-squeeze.safetensors", 7, files.heads),
    ):
        sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
        assert f"wrote      {path}: {tensors} tensors" in printed.out
        assert f"from       {source}, not an official file, sha256 {sha256}\n" in printed.out
        metadata = native.read_metadata(path)
        assert metadata["source"] == source.name
        assert metadata["source_sha256"] == sha256
    assert f"signature  {metric.signature}\n" in printed.out
    assert f"rlpips_jax.load('lpips-squeeze', weights_dir='{out}')" in printed.out
    # The metadata of the heads name the metric that the file is loaded as by its path.
    by_path = rl.load(out / "lpips-squeeze.safetensors", weights_dir=out)
    assert by_path.signature == metric.signature


def test_backbone_alone(files: SimpleNamespace, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--weights", files.weights, "--backbone", "squeeze", "--out", out) == 0
    assert names(out) == ["squeeze.safetensors"]
    assert f"signature  {rl.load('baseline-squeeze', weights_dir=out).signature}\n" in capsys.readouterr().out


def test_heads_alone(files: SimpleNamespace, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--heads", files.heads, "--out", out) == 0
    assert "signature  needs the backbone 'squeeze', which is not on this machine yet" in capsys.readouterr().out
    assert run("--weights", files.weights, "--out", out) == 0
    assert digest(rl.load("lpips-squeeze", weights_dir=out).parameters) == digest(SQUEEZE_PARAMETERS)


@pytest.mark.parametrize(
    ("arguments", "name", "architecture", "version"),
    [
        (["--version", "0.0"], "lpips-squeeze@0.0", SQUEEZE, "0.0"),
        (["--version", "0.1"], "lpips-squeeze", SQUEEZE, "0.1"),
        (["--name", "lpips-squeeze@0.1"], "lpips-squeeze", SQUEEZE, "0.1"),
        (["--name", "lpips-squeeze@elpips"], "lpips-squeeze@elpips", SQUEEZE_FLOOR, "0.1"),
        (["--name", "rlpips-squeeze"], "rlpips-squeeze", SQUEEZE, "0.1"),
    ],
)
def test_the_name_decides(
    arguments: list[str], name: str, architecture: Sequential, version: str, files: SimpleNamespace, out: Path
) -> None:
    assert run("--weights", files.weights, "--heads", files.heads, "--out", out, *arguments) == 0
    assert names(out) == sorted([f"{name}.safetensors", "squeeze.safetensors"])
    for metric in (
        rl.load(name, weights_dir=out),
        rl.load(out / f"{name}.safetensors", weights_dir=out),
    ):
        assert metric.name == name
        assert metric.backbone == architecture
        assert metric.version == version


def test_a_new_name(files: SimpleNamespace, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--checkpoint", files.whole, "--out", out, "--name", "mine-2", "--version", "0.0")
    assert run(*arguments) == 0
    path = out / "mine-2.safetensors"
    metric = rl.load(path)
    assert (metric.name, metric.version, metric.backbone) == ("mine-2", "0.0", SQUEEZE)
    assert digest(metric.parameters) == digest(SQUEEZE_PARAMETERS)
    assert f"rlpips_jax.load('{path}')" in capsys.readouterr().out


@pytest.mark.parametrize("architecture", [ELPIPS_SQUEEZE, ELPIPS_VGG], ids=["squeeze", "vgg"])
def test_heads_of_an_ensemble(architecture: Sequential, tmp_path: Path, out: Path) -> None:
    """They are pickled by NumPy, channels last, and recognised by their number."""
    heads = {name: tensor.reshape(1, 1, -1, 1) for name, tensor in drawn(architecture, "lin").items()}
    path = tmp_path / "heads.npy"
    np.save(path, np.array(heads, dtype=object), allow_pickle=True)
    assert run("--heads", path, "--out", out) == 0
    name = f"elpips-{architecture.name}"
    assert names(out) == [f"{name}.safetensors"]
    parameters, metadata = native.read(out / f"{name}.safetensors", with_heads(architecture))
    assert metadata["metric"] == name
    np.testing.assert_array_equal(parameters["heads"][3], heads["lin3.model.1.weight"].reshape(-1))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_whole_checkpoint(prefix: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "latest_net_.pth"
    tensors = to_pytorch(SQUEEZE_PARAMETERS, SQUEEZE)
    write_checkpoint(path, {prefix + name: tensor for name, tensor in tensors.items()})
    assert run("--checkpoint", path, "--out", out) == 0
    assert names(out) == ["rlpips-squeeze.safetensors"]
    assert "57 tensors (backbone and heads)" in capsys.readouterr().out
    file = out / "rlpips-squeeze.safetensors"
    assert native.read_metadata(file)["metric"] == "rlpips-squeeze"
    for metric in (rl.load("rlpips-squeeze", weights_dir=out), rl.load(file)):
        assert digest(metric.parameters) == digest(SQUEEZE_PARAMETERS)
        assert metric.name == "rlpips-squeeze"


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.module.", "module._orig_mod.", "loss.perceptual_loss.", "lpips.module.", "net.", "model."]
)
def test_a_metric_inside_another_model(prefix: str, tmp_path: Path, out: Path) -> None:
    """Beside other tensors, some of which are named like its own."""
    whole = {f"{prefix}{name}": x for name, x in to_pytorch(SQUEEZE_PARAMETERS, SQUEEZE).items()}
    others = {
        "encoder.features.0.weight": np.ones((8, 3, 3, 3), np.float32),
        "decoder.0.weight": np.ones(5, np.float32),
    }
    write_checkpoint(tmp_path / "model.ckpt", others | whole)
    assert run("--checkpoint", tmp_path / "model.ckpt", "--out", out) == 0
    assert digest(rl.load("rlpips-squeeze", weights_dir=out).parameters) == digest(SQUEEZE_PARAMETERS)


def test_a_prefix_chooses_among_several(tmp_path: Path, out: Path) -> None:
    doubled = {name: 2 * x for name, x in drawn(SQUEEZE, "lin").items()}
    found = {"model": drawn(SQUEEZE, "lin"), "params_ema": doubled}
    write_checkpoint(tmp_path / "a.pth", {f"{at}.{name}": x for at, part in found.items() for name, x in part.items()})
    assert run("--heads", tmp_path / "a.pth", "--prefix", "params_ema", "--name", "lpips-squeeze", "--out", out) == 0
    heads = native.read(out / "lpips-squeeze.safetensors", with_heads(SQUEEZE))[0]["heads"]
    np.testing.assert_array_equal(heads[0], 2 * SQUEEZE_PARAMETERS["heads"][0])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_safetensors_of_a_whole_metric(dtype: str, tmp_path: Path, out: Path) -> None:
    tensors = {name: x.astype(dtype) for name, x in to_pytorch(SQUEEZE_PARAMETERS, SQUEEZE).items()}
    save_file({f"lpips.{name}": x for name, x in tensors.items()}, tmp_path / "metric.safetensors")
    assert run("--checkpoint", tmp_path / "metric.safetensors", "--out", out) == 0
    expected = from_pytorch(tensors, with_heads(SQUEEZE), "the same tensors")
    assert digest(rl.load("rlpips-squeeze", weights_dir=out).parameters) == digest(expected)


@pytest.mark.parametrize("bare", [False, True])
def test_a_backbone_without_its_first_name_and_with_a_classifier(bare: bool, tmp_path: Path, out: Path) -> None:
    """As timm writes VGG16 with a classifier of its own, or as `vgg16().features.state_dict()`."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in VGG.pytorch_shapes.items()}
    if bare:
        tensors = {name.removeprefix("features."): x for name, x in tensors.items()}
    else:
        tensors |= {"pre_logits.fc1.weight": np.ones(9, np.float32), "head.fc.weight": np.ones(9, np.float32)}
    save_file(tensors, tmp_path / "vgg.safetensors")
    assert run("--weights", tmp_path / "vgg.safetensors", "--out", out) == 0
    assert names(out) == ["vgg.safetensors"]


def test_a_deeper_network_is_not_taken_for_a_part_of_itself(tmp_path: Path, out: Path) -> None:
    """ResNet-34 has all tensors of ResNet-18, and more blocks."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in RESNET18.pytorch_shapes.items()}
    tensors["layer1.2.conv1.weight"] = np.zeros((64, 64, 3, 3), np.float32)
    write_checkpoint(tmp_path / "resnet34.pth", tensors | {"fc.weight": np.zeros((1000, 512), np.float32)})
    assert run("--weights", tmp_path / "resnet34.pth", "--out", out) == 2
    assert not out.exists()


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoint_inside_a_dictionary(legacy: bool, tmp_path: Path, out: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = to_pytorch(SQUEEZE_PARAMETERS, SQUEEZE)
    contents = {
        "epoch": 10,
        "state_dict": {f"module.{name}": torch.tensor(array) for name, array in tensors.items()},
    }
    torch.save(contents, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert run("--checkpoint", tmp_path / "a.pth", "--out", out) == 0
    assert digest(rl.load(out / "rlpips-squeeze.safetensors").parameters) == digest(SQUEEZE_PARAMETERS)


def test_checkpoint_of_heads_alone_uses_the_official_backbone(files: SimpleNamespace, out: Path) -> None:
    assert run("--checkpoint", files.heads, "--out", out) == 0
    assert run("--weights", files.weights, "--out", out) == 0
    metric = rl.load("rlpips-squeeze", weights_dir=out)
    assert digest(metric.parameters) == digest(SQUEEZE_PARAMETERS)


@pytest.mark.parametrize("architecture", [ALEX, VGG], ids=["alex", "vgg"])
@pytest.mark.parametrize("half", ["features.", "lin"])
def test_networks_are_recognised_by_their_tensors(
    architecture: Sequential, half: str, tmp_path: Path, out: Path
) -> None:
    shapes = with_heads(architecture).pytorch_shapes
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith(half)}
    write_checkpoint(tmp_path / "a.pth", tensors)
    assert run("--weights" if half == "features." else "--heads", tmp_path / "a.pth", "--out", out) == 0
    stem = architecture.name if half == "features." else f"lpips-{architecture.name}"
    assert names(out) == [f"{stem}.safetensors"]


@pytest.mark.parametrize("prefix", ["module.", "module.model."], ids=["parallel", "robustness"])
def test_residual_networks_are_recognised_after_a_prefix(prefix: str, tmp_path: Path, out: Path) -> None:
    tensors = {prefix + name: np.zeros(shape, np.float32) for name, shape in RESNET18.pytorch_shapes.items()}
    write_checkpoint(tmp_path / "a.pth", tensors)
    assert run("--weights", tmp_path / "a.pth", "--out", out) == 0
    assert names(out) == ["resnet18.safetensors"]


# Refusals.


def _nothing(paths: SimpleNamespace) -> None:
    pass


def _change(name: str, tensors: Callable[[Tensors], Tensors]) -> Callable[[SimpleNamespace], None]:
    def change(paths: SimpleNamespace) -> None:
        path = getattr(paths, name)
        write_checkpoint(path, tensors(read_checkpoint(path)))

    return change


def _negative(tensors: Tensors) -> Tensors:
    return {name: -tensor if name.startswith("lin2") else tensor for name, tensor in tensors.items()}


def _not_a_number(tensors: Tensors) -> Tensors:
    return {name: tensor * np.float32(np.nan) if ".4." in name else tensor for name, tensor in tensors.items()}


def _alien(tensors: Tensors) -> Tensors:
    return {f"encoder.{name}.x": tensor for name, tensor in tensors.items()}


def _with_average(tensors: Tensors) -> Tensors:
    return {f"{at}.{name}": k * x for k, at in ((1, "model"), (2, "ema")) for name, x in tensors.items()}


def _cut(paths: SimpleNamespace) -> None:
    paths.weights.write_bytes(paths.weights.read_bytes()[:-100])


REFUSALS = {
    "nothing": ([], _nothing, "nothing to do; give --weights"),
    "no out": (["--weights", "{weights}"], _nothing, "--out is missing"),
    "both": (
        ["--weights", "{weights}", "--checkpoint", "{whole}", "--out", "{out}"],
        _nothing,
        "give that alone, or its halves",
    ),
    "both ways": (
        ["--weights", "{weights}", "--to-pytorch", "lpips-alex", "--out", "{out}"],
        _nothing,
        "--to-pytorch reads a metric of this library",
    ),
    "name of a backbone": (
        ["--weights", "{weights}", "--name", "squeeze", "--out", "{out}"],
        _nothing,
        "a backbone alone is not one",
    ),
    "name in use": (
        ["--heads", "{heads}", "--name", "squeeze", "--out", "{out}"],
        _nothing,
        "--name 'squeeze' cannot name a metric",
    ),
    "name of a path": (
        ["--heads", "{heads}", "--name", "../lpips", "--out", "{out}"],
        _nothing,
        "--name '../lpips' cannot name a metric",
    ),
    "name of a baseline": (
        ["--heads", "{heads}", "--name", "baseline-squeeze", "--out", "{out}"],
        _nothing,
        "cannot name a metric",
    ),
    "name of another backbone": (
        ["--heads", "{heads}", "--name", "lpips-alex", "--backbone", "squeeze", "--out", "{out}"],
        _nothing,
        "lpips-alex has the backbone alex, but --backbone is squeeze",
    ),
    "name of another version": (
        ["--heads", "{heads}", "--name", "lpips-squeeze@0.0", "--version", "0.1", "--out", "{out}"],
        _nothing,
        "lpips-squeeze@0.0 has version 0.0, but --version is 0.1",
    ),
    "wrong backbone": (
        ["--weights", "{weights}", "--backbone", "alex", "--out", "{out}"],
        _nothing,
        "fits the network 'alex' only in part, so none of it was loaded: missing .* It resembles 'squeeze'",
    ),
    "heads of another": (
        ["--heads", "{heads}", "--backbone", "vgg", "--out", "{out}"],
        _nothing,
        r"left over 'lin5\.model\.1\.weight', 'lin6\.model\.1\.weight'",
    ),
    "heads as weights": (["--weights", "{heads}", "--out", "{out}"], _nothing, "holds heads; give it as --heads"),
    "whole as weights": (["--weights", "{whole}", "--out", "{out}"], _nothing, "give it as --checkpoint"),
    "whole as heads": (["--heads", "{whole}", "--out", "{out}"], _nothing, "give it as --checkpoint"),
    "weights as checkpoint": (["--checkpoint", "{weights}", "--out", "{out}"], _nothing, "give it as --weights"),
    "missing tensors": (
        ["--weights", "{weights}", "--out", "{out}"],
        _change("weights", lambda tensors: dict(list(tensors.items())[:-1])),
        r"missing 'features\.12\.expand3x3\.bias'",
    ),
    "negative heads": (
        ["--weights", "{weights}", "--heads", "{heads}", "--out", "{out}"],
        _change("heads", _negative),
        r"'lin2\.model\.1\.weight' has negative values",
    ),
    "not a number": (
        ["--weights", "{weights}", "--out", "{out}"],
        _change("weights", _not_a_number),
        "contains NaN",
    ),
    "another network": (
        ["--weights", "{weights}", "--out", "{out}"],
        _change("weights", _alien),
        r"resembles no network known here .*; it has 'encoder' \(50\)",
    ),
    "two metrics": (
        ["--heads", "{heads}", "--out", "{out}"],
        _change(
            "heads",
            lambda tensors: {f"{at}.{n}": k * x for k, at in ((1, "model"), (2, "ema")) for n, x in tensors.items()},
        ),
        r"several metrics or networks, of which --prefix chooses: (model|ema)[.] heads of squeeze; (model|ema)[.]",
    ),
    "nothing under a prefix": (
        ["--heads", "{heads}", "--prefix", "lpips", "--out", "{out}"],
        _nothing,
        "has no tensor under --prefix lpips; it has 'lin0' ",
    ),
    "cut off": (["--weights", "{weights}", "--out", "{out}"], _cut, "cannot be read: .*zip"),
    "no such file": (["--weights", "nowhere.pth", "--out", "{out}"], _nothing, "nowhere.pth: there is no such file"),
    "out is a file": (["--weights", "{weights}", "--out", "{heads}"], _nothing, "is a file; weight files need a"),
    "images for nothing": (
        ["--weights", "{weights}", "--out", "{out}", "--images", "a.png"],
        _nothing,
        "--images are compared by --verify",
    ),
    "weights_dir for nothing": (
        ["--weights", "{weights}", "--out", "{out}", "--weights-dir", "."],
        _nothing,
        "--weights-dir is for --to-pytorch",
    ),
    "name and export": (
        ["--to-pytorch", "lpips-alex", "--out", "{out}", "--name", "x"],
        _nothing,
        "--to-pytorch takes these from the metric",
    ),
    "verify nothing": (["--verify"], _nothing, "--verify needs a metric"),
    "verify and write": (["--verify", "--name", "lpips-alex", "--out", "{out}"], _nothing, "--verify writes nothing"),
    "export nothing": (
        ["--to-pytorch", "lpips-alx", "--out", "{out}"],
        _nothing,
        "no metric is called 'lpips-alx'; did you mean lpips-alex",
    ),
    "export an ensemble": (["--to-pytorch", "elpips-vgg", "--out", "{out}"], _nothing, "cannot compute elpips-vgg"),
}


@pytest.mark.parametrize(("arguments", "prepare", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(
    arguments: list[str],
    prepare: Callable[[SimpleNamespace], None],
    message: str,
    files: SimpleNamespace,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line says what is wrong, the exit status is 2, and nothing is written."""
    prepare(files)
    before = {path: path.read_bytes() for path in files.weights.parent.iterdir()}
    assert run(*(argument.format(**vars(files), out=out) for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("python -m convert: ")
    assert re.search(message, line), line
    assert not out.exists()
    assert {path: path.read_bytes() for path in files.weights.parent.iterdir()} == before


def test_another_metric_over_a_network_of_the_package_is_not_exported(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = from_pytorch(drawn(ALEX), with_heads(ALEX), "drawn weights")
    native.write(tmp_path / "lpips-alex.safetensors", parameters, with_heads(ALEX), metric="lpips-alex")
    assert run("--to-pytorch", "lpips+-alex", "--weights-dir", tmp_path, "--out", out) == 2
    assert "cannot compute lpips+-alex: it has LPIPS over alex" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.torch
def test_another_network_is_not_taken_for_its_namesake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    parameters = from_pytorch(drawn(STALEX), with_heads(STALEX), "drawn weights")
    native.write(tmp_path / "stlpips-alex.safetensors", parameters, with_heads(STALEX), metric="stlpips-alex")
    assert run("--verify", "--name", "stlpips-alex", "--weights-dir", tmp_path) == 2
    assert "PyTorch has no network 'stalex'" in capsys.readouterr().err


def test_halves_of_different_networks(
    files: SimpleNamespace, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "alex.pth", drawn(ALEX, "lin"))
    assert run("--weights", files.weights, "--heads", tmp_path / "alex.pth", "--out", out) == 2
    assert "are of different networks: alex and squeeze" in capsys.readouterr().err
    assert not out.exists()


def test_existing_files_are_kept(files: SimpleNamespace, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--weights", files.weights, "--heads", files.heads, "--out", out)
    native.write(out / "lpips-squeeze.safetensors", HEADS, with_heads(SQUEEZE), source="old")
    assert run(*arguments) == 2
    message = f"{out / 'lpips-squeeze.safetensors'} exists; --overwrite replaces it"
    assert message in capsys.readouterr().err
    assert names(out) == ["lpips-squeeze.safetensors"]
    assert native.read_metadata(out / "lpips-squeeze.safetensors")["source"] == "old"
    assert run(*arguments, "--overwrite") == 0
    assert native.read_metadata(out / "lpips-squeeze.safetensors")["source"] == "squeeze.pth"


def test_no_traceback_reaches_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"<html>")
    command = [sys.executable, "-m", "convert", "--weights", str(tmp_path / "a.pth"), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "is a web page" in line


# Back to PyTorch.


def test_round_trip_is_exact(files: SimpleNamespace, tmp_path: Path, out: Path) -> None:
    assert run("--checkpoint", files.whole, "--out", out) == 0
    file = tmp_path / "new" / "back.pth"
    assert run("--to-pytorch", out / "rlpips-squeeze.safetensors", "--out", file) == 0
    original, back = read_checkpoint(files.whole), read_checkpoint(file)
    assert original.keys() == back.keys()
    for name, tensor in original.items():
        assert tensor.dtype == back[name].dtype
        assert tensor.tobytes() == back[name].tobytes()
        assert tensor.shape == back[name].shape
    again = tmp_path / "again.pth"
    assert run("--to-pytorch", "rlpips-squeeze", "--weights-dir", out, "--out", again) == 0
    assert again.read_bytes() == file.read_bytes()
    assert run("--checkpoint", again, "--out", out, "--overwrite") == 0
    assert digest(rl.load("rlpips-squeeze", weights_dir=out).parameters) == digest(SQUEEZE_PARAMETERS)


def test_export_says_how_to_load_it(
    files: SimpleNamespace, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--checkpoint", files.whole, "--out", out, "--name", "mine", "--version", "0.0")
    capsys.readouterr()
    file = tmp_path / "mine.pth"
    assert run("--to-pytorch", out / "mine.safetensors", "--out", file) == 0
    printed = capsys.readouterr().out
    assert hashlib.sha256(file.read_bytes()).hexdigest() in printed
    assert rl.load(out / "mine.safetensors").signature in printed
    assert f"lpips.LPIPS(net='squeeze', version='0.0', model_path='{file}', pnet_rand=True)" in printed


def test_export_refuses_what_the_package_would_compute_otherwise(
    files: SimpleNamespace, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--checkpoint", files.whole, "--out", out, "--name", "lpips-squeeze@elpips")
    for metric, target, message in (
        ("lpips-squeeze@elpips", tmp_path / "a.pth", "cannot compute lpips-squeeze@elpips"),
        (out / "lpips-squeeze@elpips.safetensors", tmp_path / "a.pth", "cannot compute"),
        ("lpips-tiny", tmp_path / "a.pth", "cannot compute lpips-tiny"),
    ):
        assert run("--to-pytorch", metric, "--weights-dir", out, "--out", target) == 2
        assert message in capsys.readouterr().err
        assert not target.exists()


def test_a_metric_with_floors_is_neither_exported_nor_compared(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = SQUEEZE_PARAMETERS | {"floors": (np.float32(0.5),) * 7}
    native.write(out / "rlpips-squeeze.safetensors", parameters, with_heads(SQUEEZE), metric="rlpips-squeeze")
    target = tmp_path / "new" / "a.pth"
    assert run("--to-pytorch", "rlpips-squeeze", "--weights-dir", out, "--out", target) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the metric has floors" in line
    assert not target.parent.exists()


def test_export_overwrites_only_if_told(files: SimpleNamespace, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--checkpoint", files.whole, "--out", out)
    before = files.heads.read_bytes()
    arguments = ("--to-pytorch", "rlpips-squeeze", "--weights-dir", out, "--out")
    assert run(*arguments, files.heads) == 2
    assert "exists; --overwrite replaces it" in capsys.readouterr().err
    assert files.heads.read_bytes() == before
    assert run(*arguments, out) == 2
    assert "is a folder; --to-pytorch writes a file" in capsys.readouterr().err
    assert run(*arguments, files.heads, "--overwrite") == 0
    assert len(read_checkpoint(files.heads)) == 66


# Verification.


def test_verification_needs_torch(
    files: SimpleNamespace, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    assert run("--checkpoint", files.whole, "--out", out, "--verify") == 2
    assert "compares with PyTorch, which is not installed; install torch" in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares images of one small size, at which pooling windows hang over the edge."""
    pytest.importorskip("torch")
    from convert import verification

    monkeypatch.setattr(verification, "SIZES", ((40, 33),))


def differences(printed: str) -> dict[str, list[float]]:
    """The rows of the table."""
    rows = re.findall(r"^(library in float\d\d|package lpips) +(.*)$", printed, re.MULTILINE)
    return {what: [float(cell) for cell in cells.split() if cell != "-"] for what, cells in rows}


@pytest.mark.torch
@pytest.mark.shared
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("backbone", ["alex", "squeeze", pytest.param("vgg", marks=pytest.mark.slow)])
def test_published_weights_agree_with_pytorch(
    backbone: str, shared: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = shared / "weights" / BACKBONE_FILES[backbone]
    heads = shared / "weights" / "lpips_heads" / f"v0.1-{backbone}.pth"
    photograph = tmp_path / "photograph.png"
    rl.save_image(photograph, np.random.default_rng(0).integers(0, 256, (40, 33, 3), np.uint8))
    status = run("--weights", weights, "--heads", heads, "--out", out, "--verify", "--images", photograph)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert f"the official file of lpips-{backbone}, sha256 " in printed.out
    assert "3 pairs of images" in printed.out
    table = differences(printed.out)
    assert len(table["library in float32"]) == len(table["library in float64"]) == 3
    distance, layers, gradient = table["library in float32"]
    assert max(distance, layers) < 1e-5
    assert gradient < 3e-5  # of single precision, in the gradient of so few pixels
    assert max(table["library in float64"]) < 1e-12
    if backbone == "alex":
        _check_that_a_difference_shows(rl.load("lpips-alex", weights_dir=out))


@pytest.mark.torch
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "architecture",
    [RESNET18, pytest.param(RESNET50, marks=pytest.mark.slow), pytest.param(VGG19, marks=pytest.mark.slow)],
    ids=lambda a: a.name,
)
def test_networks_without_heads_agree_with_pytorch(
    architecture: Backbone, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On drawn weights, in a file like the official one: with a classifier and counts of batches."""
    torch = pytest.importorskip("torch")
    from convert import verification

    random = np.random.default_rng(0)
    tensors = drawn(architecture)
    for name, tensor in tensors.items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensors[name] = random.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
        elif tensor.ndim == 1:
            tensors[name] = random.normal(0, 0.1, tensor.shape).astype(np.float32)
    state = {name: torch.tensor(tensor) for name, tensor in tensors.items() if not name.startswith("lin")}
    state |= {name.replace("running_var", "num_batches_tracked"): torch.tensor(7) for name in state if "_var" in name}
    residual = architecture in (RESNET18, RESNET50)
    state |= {"fc.weight": torch.zeros(10, 512)} if residual else {"classifier.0.bias": torch.zeros(9)}
    torch.save(state, tmp_path / "network.pth")
    assert run("--weights", tmp_path / "network.pth", "--out", out, "--verify") == 0
    table = differences(capsys.readouterr().out)
    distance, layers, gradient = table["library in float32"]
    assert max(distance, layers) < 1e-5
    assert gradient < verification.ROUNDED_GRADIENT
    # Where batch normalisation is folded, the kernels are rounded once more.
    assert max(table["library in float64"]) < (2e-6 if residual else 1e-12)
    # From the folded file alone.
    assert run("--verify", "--name", f"baseline-{architecture.name}", "--weights-dir", out) == 0


def _check_that_a_difference_shows(metric: Lpips) -> None:
    from convert import reference, verification

    weights = to_pytorch(metric.parameters, metric.backbone)
    tensors = reference.rename({name: reference.torch.tensor(array) for name, array in weights.items()})
    tensors["lin0"] = tensors["lin0"] * (1 + 1e-3)
    network = reference.variant(f"lpips-{metric.backbone.name}")
    wrong = reference.Reference(network, tensors, scaled=True)
    (float32, float64) = verification.compare(metric, wrong, None, verification.generated())
    assert float32.differences.layers == pytest.approx(1e-3, rel=0.05)
    assert float64.differences.layers == pytest.approx(1e-3, rel=0.01)
    assert not verification.passes([float32, float64])


@pytest.mark.torch
@pytest.mark.usefixtures("quick")
def test_differences_decide_the_exit_status(
    files: SimpleNamespace, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from convert import verification
    from convert.verification import Differences, Row

    run("--checkpoint", files.whole, "--out", out)
    capsys.readouterr()
    for found, rounded, status in (
        (Differences(1e-5, 1e-5, 9.9e-5), False, 0),
        (Differences(1e-5, 1e-5, None), False, 0),
        (Differences(1.1e-4, 1e-5, 1e-5), True, 1),
        (Differences(1e-5, 1e-5, 1.1e-4), False, 1),
        (Differences(1e-5, 1e-5, 1.1e-4), True, 0),
        (Differences(1e-5, 1e-5, 0.06), True, 1),
        (Differences(math.nan, 1e-5, 1e-5), False, 1),
        (Differences(1e-5, math.nan, 1e-5), False, 1),
        (Differences(1e-5, 1e-5, math.nan), True, 1),
    ):
        row = Row("library", found, rounded)
        monkeypatch.setattr(verification, "compare", lambda *_, row=row: [row])
        assert run("--verify", "--name", "rlpips-squeeze", "--weights-dir", out) == status
        printed = capsys.readouterr()
        assert ("verified   none differs by more than 0.0001" in printed.out) == (status == 0)
        assert ("differs from PyTorch by more than 0.0001" in printed.err) == (status == 1)
    assert not verification.passes([])


@pytest.mark.torch
def test_equal_zeros_do_not_differ() -> None:
    """Where a head is all zeros, its layer contributes nothing on either side."""
    pytest.importorskip("torch")
    from convert.verification import _relative

    zero, one = np.zeros(2), np.array([0.0, 1.0])
    assert _relative(zero, zero, zero) == 0
    assert _relative(one, zero, np.abs(zero)) == math.inf
    assert math.isnan(_relative(one * np.nan, one, np.abs(one)))
    assert _relative(one * 1.5, one, np.abs(one)) == 0.5


@pytest.mark.torch
@pytest.mark.shared
def test_reference_reproduces_the_goldens(shared: Path) -> None:
    """The reference that the library is compared with agrees with numbers that other code computed."""
    pytest.importorskip("torch")
    from convert import reference

    goldens = np.load(shared / "goldens" / "lpips.npz")
    for backbone in ("alex", "squeeze"):
        for version in ("0.1", "0.0"):
            tensors = reference.read(shared / "weights" / BACKBONE_FILES[backbone])
            tensors |= reference.read(shared / "weights" / "lpips_heads" / f"v{version}-{backbone}.pth")
            lpips = reference.Reference(reference.variant(f"lpips-{backbone}"), tensors, scaled=version == "0.1")
            for index in (0, 4) if version == "0.1" else (1,):
                x, y = (goldens[f"{side}{index}"] / 127.5 - 1 for side in "xy")
                layers, gradient = lpips.compare(x, y)
                expected = goldens[f"{backbone}/v{version}/lin/layers"][index]
                np.testing.assert_allclose(layers, expected, rtol=1e-12)
                if version == "0.1":
                    slope = goldens[f"{backbone}/v0.1/lin/grad_y{index}"]
                    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-6 * np.abs(slope).max())


# The `lpips` package itself.


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The `lpips` package, with the reference's networks in place of torchvision's."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("lpips") is None:
        pytest.skip("needs the lpips package")
    from convert import reference

    def without_weights(make: Callable[[], object]) -> Callable[..., SimpleNamespace]:
        def network(*, pretrained: bool) -> SimpleNamespace:
            assert not pretrained, "the package would download weights"
            return SimpleNamespace(features=make())

        return network

    models = types.ModuleType("torchvision.models")
    models.alexnet = without_weights(reference.alex)  # type: ignore[attr-defined]
    models.vgg16 = without_weights(reference.vgg)  # type: ignore[attr-defined]
    models.squeezenet1_1 = without_weights(reference.squeeze)  # type: ignore[attr-defined]
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    before = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("lpips")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "lpips":
            del sys.modules[name]


@pytest.mark.torch
@pytest.mark.parametrize(("architecture", "version"), [(ALEX, "0.1"), (SQUEEZE, "0.0")], ids=["alex", "squeeze"])
def test_the_package_loads_an_export(
    architecture: Sequential, version: str, package: types.ModuleType, tmp_path: Path, out: Path
) -> None:
    from convert import reference

    path = tmp_path / "whole.pth"
    tensors = to_pytorch(from_pytorch(drawn(architecture), with_heads(architecture), "drawn weights"), architecture)
    write_checkpoint(path, tensors)
    assert run("--checkpoint", path, "--out", out, "--name", "mine", "--version", version) == 0
    export = tmp_path / "export.pth"
    assert run("--to-pytorch", out / "mine.safetensors", "--out", export) == 0
    module = package.LPIPS(
        net=architecture.name, version=version, model_path=str(export), pretrained=True, pnet_rand=True, verbose=False
    )
    # Every tensor was replaced: the package itself does not check that.
    report = module.load_state_dict(reference.torch.load(export, weights_only=True), strict=True)
    assert not report.missing_keys
    assert not report.unexpected_keys

    random = np.random.default_rng(0)
    x, y = random.uniform(-1, 1, (2, 65, 64, 3)).astype(np.float32)
    with reference.torch.no_grad():
        expected = float(module(*(reference.to_torch(image).float() for image in (x, y))))
    found = rl.distance(x, y, rl.load(out / "mine.safetensors"), value_range=(-1, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The program's own comparison uses it too.
    ours = {name: reference.torch.tensor(array) for name, array in tensors.items()}
    wrapped = reference.Package(architecture.name, version, reference.rename(ours))
    np.testing.assert_allclose(wrapped.layers(x, y).sum(), expected, rtol=1e-5)
    with pytest.raises(LookupError, match="the package's network has other tensors"):
        reference.Package("vgg", version, reference.rename(ours))


@pytest.mark.torch
@pytest.mark.usefixtures("package", "quick")
def test_verification_uses_the_package(
    files: SimpleNamespace, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from convert import verification

    # The library's side takes long to compile, and is compared above.
    def nothing(metric: Lpips, pair: verification.Pair, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        channels = len(replace(metric, dtype=dtype).backbone.tapped)
        return np.zeros(channels), np.zeros_like(pair.x)

    monkeypatch.setattr(verification, "_of_library", nothing)
    assert run("--checkpoint", files.whole, "--out", out, "--verify") == 1
    table = differences(capsys.readouterr().out)
    assert len(table["package lpips"]) == 2
    assert max(table["package lpips"]) < 1e-12
    assert table["library in float32"] == [1.0, 1.0, 1.0]
