"""ST-LPIPS gives the published numbers, and those of its authors' package with weights that anyone can draw."""

import functools
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import STALEX, STVGG, Computation, Convolution
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.distances.stlpips import RECIPES
from rlpips_jax.weights.parameters import from_pytorch, to_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint
from tests.goldens.compare import assert_gradient
from tests.goldens.make import draw


@pytest.fixture(scope="module")
def alex(shared: Path) -> Lpips:
    file = shared / "weights" / "stlpips" / "alex_shift_tolerant.pth"
    parameters = from_pytorch(read_checkpoint(file), with_heads(STALEX), str(file))
    return Lpips(jax.tree.map(jnp.asarray, parameters), "stlpips-alex", STALEX)


@pytest.fixture(scope="module")
def goldens(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "goldens" / "families.npz") as families, np.load(shared / "goldens" / "lpips.npz") as pairs:
        return {**families, **{name: pairs[name] for name in pairs if name[0] in "xy"}}


@pytest.mark.shared
def test_the_published_number(alex: Lpips, shared: Path) -> None:
    """From the README of the authors' package."""
    x, y = (rl.load_image(shared / "images" / "lpips" / f"{name}.png") for name in ("ex_p0", "ex_ref"))
    np.testing.assert_allclose(rl.distance(x, y, alex), 0.7777554988861084, rtol=1e-6)


@pytest.mark.shared
def test_the_registered_file_is_the_published_one(shared: Path) -> None:
    from rlpips_jax.weights.download import sha256_of

    file = shared / "weights" / "stlpips" / "alex_shift_tolerant.pth"
    (part,) = RECIPES["stlpips-alex"].parts
    assert part.official is not None
    assert (sha256_of(file), file.stat().st_size) == (part.official.sha256, part.official.size)


@pytest.mark.shared
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-9)])
def test_distances(alex: Lpips, goldens: dict[str, np.ndarray], dtype: str, tolerance: float) -> None:
    with jax.enable_x64(dtype == "float64"):
        metric = replace(alex, dtype=dtype)
        found = [rl.distance(goldens[f"x{pair}"], goldens[f"y{pair}"], metric) for pair in range(8)]
    expected = [goldens[f"stlpips-alex/{pair}"] for pair in range(8)]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=0)


@pytest.mark.shared
@pytest.mark.parametrize(("dtype", "forward_mode"), [("float32", False), ("float32", True), ("float64", False)])
def test_gradients(alex: Lpips, goldens: dict[str, np.ndarray], dtype: str, *, forward_mode: bool) -> None:
    with jax.enable_x64(dtype == "float64"):
        metric = replace(alex, dtype=dtype, forward_mode=forward_mode)
        gradient = jax.jit(jax.grad(lambda y, x, metric: rl.distance(x, y, metric)))
        for pair in range(1 if forward_mode else 3):
            x, y = (jnp.asarray(goldens[f"{side}{pair}"] / 255, dtype) for side in "xy")
            assert_gradient(gradient(y, x, metric), goldens[f"stlpips-alex/grad_y{pair}"])


@functools.cache
def small() -> Any:
    """ST-LPIPS's AlexNet with an eighth of its channels, and its parameters."""
    layers = tuple(
        replace(layer, channels=layer.channels // 8) if isinstance(layer, Convolution) else layer
        for layer in STALEX.layers
    )
    network = replace(STALEX, layers=layers)
    tensors = draw(with_heads(network).pytorch_shapes)
    parameters = jax.tree.map(jnp.asarray, from_pytorch(tensors, with_heads(network), "drawn"))
    return network, Lpips(parameters, "small", network)


@pytest.mark.parametrize("size", [(29, 32), (34, 37)], ids=str)
def test_a_blurred_convolution_is_a_convolution_and_a_blur_pooling(size: tuple[int, int]) -> None:
    """With odd and even numbers of pixels between the two, on which the last window depends."""
    network, metric = small()
    x = jnp.asarray(np.random.RandomState(1).standard_normal((2, *size, 3)), jnp.float32)
    computation, parameters = Computation(), metric.parameters["backbone"]
    stage, *_ = network.stages()

    def one_after_the_other(x: jax.Array) -> jax.Array:
        convolved = computation.convolve(parameters["features_0"], x, padding=2)
        return jax.nn.relu(computation.blur_pool(convolved))

    def at_once(x: jax.Array) -> jax.Array:
        return network.stage(stage, parameters, x, computation=computation)[0]

    (found, slope), (expected, wanted) = (
        jax.jit(jax.value_and_grad(lambda x, f=function: jnp.square(f(x)).sum()))(x)
        for function in (at_once, one_after_the_other)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max()))


@pytest.mark.slow
def test_images_of_several_sizes_in_one_batch() -> None:
    _, metric = small()
    sizes = np.array([[21, 30], [30, 21], [24, 27], [30, 30]])
    x, y = np.random.RandomState(2).uniform(size=(2, 4, 30, 30, 3)).astype(np.float32)
    found = metric.padded_distance(x, y, sizes)
    expected = [
        rl.distance(one[:height, :width], other[:height, :width], metric)
        for one, other, (height, width) in zip(x, y, sizes, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "backbone"), [("alex", STALEX), ("vgg", STVGG)], ids=["alex", "vgg"])
def test_the_authors_package(name: str, backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    # Imported by the package, and of no account for its metrics.
    for absent, members in (("torchvision", ["models"]), ("IPython", ["embed"]), ("torchsummary", ["summary"])):
        module = types.ModuleType(absent)
        for member in members:
            setattr(module, member, None)
        monkeypatch.setitem(sys.modules, absent, module)
    stlpips = pytest.importorskip("stlpips_pytorch.stlpips")
    # Or classifiers that are thrown away would be drawn first.
    monkeypatch.setattr("torch.nn.Linear.reset_parameters", lambda self: None)
    monkeypatch.setattr("torch.nn.init.normal_", lambda tensor, *_: tensor)
    module = stlpips.LPIPS(net=name, variant="shift_tolerant", pretrained=False, verbose=False)
    layout = with_heads(backbone)
    metric = Lpips(from_pytorch(draw(layout.pytorch_shapes), layout, "drawn"), f"stlpips-{name}", backbone)
    tensors = to_pytorch(metric.parameters, backbone)
    missing, left_over = module.load_state_dict(
        {key: torch.from_numpy(tensor) for key, tensor in tensors.items()}, strict=False
    )
    assert not left_over
    assert all(key.endswith(".filt") for key in missing)
    x, y = np.random.RandomState(3).uniform(-1, 1, (2, 2, 36, 45, 3))
    theirs = [torch.from_numpy(images.transpose(0, 3, 1, 2).copy()) for images in (x, y)]
    expected, layers = module.double()(*theirs, retPerLayer=True)
    with jax.enable_x64(True):
        found = np.asarray(rl.layer_distances(x, y, replace(metric, dtype="float64"), value_range=(-1, 1)))
    np.testing.assert_allclose(found.sum(axis=-1), expected.detach().numpy().reshape(-1), rtol=1e-6)
    # The first entry of their list is the running sum.
    for layer in range(1, len(layers)):
        np.testing.assert_allclose(found[:, layer], layers[layer].detach().numpy().reshape(-1), rtol=1e-6)
