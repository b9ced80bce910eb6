"""PyTorch's checkpoints and the parameter tree: checkpoints fit completely, and come back bit for bit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpips_jax.backbones import (
    ALEX,
    ELPIPS_SQUEEZE,
    ELPIPS_VGG,
    INPUT,
    SQUEEZE,
    TINY,
    VGG,
    Convolution,
    Fire,
    Pool,
    Sequential,
)
from rlpips_jax.errors import WeightsMismatch
from rlpips_jax.ops.pooling import Pooling
from rlpips_jax.weights.parameters import (
    digest,
    digest_tensors,
    flatten,
    from_pytorch,
    to_pytorch,
    unflatten,
    with_heads,
)

MINI = Sequential(
    "mini",
    (Convolution(0, 4, 3, padding=1), Pool(1), Fire(2, 2, 3), Convolution(3, 5, 1)),
    Pooling("max", 2, 2),
    tapped=(0, 2, 3),
)
OTHER = Sequential("other", (Convolution(0, 4, 3), Convolution(1, 5, 3)), Pooling("max", 2, 2), tapped=(0, 1))

Tensors = dict[str, np.ndarray]


def drawn(architecture: Sequential, seed: int = 0) -> Tensors:
    """A checkpoint of a backbone and its heads, as torchvision and LPIPS name the tensors."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, shape in with_heads(architecture).pytorch_shapes.items():
        values = random.standard_normal(shape, np.float32)
        tensors[name] = np.abs(values).reshape(1, -1, 1, 1) if name.startswith("lin") else values
    return tensors


def same(one: dict, other: dict) -> bool:
    first, second = dict(flatten(one)), dict(flatten(other))
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_kernels_are_channels_last() -> None:
    tensors = drawn(MINI)
    parameters = from_pytorch(tensors, with_heads(MINI), "file")
    kernel = parameters["backbone"]["features_2"]["expand3x3"]["kernel"]
    weight = tensors["features.2.expand3x3.weight"]
    assert kernel.shape == (3, 3, 2, 3)
    for place in np.ndindex(kernel.shape):
        row, column, inputs, outputs = place
        assert kernel[place] == weight[outputs, inputs, row, column]
    np.testing.assert_array_equal(parameters["heads"][1], tensors["lin1.model.1.weight"].reshape(-1))
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for _, array in flatten(parameters))


@pytest.mark.parametrize(
    "architecture",
    [ALEX, SQUEEZE, TINY, ELPIPS_SQUEEZE, MINI],
    ids=lambda architecture: f"{architecture.name}-{len(architecture.tapped)}",
)
def test_round_trips_are_exact(architecture: Sequential) -> None:
    parameters = from_pytorch(drawn(architecture), with_heads(architecture), "file")
    assert same(parameters, from_pytorch(to_pytorch(parameters, architecture), with_heads(architecture), "file"))
    assert same(parameters, unflatten(dict(flatten(parameters)), with_heads(architecture), "file"))


def test_names_are_those_of_the_lpips_package() -> None:
    numbers = {1: (0,), 2: (3,), 3: (6,), 4: (8,), 5: (10,)}
    expected = {"scaling_layer.shift", "scaling_layer.scale"}
    for piece, indices in numbers.items():
        expected |= {f"net.slice{piece}.{index}.{leaf}" for index in indices for leaf in ("weight", "bias")}
        expected |= {f"lin{piece - 1}.model.1.weight", f"lins.{piece - 1}.model.1.weight"}
    tensors = to_pytorch(from_pytorch(drawn(ALEX), with_heads(ALEX), "file"), ALEX)
    assert tensors.keys() == expected
    assert tensors["net.slice1.0.weight"].shape == (64, 3, 11, 11)
    assert tensors["lin0.model.1.weight"].shape == (1, 64, 1, 1)
    assert tensors["scaling_layer.shift"].shape == (1, 3, 1, 1)
    # Each slice ends at a tap; VGG's fifth pooling is in none of them.
    vgg = to_pytorch({"backbone": _zeros(VGG)}, VGG)
    slices = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    assert {name for name in vgg if name.endswith("bias")} == {
        f"net.slice{number}.{index}.bias" for number, indices in enumerate(slices, start=1) for index in indices
    }


def _zeros(architecture: Sequential) -> dict:
    shapes = with_heads(architecture).pytorch_shapes
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("features")}
    return from_pytorch(tensors, with_heads(architecture), "file")["backbone"]


def test_a_tapped_input_has_a_head_and_a_slice_without_weights() -> None:
    tensors = drawn(ELPIPS_SQUEEZE)
    assert ELPIPS_SQUEEZE.tapped[0] == INPUT
    assert tensors["lin0.model.1.weight"].shape == (1, 3, 1, 1)
    names = to_pytorch(from_pytorch(tensors, with_heads(ELPIPS_SQUEEZE), "file"), ELPIPS_SQUEEZE)
    assert "net.slice2.0.weight" in names
    assert not any(name.startswith("net.slice1.") for name in names)
    assert len(ELPIPS_VGG.tapped) == 14


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("head", ["lin{}.model.1.weight", "lins.{}.model.1.weight", "lin{}.model.0.weight"])
@pytest.mark.parametrize("inside", [False, True])
def test_all_ways_to_name_a_tensor(prefix: str, head: str, inside: bool) -> None:
    slices = {0: 1, 2: 2, 3: 3}
    renamed = {}
    for name, tensor in drawn(MINI).items():
        if name.startswith("lin"):
            name = head.format(name[3])
        elif inside:
            name = f"net.slice{slices[int(name[9])]}.{name[9:]}"
        renamed[prefix + name] = tensor
    renamed[f"{prefix}classifier.1.weight"] = np.ones((2, 2), np.float32)
    assert same(from_pytorch(renamed, with_heads(MINI), "file"), from_pytorch(drawn(MINI), with_heads(MINI), "file"))


def test_heads_may_be_channels_last() -> None:
    tensors = drawn(MINI)
    heads = {name: tensor.reshape(1, 1, -1, 1) for name, tensor in tensors.items() if name.startswith("lin")}
    parameters = from_pytorch(heads, with_heads(MINI), "file")
    assert parameters.keys() == {"heads"}
    np.testing.assert_array_equal(parameters["heads"][2], tensors["lin2.model.1.weight"].reshape(-1))


@pytest.mark.parametrize("half", ["features", "lin"])
def test_either_half_may_be_absent(half: str) -> None:
    tensors = {name: tensor for name, tensor in drawn(MINI).items() if name.startswith(half)}
    parameters = from_pytorch(tensors, with_heads(MINI), "file")
    assert parameters.keys() == {"backbone" if half == "features" else "heads"}
    assert same(parameters, from_pytorch(to_pytorch(parameters, MINI), with_heads(MINI), "file"))


NAMES = sorted(with_heads(MINI).pytorch_shapes)


@given(st.sets(st.sampled_from(NAMES), min_size=1, max_size=len(NAMES) - 1))
def test_an_incomplete_half_is_refused(absent: set[str]) -> None:
    tensors = {name: tensor for name, tensor in drawn(MINI).items() if name not in absent}
    halves = [[name for name in NAMES if name.startswith(prefix)] for prefix in ("features", "lin")]
    partial = [name for names in halves if not absent.issuperset(names) for name in names if name in absent]
    if not partial:
        assert from_pytorch(tensors, with_heads(MINI), "file")
        return
    with pytest.raises(WeightsMismatch, match="file fits the network 'mini' only in part") as caught:
        from_pytorch(tensors, with_heads(MINI), "file")
    named = [name for name in partial if f"'{name}'" in str(caught.value)]
    assert len(named) == min(len(partial), 6)


def test_missing_and_left_over_tensors_are_named_together() -> None:
    tensors = drawn(MINI) | {"features.7.weight": np.zeros(1, np.float32), "net.num_batches": np.zeros(1)}
    del tensors["features.2.squeeze.bias"], tensors["lin2.model.1.weight"]
    with pytest.raises(WeightsMismatch) as caught:
        from_pytorch(tensors, with_heads(MINI), "some.pth")
    assert str(caught.value) == (
        "some.pth fits the network 'mini' only in part, so none of it was loaded: "
        "missing 'features.2.squeeze.bias', 'lin2.model.1.weight'; "
        "left over 'features.7.weight', 'net.num_batches'. Is it a checkpoint of another network, or incomplete?"
    )


def test_tensors_are_named_as_in_the_checkpoint() -> None:
    tensors = {f"module.{name}": tensor for name, tensor in to_pytorch(_parameters(), MINI).items()}
    del tensors["module.net.slice2.2.squeeze.weight"]
    with pytest.raises(WeightsMismatch, match=r"missing 'net\.slice2\.2\.squeeze\.weight'\."):
        from_pytorch(tensors, with_heads(MINI), "file")
    tensors = {f"module.{name}": tensor for name, tensor in to_pytorch(_parameters(), MINI).items()}
    tensors["module.lin1.model.1.weight"] = tensors["module.lins.1.model.1.weight"] = -np.ones((1, 6, 1, 1))
    with pytest.raises(WeightsMismatch, match=r"'module\.lin1\.model\.1\.weight' has negative values"):
        from_pytorch(tensors, with_heads(MINI), "file")


def _parameters() -> dict:
    return from_pytorch(drawn(MINI), with_heads(MINI), "file")


def test_another_network_is_refused() -> None:
    with pytest.raises(WeightsMismatch, match=r"missing .*'features\.2\..*left over 'features\.1\.weight'"):
        from_pytorch(drawn(OTHER), with_heads(MINI), "file")
    squeeze = {name: tensor for name, tensor in drawn(SQUEEZE).items() if name.startswith("features")}
    with pytest.raises(WeightsMismatch, match=r"left over 'features\.3\.squeeze\.weight'.* and \d+ more"):
        from_pytorch(squeeze, with_heads(ALEX), "file")


@pytest.mark.parametrize(
    ("tensors", "found"),
    [({}, "nothing else either"), ({"conv1.weight": np.ones(3, np.float32)}, "'conv1.weight'")],
)
def test_a_file_without_any_part_of_a_metric_is_refused(tensors: Tensors, found: str) -> None:
    with pytest.raises(WeightsMismatch, match=f"holds no tensor of the backbone 'mini'.*but {found}; expected"):
        from_pytorch(tensors, with_heads(MINI), "file")


def test_control_characters_in_names_are_escaped() -> None:
    with pytest.raises(WeightsMismatch) as caught:
        from_pytorch(drawn(MINI) | {"\x1b[2J\nfine": np.ones(1, np.float32)}, with_heads(MINI), "file")
    assert str(caught.value).isprintable()


def _set(name: str, value: float, dtype: type = np.float32) -> Callable[[Tensors], None]:
    """Replaces the type of a tensor, and its last entry."""

    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].astype(dtype)
        tensors[name].reshape(-1)[-1] = value

    return change


def _reshape(name: str, *shape: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = np.ones(shape, np.float32)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("lin1.model.1.weight", -1e-3), r"'lin1\.model\.1\.weight' has negative values \(smallest -0\.001\)"),
        (_set("lin1.model.1.weight", np.nan), r"'lin1\.model\.1\.weight' contains NaN"),
        (_set("features.0.bias", np.nan), r"'features\.0\.bias' contains NaN"),
        (_set("features.0.weight", np.inf), r"'features\.0\.weight' contains NaN, infinity"),
        (_set("features.0.weight", 1e300, np.float64), "more than float32 can hold"),
        (_set("features.0.weight", 1, np.int32), "has dtype int32, but weights are floating point"),
        (_set("features.0.weight", 1, np.complex64), "has dtype complex64, but weights are floating point"),
        (
            _reshape("features.0.weight", 4, 3, 5, 5),
            r"'features\.0\.weight' has shape \(4, 3, 5, 5\), but this network needs \(4, 3, 3, 3\)",
        ),
        (_reshape("lin0.model.1.weight", 1, 5, 1, 1), r"has shape \(5,\), but this network needs \(4,\)"),
        (_reshape("lin0.model.1.weight", 1, 2, 2, 1), r"has shape \(1, 2, 2, 1\), but a head is one weight"),
        (_reshape("lin0.model.1.weight"), r"has shape \(\), but a head is one weight per channel"),
    ],
)
def test_unfit_tensors_are_refused(change: Callable[[Tensors], None], message: str) -> None:
    tensors = drawn(MINI)
    change(tensors)
    with pytest.raises(WeightsMismatch, match=f"^some file: .*{message}"):
        from_pytorch(tensors, with_heads(MINI), "some file")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_every_floating_type_becomes_float32(dtype: type) -> None:
    tensors = {name: tensor.astype(dtype) for name, tensor in drawn(MINI).items()}
    parameters = from_pytorch(tensors, with_heads(MINI), "file")
    bias = parameters["backbone"]["features_0"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, tensors["features.0.bias"].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("lin1.model.1.weight", "lins.1.model.1.weight"),
        ("features.0.weight", "net.slice1.0.weight"),
        ("features.0.bias", "module.features.0.bias"),
    ],
)
def test_two_names_of_a_tensor_must_agree(name: str, alias: str) -> None:
    tensors = drawn(MINI)
    tensors[alias] = tensors[name].copy()
    assert same(from_pytorch(tensors, with_heads(MINI), "file"), _parameters())
    tensors[alias].reshape(-1)[0] += 0.5
    message = f"'{name}' and '{alias}' are names of the same tensor, but their values differ"
    with pytest.raises(WeightsMismatch, match=message):
        from_pytorch(tensors, with_heads(MINI), "file")


@pytest.mark.parametrize("name", ["scaling_layer.shift", "module.scaling_layer.scale"])
def test_the_scaling_layer_must_be_that_of_lpips(name: str) -> None:
    values = (-0.030, -0.088, -0.188) if "shift" in name else (0.458, 0.448, 0.450)
    right = np.array(values, np.float32).reshape(1, 3, 1, 1)
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        assert same(from_pytorch(drawn(MINI) | {name: right.astype(dtype)}, with_heads(MINI), "file"), _parameters())
    for wrong in (right + 1e-3, right[:, :2], np.full_like(right, np.nan), (right * 0).astype(np.int64)):
        with pytest.raises(WeightsMismatch, match=r"scaling_layer\.(shift|scale) is .*, but LPIPS's is \("):
            from_pytorch(drawn(MINI) | {name: wrong}, with_heads(MINI), "file")


def test_a_flat_file_must_fit_too() -> None:
    flat = dict(flatten(_parameters()))
    assert list(flat)[:2] == ["backbone.features_0.bias", "backbone.features_0.kernel"]
    with pytest.raises(WeightsMismatch, match=r"missing 'heads\.1'\."):
        unflatten({name: array for name, array in flat.items() if name != "heads.1"}, with_heads(MINI), "file")
    with pytest.raises(WeightsMismatch, match=r"left over 'heads\.3'"):
        unflatten(flat | {"heads.3": flat["heads.0"]}, with_heads(MINI), "file")
    with pytest.raises(WeightsMismatch, match=r"left over 'optimiser\.count'"):
        unflatten(flat | {"optimiser.count": flat["heads.0"]}, with_heads(MINI), "file")
    with pytest.raises(WeightsMismatch, match=r"'heads\.0' has negative values"):
        unflatten(flat | {"heads.0": -flat["heads.0"]}, with_heads(MINI), "file")
    with pytest.raises(WeightsMismatch, match="file holds no tensors"):
        unflatten({}, with_heads(MINI), "file")


FLOORS = tuple(np.array(floor, np.float32) for floor in (0, 0.5, 3))


def test_there_is_one_floor_per_tap() -> None:
    parameters = _parameters() | {"floors": FLOORS}
    flat = dict(flatten(parameters))
    assert {name for name in flat if name.startswith("floors")} == {"floors.0", "floors.1", "floors.2"}
    read = unflatten({name: np.asarray(array, np.float64) for name, array in flat.items()}, with_heads(MINI), "file")
    assert same(read, parameters)
    assert all(floor.shape == () and floor.dtype == np.float32 for floor in read["floors"])
    assert same(unflatten(dict(flatten({"floors": FLOORS})), with_heads(MINI), "file"), {"floors": FLOORS})
    for change, message in (
        ({"floors.1": np.array(-1e-3, np.float32)}, r"'floors\.1' has negative values \(smallest -0\.001\)"),
        ({"floors.1": np.array(np.nan, np.float32)}, r"'floors\.1' contains NaN"),
        ({"floors.1": np.array(np.inf, np.float32)}, r"'floors\.1' contains NaN, infinity"),
        ({"floors.1": np.array(1, np.int32)}, r"'floors\.1' has dtype int32"),
        ({"floors.1": np.ones(1, np.float32)}, r"'floors\.1' has shape \(1,\), but this network needs \(\)"),
        ({"floors.3": np.array(1, np.float32)}, r"left over 'floors\.3'"),
    ):
        with pytest.raises(WeightsMismatch, match=message):
            unflatten(flat | change, with_heads(MINI), "file")
    with pytest.raises(WeightsMismatch, match=r"missing 'floors\.1'\."):
        unflatten({name: array for name, array in flat.items() if name != "floors.1"}, with_heads(MINI), "file")


def test_the_digest_pins_floors() -> None:
    parameters = _parameters()
    floored = digest(parameters | {"floors": FLOORS})
    assert digest(parameters | {"floors": tuple(jnp.asarray(floor) for floor in FLOORS)}) == floored
    others = [
        parameters,
        parameters | {"floors": FLOORS[::-1]},
        parameters | {"floors": (*FLOORS[:2], np.array(4, np.float32))},
    ]
    assert len({floored, *map(digest, others)}) == 4


def test_floors_cannot_be_written_for_pytorch() -> None:
    with pytest.raises(WeightsMismatch, match=r"the metric has floors.*the lpips package always computes"):
        to_pytorch(_parameters() | {"floors": FLOORS}, MINI)
    with pytest.raises(WeightsMismatch, match=r"left over 'floors\.0'"):
        from_pytorch(drawn(MINI) | {"floors.0": np.array(1, np.float32)}, with_heads(MINI), "file")


def test_digest_pins_names_shapes_and_values() -> None:
    parameters = _parameters()
    expected = digest(parameters)
    assert digest(jax.tree.map(jnp.asarray, parameters)) == expected
    assert digest(jax.tree.map(lambda leaf: leaf.astype(np.float64), parameters)) == expected
    flat = dict(flatten(parameters))
    assert digest_tensors(dict(reversed(flat.items()))) == expected
    nearly = flat["heads.0"].copy()
    nearly[0] = np.nextafter(nearly[0], np.float32(2))
    kernel = "backbone.features_3.kernel"
    for changed in (
        flat | {"heads.0": nearly},
        flat | {kernel: flat[kernel].reshape(1, 1, 5, 6)},
        {name.replace("features_3", "features_4"): array for name, array in flat.items()},
        {name: array for name, array in flat.items() if name != "heads.2"},
    ):
        assert digest_tensors(changed) != expected
