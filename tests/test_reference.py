"""The reference numbers: LPIPS as its authors' code computes it, on real weights, in float64."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import ALEX, SQUEEZE, VGG
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.weights.parameters import from_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint
from tests.goldens.compare import assert_gradient

pytestmark = pytest.mark.shared

NETWORKS = {"alex": ALEX, "squeeze": SQUEEZE, "vgg": VGG, "vgg-drawn": VGG}
FILES = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}


@pytest.fixture(scope="module")
def goldens(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "goldens" / "lpips.npz") as file:
        return dict(file)


def drawn_vgg() -> dict[str, np.ndarray]:
    """VGG16 with weights anyone can draw, in PyTorch's names and layout."""
    random = np.random.RandomState(0)
    tensors = {}
    for path, (_, _, inputs, outputs) in VGG.convolutions():
        name = path[0].replace("features_", "features.")
        kernel = random.standard_normal((outputs, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
        tensors[f"{name}.weight"] = kernel.astype(np.float32)
        tensors[f"{name}.bias"] = (random.standard_normal(outputs) * 0.01).astype(np.float32)
    return tensors


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, shared: Path) -> tuple[str, dict]:
    """Name of a network, and its backbone."""
    name = request.param
    if name == "vgg-drawn":
        tensors = drawn_vgg()
    else:
        tensors = read_checkpoint(shared / "weights" / f"{FILES[name]}-features.pth")
    return name, from_pytorch(tensors, with_heads(NETWORKS[name]), name)


def metric(shared: Path, network: tuple[str, dict], version: str, heads: str, dtype: str = "float32") -> Lpips:
    name, parameters = network
    architecture = NETWORKS[name]
    file = shared / "weights" / "lpips_heads" / f"v{version}-{architecture.name}.pth"
    parameters = parameters | from_pytorch(read_checkpoint(file), with_heads(architecture), str(file))
    if heads == "unweighted":
        parameters["heads"] = tuple(np.ones_like(head) for head in parameters["heads"])
    # Under one name, so that both VGG16 share their programs.
    return Lpips(parameters, architecture.name, architecture, version=version, dtype=dtype)


@pytest.mark.parametrize("heads", ["lin", "unweighted"])
@pytest.mark.parametrize("version", ["0.1", "0.0"])
@pytest.mark.parametrize(("dtype", "relative", "absolute"), [("float32", 1e-5, 1e-7), ("float64", 1e-9, 0)])
def test_distances(network, version, heads, dtype, relative, absolute, goldens, shared) -> None:
    expected = {key: goldens[f"{network[0]}/v{version}/{heads}{key}"] for key in ("", "/layers")}
    with jax.enable_x64(dtype == "float64"):
        tested = metric(shared, network, version, heads, dtype)
        for index in range(int(goldens["n"])):
            x, y = goldens[f"x{index}"], goldens[f"y{index}"]
            layers = np.asarray(rl.layer_distances(x, y, tested))
            np.testing.assert_allclose(layers, expected["/layers"][index], rtol=relative, atol=absolute)
            # Compiling costs more than computing, so the sum stands for the distance except at one size.
            whole = [layers.sum()]
            if x.shape == (64, 64, 3):
                whole = [rl.distance(x, y, m) for m in (tested, dataclasses.replace(tested, forward_mode=True))]
            for found in whole:
                np.testing.assert_allclose(float(found), expected[""][index], rtol=relative, atol=absolute)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients(network, dtype, goldens, shared) -> None:
    prefix = f"{network[0]}/v0.1/lin/grad_y"
    indices = [int(key.removeprefix(prefix)) for key in goldens if key.startswith(prefix)]
    assert len(indices) >= 2
    with jax.enable_x64(dtype == "float64"):
        tested = metric(shared, network, "0.1", "lin", dtype)
        for index in indices:
            x, y = (goldens[f"{image}{index}"] / 127.5 - 1 for image in "xy")
            expected = goldens[f"{prefix}{index}"]
            # Compiling costs more than computing, so the other ways are taken at one size.
            others = [{"remat": True}, {"forward_mode": True}] if index == indices[0] else []
            for candidate in (tested, *(dataclasses.replace(tested, **options) for options in others)):
                gradient = jax.grad(lambda y, x=x, m=candidate: rl.distance(x, y, m, value_range=(-1, 1)))(
                    y.astype(dtype)
                )
                assert_gradient(gradient, expected)


def test_maps(network, goldens, shared) -> None:
    expected = goldens[f"{network[0]}/v0.1/lin/spatial1"]
    found = rl.distance_map(goldens["x1"], goldens["y1"], metric(shared, network, "0.1", "lin"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.max())


def test_identity_and_symmetry(network, goldens, shared) -> None:
    tested = metric(shared, network, "0.1", "lin")
    for index in range(int(goldens["n"])):
        x, y = goldens[f"x{index}"], goldens[f"y{index}"]
        # Of all sizes, these programs are compiled already.
        assert not np.any(rl.layer_distances(x, x.copy(), tested))
        there, back = (np.sum(rl.layer_distances(*pair, tested), axis=-1) for pair in ((x, y), (y, x)))
        np.testing.assert_allclose(there, back, rtol=1e-6)
        if x.shape == (64, 64, 3):
            assert float(rl.distance(x, x.copy(), tested)) == 0
            np.testing.assert_allclose(rl.distance(x, y, tested), rl.distance(y, x, tested), rtol=1e-6)


@pytest.mark.parametrize(
    ("scale", "offset", "value_range", "distances"),
    [
        (1 / 255, 0, (0, 1), (0.722, 0.138)),
        (1 / 255, 0, (-1, 1), (0.725, 0.135)),
        (2 / 255, -1, (0, 1), (0.590, 0.130)),
        (1, 0, (0, 1), (0.341, 0.102)),
        (1 / 255, 0, (0, 255), (0.00009, 0.00003)),
    ],
)
def test_wrong_ranges_give_the_numbers_that_the_readme_shows(scale, offset, value_range, distances, shared) -> None:
    tensors = read_checkpoint(shared / "weights" / "alexnet-features.pth")
    alex = metric(shared, ("alex", from_pytorch(tensors, with_heads(ALEX), "alex")), "0.1", "lin")
    images = [rl.load_image(shared / "images" / "lpips" / f"ex_{name}.png") for name in ("ref", "p0", "p1")]
    reference, *others = (image.astype(np.float32) * np.float32(scale) + offset for image in images)
    unchecked = jax.jit(rl.distance, static_argnames="value_range")
    found = [float(unchecked(reference, other, alex, value_range=value_range)) for other in others]
    np.testing.assert_allclose(found, distances, atol=0.0006, rtol=0.1 if distances[0] < 1e-3 else 0)


def test_the_shipped_metric_follows_lpips_on_photographs_it_never_saw(shared) -> None:
    """The model card's claim, on the fixed test set: rank correlation with LPIPS-alex over 1,200 pairs."""
    from scipy.stats import spearmanr

    with np.load(shared / "triplets" / "kodak.npz") as file:
        triplets = {key: file[f"crossed/{key}"] for key in ("ref", "p0", "p1", "d0", "d1")}
    tiny = rl.load("lpips-tiny")
    found = np.concatenate([rl.distance(triplets["ref"], triplets[image], tiny) for image in ("p0", "p1")])
    expected = np.concatenate([triplets["d0"], triplets["d1"]])
    assert np.asarray(spearmanr(found, expected))[0] == pytest.approx(0.973, abs=0.002)
    assert np.median(found / expected) == pytest.approx(1.03, abs=0.01)
    agreement = (found[:600] < found[600:]) == (expected[:600] < expected[600:])
    sure = np.abs(np.log(expected[:600] / expected[600:])) > 0.5
    assert np.mean(agreement[sure]) == pytest.approx(0.988, abs=0.002)
