"""What a distance must be, whatever its weights: properties, gradients, transformations, devices, misuse."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import rlpips_jax as rl
from rlpips_jax.backbones import ALEX, SQUEEZE, TINY, VGG
from rlpips_jax.cli.doctor import distance_in_numpy
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.ops.pooling import Pooling
from rlpips_jax.weights import native
from rlpips_jax.weights.parameters import with_heads


def photographs(*shape: int, seed: int = 0) -> np.ndarray:
    """Bytes with edges and gradients."""
    rng = np.random.RandomState(seed)
    noise = rng.uniform(0, 1, shape)
    smooth = np.cumsum(np.cumsum(noise - 0.5, axis=-3), axis=-2)
    span = np.ptp(smooth, axis=(-3, -2), keepdims=True)
    return (255 * (smooth - smooth.min(axis=(-3, -2), keepdims=True)) / span).astype(np.uint8)


def as_floats(images: np.ndarray) -> np.ndarray:
    """In [0, 1]."""
    return np.asarray(images / 255, np.float32)


X, Y = photographs(3, 40, 45, 3), photographs(3, 40, 45, 3, seed=1)


LARGE = [pytest.param(backbone, marks=pytest.mark.slow) for backbone in (ALEX, SQUEEZE)]
"""Networks with many layers to compile; the layers of TINY are like theirs."""


@pytest.fixture(scope="module", params=[*LARGE, TINY], ids=lambda architecture: architecture.name)
def metric(request, drawn) -> Lpips:
    return drawn(request.param)


@pytest.fixture(scope="module")
def tiny(drawn) -> Lpips:
    return drawn(TINY)


FLOORS = 0.05, 0.0, 0.5, 2.0


def with_floors(metric: Lpips, *floors: float) -> Lpips:
    arrays = tuple(jnp.asarray(floor, jnp.float32) for floor in floors or FLOORS)
    return dataclasses.replace(metric, parameters=metric.parameters | {"floors": arrays})


@pytest.fixture(scope="module")
def floored(tiny) -> Lpips:
    return with_floors(tiny)


def by_hand(x: np.ndarray, y: np.ndarray, metric: Lpips) -> np.ndarray:
    """The definition, in float64, from the metric's own features."""
    layers = []
    for f, g, head in zip(metric.features(x), metric.features(y), metric.parameters["heads"], strict=True):
        difference = np.square(np.float64(f) - np.float64(g)) @ np.float64(head)
        layers.append(difference.mean(axis=(-2, -1)))
    return np.stack(layers, axis=-1)


def test_distance_is_its_definition(metric) -> None:
    layers = rl.layer_distances(X, Y, metric)
    np.testing.assert_allclose(layers, by_hand(X, Y, metric), rtol=2e-5)
    np.testing.assert_allclose(rl.distance(X, Y, metric), np.sum(layers, axis=-1), rtol=1e-6)
    assert rl.distance(X, Y, metric).min() > 0.01


def test_features_have_length_one_or_zero(metric) -> None:
    for feature in metric.features(X):
        length = np.linalg.norm(feature, axis=-1)
        assert np.all((np.abs(length - 1) < 1e-5) | (length == 0))


def test_identical_images_are_at_distance_exactly_zero(metric) -> None:
    for distance in (rl.distance, jax.jit(rl.distance, static_argnames="value_range"), rl.distance_map):
        assert np.all(np.asarray(distance(X, X, metric)) == 0)
        assert np.all(np.asarray(distance(X[0], X[0], metric)) == 0)
    assert np.all(np.asarray(rl.layer_distances(X, X, metric)) == 0)
    mixed = rl.distance(X, np.stack([X[0], Y[1], X[2]]), metric)
    assert list(np.asarray(mixed) == 0) == [True, False, True]


def test_distance_is_symmetric(metric) -> None:
    np.testing.assert_allclose(rl.distance(X, Y, metric), rl.distance(Y, X, metric), rtol=1e-6)


@pytest.mark.parametrize(
    "leading", [(), pytest.param((1,), marks=pytest.mark.slow), (2, 3), pytest.param((1, 2, 1), marks=pytest.mark.slow)]
)
def test_a_distance_has_the_leading_axes_and_nothing_else(leading, tiny) -> None:
    x, y = (photographs(*leading, 33, 47, 3, seed=seed) for seed in (2, 3))
    d = rl.distance(x, y, tiny)
    assert d.shape == leading
    assert rl.layer_distances(x, y, tiny).shape == (*leading, 4)
    assert rl.distance_map(x, y, tiny).shape == (*leading, 33, 47)
    one_by_one = [
        rl.distance(a, b, tiny) for a, b in zip(x.reshape(-1, 33, 47, 3), y.reshape(-1, 33, 47, 3), strict=True)
    ]
    np.testing.assert_allclose(np.ravel(d), one_by_one, rtol=1e-5)


def test_an_empty_batch_has_no_distances(tiny) -> None:
    assert rl.distance(X[:0], Y[:0], tiny).shape == (0,)


def test_distances_from_features_are_the_distances_and_broadcast(metric) -> None:
    features, others = metric.features(X), metric.features(Y)
    np.testing.assert_allclose(metric.between(features, others), rl.distance(X, Y, metric), rtol=1e-6)
    one = tuple(feature[:1] for feature in features)
    np.testing.assert_allclose(
        metric.between(one, others), rl.distance(np.broadcast_to(X[:1], Y.shape), Y, metric), rtol=1e-5
    )
    assert np.all(np.asarray(metric.between(features, features)) == 0)


def test_the_map_is_high_where_the_images_differ(metric) -> None:
    y = X.copy()
    y[:, 20:, 23:] = Y[:, 20:, 23:]
    corner = np.zeros((40, 45), bool)
    corner[20:, 23:] = True
    difference = np.asarray(rl.distance_map(X, y, metric))
    assert np.all(difference[:, corner].mean(axis=1) > 3 * difference[:, ~corner].mean(axis=1))


@pytest.mark.slow
def test_blocks_bound_memory(tiny) -> None:
    """Forward and in the gradient, what is held beside the images does not grow with their number."""

    def held(count: int, most: int | None) -> float:
        blocks = dataclasses.replace(tiny, max_batch=most)
        images = jax.ShapeDtypeStruct((count, 64, 64, 3), jnp.float32)
        gradient = jax.jit(jax.grad(lambda m, x, y: rl.distance(x, y, m).sum(), argnums=2))
        memory = gradient.lower(blocks, images, images).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    image = 64 * 64 * 3 * 4
    few, many = held(8, 2), held(32, 2)
    assert many - few < 24 * 6 * image
    assert many < 0.5 * held(32, None)


@pytest.mark.slow
def test_blocks_change_no_result(tiny) -> None:
    blocks = dataclasses.replace(tiny, max_batch=2)
    np.testing.assert_allclose(rl.distance(X, Y, blocks), rl.distance(X, Y, tiny), rtol=1e-5)
    for f, g in zip(blocks.features(X), tiny.features(X), strict=True):
        np.testing.assert_allclose(f, g, atol=1e-5)
    np.testing.assert_allclose(rl.distance_map(X, Y, blocks), rl.distance_map(X, Y, tiny), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_blocks_and_recomputed_activations_change_no_gradient(tiny) -> None:
    def gradient(metric: Lpips) -> jax.Array:
        return jax.grad(lambda y: rl.distance(X / 255, y, metric).sum())(Y / np.float32(255))

    plain = gradient(tiny)
    for options in ({"remat": True}, {"max_batch": 2}):
        other = gradient(dataclasses.replace(tiny, **options))
        np.testing.assert_allclose(plain, other, atol=1e-5 * float(jnp.abs(plain).max()))


@pytest.mark.slow
@pytest.mark.parametrize("max_memory", [1 << 30, 1], ids=["at once", "in blocks"])
def test_pairwise_is_every_distance(max_memory, tiny) -> None:
    xs, ys = (photographs(count, 33, 35, 3, seed=seed) for count, seed in ((5, 10), (3, 11)))
    ys[1] = xs[4]
    ys[2] = np.clip(xs[0].astype(int) + 1, 0, 255)
    expected = np.stack([rl.distance(np.broadcast_to(x, ys.shape), ys, tiny) for x in xs])
    found = rl.pairwise(xs, ys, tiny, max_memory=max_memory)
    assert found.shape == (5, 3)
    assert found[4, 1] == 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(rl.pairwise(ys, xs, tiny, max_memory=max_memory), expected.T, rtol=1e-5)
    between = tiny.pairwise_between(tiny.features(xs), tiny.features(ys))
    np.testing.assert_allclose(between, expected, rtol=1e-5, atol=1e-12)
    assert rl.pairwise(xs[:0], ys, tiny).shape == (0, 3)


@pytest.mark.slow
def test_the_gradient_of_pairwise_is_that_of_the_distances(tiny) -> None:
    xs, ys = (as_floats(photographs(count, 31, 33, 3, seed=seed)) for count, seed in ((3, 12), (2, 13)))
    weights = np.array([[1, -2], [3, 0.5], [0, 1]], np.float32)

    def one_by_one(xs: jax.Array, ys: jax.Array) -> jax.Array:
        rows = [rl.distance(jnp.broadcast_to(x, ys.shape), ys, tiny) for x in xs]
        return jnp.sum(weights * jnp.stack(rows))

    expected = jax.grad(one_by_one, argnums=(0, 1))(jnp.asarray(xs), jnp.asarray(ys))
    for allowed in (1 << 30, 1):
        total = functools.partial(rl.pairwise, max_memory=allowed)
        found = jax.jit(jax.grad(lambda xs, ys, f=total: jnp.sum(weights * f(xs, ys, tiny)), argnums=(0, 1)))(xs, ys)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


@pytest.mark.slow
def test_pairwise_holds_its_memory(tiny) -> None:
    """Beside images and result, what a thousand images take is near what was allowed, and far below their features."""

    def held(count: int, allowed: int) -> int:
        images = jax.ShapeDtypeStruct((count, 64, 64, 3), jnp.uint8)
        program = jax.jit(functools.partial(rl.pairwise, max_memory=allowed)).lower(images, images, tiny).compile()
        memory = program.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes - 2 * count * 64 * 64 * 3 * 4 - 8 * 4 * count * count

    allowed = 1 << 26
    assert held(1000, allowed) < 2 * allowed
    assert held(1000, 1 << 30) > 1.5 * allowed, "the test no longer sees the features"


@pytest.mark.usefixtures("wrong_types")
def test_pairwise_refuses_what_makes_no_matrix(tiny) -> None:
    with pytest.raises(rl.ImageError, match="two batches"):
        rl.pairwise(X[0], Y, tiny)
    with pytest.raises(rl.ImageError, match="differ in size"):
        rl.pairwise(X, Y[:, 1:], tiny)
    with pytest.raises(rl.ImageError, match="ys has dtype int64"):
        rl.pairwise(X, Y.astype(np.int64), tiny)
    with pytest.raises(rl.MetricError, match="max_memory must be a whole number, 1 or more"):
        rl.pairwise(X, Y, tiny, max_memory=0)
    with pytest.raises(rl.MetricError, match="one leading axis"):
        tiny.pairwise_between(tiny.features(X[0]), tiny.features(Y))


@pytest.mark.slow
def test_padded_pairs_of_several_sizes_are_at_the_distances_of_the_pairs_alone(metric) -> None:
    sizes = np.array([[40, 45], [33, 31], [31, 44], [38, 38]])
    x, y = (photographs(4, 40, 45, 3, seed=seed) for seed in (8, 9))
    y[2] = x[2]
    y[3, :38, :38] = x[3, :38, :38]  # What lies outside its size makes no pair differ.
    found = np.asarray(metric.padded_distance(x, y, sizes))
    alone = [rl.distance(a[:h, :w], b[:h, :w], metric) for a, b, (h, w) in zip(x, y, sizes, strict=True)]
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    blocks = dataclasses.replace(metric, max_batch=3)
    np.testing.assert_allclose(blocks.padded_distance(x, y, sizes), found, rtol=1e-5)
    assert list(found == 0) == [False, False, True, True]


@pytest.mark.usefixtures("wrong_types")
def test_sizes_out_of_bounds_are_refused(tiny) -> None:
    for sizes in ([[40, 46]] * 3, [[30, 45]] * 3):
        with pytest.raises(rl.ImageError, match=r"between 31x31 .* and the images' 40x45"):
            tiny.padded_distance(X, Y, np.array(sizes))
    with pytest.raises(rl.ImageError, match=r"needs sizes \(n, 2\)"):
        tiny.padded_distance(X, Y, np.array([40, 45]))


def test_the_gradient_is_the_slope(tiny) -> None:
    """Central differences in float64."""
    with jax.enable_x64(True):
        metric = dataclasses.replace(tiny, dtype="float64")
        x, y = X[0] / 255, 0.05 + 0.9 * (Y[0] / 255)
        gradient = jax.grad(lambda y: rl.distance(x, y, metric))(y)
        direction = np.random.RandomState(5).standard_normal(y.shape)
        step = 1e-6 * direction
        slope = (rl.distance(x, y + step, metric) - rl.distance(x, y - step, metric)) / 2e-6
        assert gradient.dtype == jnp.float64
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-4)


IMAGES = {
    "photograph": as_floats(X[0]),
    "grey": np.full((40, 45, 3), 0.4, np.float32),
    "middle": np.full((40, 45, 3), 0.5, np.float32),
    "black": np.zeros((40, 45, 3), np.float32),
    "white": np.ones((40, 45, 3), np.float32),
}


@jax.jit
def gradients(metric: Lpips, x: jax.Array, y: jax.Array) -> tuple:
    """By the parameters and by an image, of a distance and of one that is masked away, through which a NaN leaks."""

    def loss(metric: Lpips, y: jax.Array) -> jax.Array:
        distances = rl.distance(x, y, metric)
        return (distances + jnp.where(jnp.any(x != x), distances, 0.0)).sum()

    return jax.grad(loss, argnums=(0, 1))(metric, y)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        pytest.param(ALEX, "float32", marks=pytest.mark.slow),
        pytest.param(SQUEEZE, "float32", marks=pytest.mark.slow),
        (TINY, "float32"),
        (TINY, "bfloat16"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_gradients_are_finite_everywhere(architecture, dtype, drawn) -> None:
    metric = drawn(architecture, dtype=dtype, version="0.0")
    # Without biases a black image has features that are exactly 0, the hardest case of the normalisation.
    bare = {"backbone": jax.tree.map(lambda leaf: leaf * (leaf.ndim != 1), metric.parameters["backbone"])}
    y = np.stack([image[:32, :32] for image in IMAGES.values()])
    for candidate in (metric, dataclasses.replace(metric, parameters=metric.parameters | bare)):
        for x in (y, np.broadcast_to(y[:1], y.shape)):
            assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients(candidate, x, y)))
    middle = np.zeros((1, 32, 32, 3), np.float32) + 0.5
    features = dataclasses.replace(metric, parameters=metric.parameters | bare).features(middle)
    assert all(float(jnp.abs(feature).max()) == 0 for feature in features), "the test lost its hardest case"


@pytest.mark.parametrize("wrap", ["jit", "vmap", "scan", "value_and_grad"])
def test_transformations_agree_with_the_plain_call(wrap, tiny) -> None:
    x, y = as_floats(X), as_floats(Y)
    expected = rl.distance(x, y, tiny)
    if wrap == "jit":
        found = jax.jit(rl.distance)(x, y, tiny)
    elif wrap == "vmap":
        found = jax.vmap(rl.distance, in_axes=(0, 0, None))(x, y, tiny)
    elif wrap == "scan":
        _, found = jax.lax.scan(lambda carry, pair: (carry, rl.distance(*pair, tiny)), 0, (x, y))
    else:
        total, gradient = jax.value_and_grad(lambda y: rl.distance(x, y, tiny).sum())(y)
        one_by_one = [jax.grad(lambda b, a=a: rl.distance(a, b, tiny))(b) for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(total, expected.sum(), rtol=1e-6)
        np.testing.assert_allclose(gradient, one_by_one, atol=1e-5 * float(jnp.abs(gradient).max()))
        return
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("same", [False, True], ids=["different", "identical"])
def test_gradients_through_checkpoint_and_scan_are_the_plain_ones(same, tiny) -> None:
    x = as_floats(X)
    y = x if same else as_floats(Y)

    def in_scan(y: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda total, pair: (total + rl.distance(*pair, tiny), None), jnp.zeros(()), (x, y))[0]

    plain = jax.grad(lambda y: rl.distance(x, y, tiny).sum())(y)
    for found in (jax.grad(in_scan)(y), jax.grad(jax.checkpoint(lambda y: rl.distance(x, y, tiny).sum()))(y)):
        assert jnp.isfinite(found).all()
        np.testing.assert_allclose(found, plain, atol=1e-6 + 1e-5 * float(jnp.abs(plain).max()))


@pytest.mark.slow
def test_second_derivatives_survive_at_identical_images(tiny) -> None:
    """At x == y the distance is 0 and flat, and curved: its Hessian is 2 J'WJ, not 0."""
    x = jnp.asarray(X[0] / 255, jnp.float32)
    direction = jnp.asarray(np.random.RandomState(0).standard_normal(x.shape), jnp.float32)
    slope = jax.grad(lambda y: rl.distance(x, y, tiny))
    curvature = jax.grad(lambda y: jnp.vdot(slope(y), direction))(x)
    assert float(jnp.vdot(curvature, direction)) > 0
    features = dataclasses.replace(tiny, forward_mode=True).features
    _, forward = jax.jvp(lambda y: jnp.concatenate([f.ravel() for f in features(y)]), (x,), (direction,))
    weights = jnp.concatenate(
        [
            jnp.broadcast_to(head / (f.shape[-2] * f.shape[-3]), f.shape).ravel()
            for head, f in zip(tiny.parameters["heads"], tiny.features(x), strict=True)
        ]
    )
    np.testing.assert_allclose(jnp.vdot(curvature, direction), 2 * jnp.sum(weights * forward**2), rtol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.03), ("float64", 1e-5)])
def test_other_types_stay_near_float32(dtype, tolerance, metric) -> None:
    expected = rl.distance(X, Y, metric)
    with jax.enable_x64(dtype == "float64"):
        found = rl.distance(X, Y, dataclasses.replace(metric, dtype=dtype))
        assert found.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
        np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_parameters_are_arguments_and_not_constants_of_the_program(tiny) -> None:
    def largest_constant(program: str) -> int:
        sizes = re.findall(r"stablehlo\.constant[^\n]*tensor<((?:\d+x)+)(?:f|bf|i|ui)\d+>", program)
        return max((int(np.prod([int(n) for n in size.split("x") if n])) for size in sizes), default=0)

    spec = jax.ShapeDtypeStruct((2, 40, 45, 3), jnp.float32)
    as_argument = jax.jit(rl.distance).lower(spec, spec, tiny).as_text()
    closed_over = jax.jit(lambda x, y: rl.distance(x, y, tiny)).lower(spec, spec).as_text()
    assert largest_constant(as_argument) <= 3
    assert largest_constant(closed_over) > 10_000, "the test no longer sees constants"


def test_a_metric_is_a_pytree(tiny) -> None:
    doubled = jax.tree.map(lambda leaf: 2 * leaf, tiny)
    assert isinstance(doubled, Lpips)
    assert doubled.backbone == tiny.backbone
    shapes = jax.eval_shape(rl.distance, X, Y, tiny)
    assert (shapes.shape, shapes.dtype) == ((3,), jnp.float32)
    abstract = jax.eval_shape(lambda metric: metric, tiny)
    assert jax.tree.structure(abstract) == jax.tree.structure(tiny)
    with pytest.raises(rl.MetricError, match="outside jit"):
        _ = abstract.signature


def test_a_donated_metric_comes_back(tiny) -> None:
    copy = jax.tree.map(jnp.copy, tiny)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(metric: Lpips) -> tuple[Lpips, jax.Array]:
        return jax.tree.map(lambda leaf: leaf * 0.5, metric), rl.distance(X, Y, metric).sum()

    halved, total = step(copy)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(copy))
    np.testing.assert_allclose(total, rl.distance(X, Y, tiny).sum(), rtol=1e-6)
    np.testing.assert_allclose(halved.parameters["heads"][0], tiny.parameters["heads"][0] / 2)


@pytest.mark.parametrize(
    "style",
    [
        pytest.param("jit", marks=pytest.mark.slow),
        "shard_map",
        pytest.param("shard_map, remat", marks=pytest.mark.slow),
    ],
)
def test_sharded_images_and_a_replicated_metric_give_the_loss_of_one_device(style, tiny) -> None:
    """A step that moves images, as a generator's training does."""
    devices = np.array(jax.devices())
    assert len(devices) == 8
    x, y = (jnp.asarray(as_floats(photographs(16, 32, 32, 3, seed=seed))) for seed in (4, 5))

    def step(metric: Lpips, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(y: jax.Array) -> jax.Array:
            return rl.distance(x, y, metric).sum()

        value, gradient = jax.value_and_grad(loss)(y)
        return value, y - 0.1 * gradient

    expected, moved = step(tiny, x, y)
    tiny = dataclasses.replace(tiny, remat="remat" in style)
    mesh = Mesh(devices, ("data",))
    rows, everywhere = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    arguments = jax.device_put(tiny, everywhere), jax.device_put(x, rows), jax.device_put(y, rows)
    if style == "jit":
        value, images = jax.jit(step, out_shardings=(everywhere, rows))(*arguments)
    else:

        def local(metric: Lpips, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, images = step(metric, x, y)
            return jax.lax.psum(value, "data"), images

        specs = (PartitionSpec(), PartitionSpec("data"), PartitionSpec("data"))
        sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(PartitionSpec(), PartitionSpec("data")))
        value, images = jax.jit(sharded)(*arguments)
    assert images.sharding.is_equivalent_to(rows, images.ndim)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(images, moved, atol=1e-5)


@pytest.mark.slow
def test_pmap_as_older_training_code_calls_it(tiny) -> None:
    x, y = (photographs(8, 2, 32, 32, 3, seed=seed) for seed in (6, 7))
    found = jax.pmap(rl.distance, in_axes=(0, 0, None))(x, y, tiny)
    np.testing.assert_allclose(found, rl.distance(x, y, tiny), rtol=1e-5)


def test_the_signature_pins_what_changes_the_number(tiny) -> None:
    signature = tiny.signature
    assert signature == jax.tree.map(jnp.copy, tiny).signature
    assert all(part in signature for part in (rl.__version__, tiny.name, "float32", "highest", "0.1"))
    nudged = jax.tree.map(lambda leaf: leaf, tiny)
    nudged.parameters["heads"] = (
        nudged.parameters["heads"][0].at[0].add(1e-3),
        *nudged.parameters["heads"][1:],
    )
    others = [
        nudged,
        dataclasses.replace(tiny, dtype="bfloat16"),
        dataclasses.replace(tiny, precision="default"),
        dataclasses.replace(tiny, version="0.0"),
        dataclasses.replace(tiny, backbone=dataclasses.replace(tiny.backbone, pooling=Pooling("average", 3, 2))),
    ]
    assert len({signature, *(other.signature for other in others)}) == 6
    assert dataclasses.replace(tiny, max_batch=3, remat=True).signature == signature


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, float64"),
        ({"dtype": "floaty"}, "dtype must be one of"),
        ({"dtype": "float64"}, "jax_enable_x64"),
        ({"precision": "best"}, "precision must be one of default, high, highest"),
        ({"max_batch": 0}, "max_batch must be a whole number"),
        ({"name": None}, "named by a string or by a file's path"),
        ({"max_batch": True}, "max_batch must be a whole number"),
        ({"max_batch": 2.5}, "max_batch must be a whole number"),
    ],
)
def test_options_without_meaning_are_refused(options, message) -> None:
    arguments: Any = {"name": "lpips-tiny", **options}
    with pytest.raises(rl.MetricError, match=message):
        rl.load(**arguments)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(rl.UnknownMetric, match="did you mean lpips-alex"):
        rl.load("lpips-alexnet")


def test_missing_weights_say_where_to_put_which_file(tmp_path) -> None:
    with pytest.raises(rl.WeightsNotFound, match="is not a folder"):
        rl.load("lpips-tiny", weights_dir=tmp_path / "nowhere")
    with pytest.raises(rl.WeightsNotFound, match="no weight file"):
        rl.load(tmp_path / "nowhere.safetensors")


@pytest.mark.usefixtures("wrong_types")
def test_images_that_break_the_convention_are_refused_by_every_function(tiny) -> None:
    for function in (rl.distance, rl.layer_distances, rl.distance_map):
        with pytest.raises(rl.ImageError, match="at least 31x31"):
            function(X[:, :30], Y[:, :30], tiny)
        with pytest.raises(rl.ImageError, match=r"value_range=\(0, 255\) would fit"):
            function(X.astype(np.float32), Y.astype(np.float32), tiny)
        with pytest.raises(rl.ImageError, match="differ in size"):
            function(X, Y[:, 1:], tiny)
        with pytest.raises(rl.ImageError, match="must be a pair"):
            function(X, Y, tiny, value_range=255)  # pyright: ignore[reportArgumentType]
    with pytest.raises(rl.ImageError, match="images has dtype int64"):
        tiny.features(X.astype(np.int64))
    with pytest.raises(rl.MetricError, match="did you mean lpips-tiny"):
        rl.distance(X, Y, "lpips-tin")


def test_a_metric_may_be_named() -> None:
    expected = rl.distance(X, Y, rl.load("lpips-tiny"))
    np.testing.assert_array_equal(rl.distance(X, Y, "lpips-tiny"), expected)
    np.testing.assert_array_equal(rl.pairwise(X, Y, "lpips-tiny"), rl.pairwise(X, Y, rl.load("lpips-tiny")))
    with pytest.raises(rl.MetricError, match=r"a\.pth is a PyTorch checkpoint; 'python -m convert --checkpoint a\.pth"):
        rl.load("a.pth")


@pytest.mark.usefixtures("wrong_types")
def test_a_traced_range_says_what_to_do(tiny) -> None:
    with pytest.raises(rl.ImageError, match="static_argnames"):
        jax.jit(rl.distance)(X, Y, tiny, value_range=(0.0, 1.0))


def test_a_metric_is_shown_in_a_line(tiny) -> None:
    assert repr(tiny).startswith("Lpips('drawn-tiny', backbone='tiny'")
    assert len(repr(tiny)) < 200
    assert tiny == tiny
    assert tiny != jax.tree.map(jnp.copy, tiny)


def test_features_of_other_sizes_or_metrics_are_refused(tiny, drawn) -> None:
    with pytest.raises(rl.MetricError, match="compare images of one size"):
        tiny.between(tiny.features(X), tiny.features(Y[:, :33]))
    with pytest.raises(rl.MetricError, match="another metric"):
        tiny.between(tiny.features(X), drawn(ALEX).features(Y))


@pytest.mark.slow
def test_vgg_too_is_its_definition(drawn) -> None:
    """Apart from the others, as it is slow."""
    metric = drawn(VGG)
    x, y = X[:1, :32, :32], Y[:1, :32, :32]
    np.testing.assert_allclose(rl.layer_distances(x, y, metric), by_hand(x, y, metric), rtol=2e-5)
    assert float(rl.distance(x, x, metric)[0]) == 0


def test_a_renamed_file_is_refused(tiny, tmp_path) -> None:
    """Heads of another version or pooling fit in shape, and would load with wrong numbers."""
    native.write(tmp_path / "lpips-tiny.safetensors", tiny.parameters, with_heads(TINY), metric="lpips-alex@0.0")
    with pytest.raises(rl.WeightsMismatch, match=r"holds the metric 'lpips-alex@0\.0', not 'lpips-tiny'"):
        rl.load("lpips-tiny", weights_dir=tmp_path)


# Floors: h = f / sqrt(|f|^2 + c^2).


@pytest.mark.parametrize("floors", [(0, 0, 0, 0), (0.1, 0.1, 0.1, 0.1), (1, 0, 8, 3), (1e4, 1e4, 1e4, 1e4)])
def test_a_distance_with_floors_is_its_definition(floors) -> None:
    shipped = rl.load("lpips-tiny")
    metric = with_floors(shipped, *floors)
    for x, y in zip(X, Y, strict=True):
        np.testing.assert_allclose(rl.distance(x, y, metric), distance_in_numpy(x, y, metric), rtol=1e-5)
    np.testing.assert_allclose(rl.layer_distances(X, Y, metric), by_hand(X, Y, metric), rtol=2e-5)
    # |h| / |f| = 1 / sqrt(|f|^2 + c^2), and so |h| tells |f|: the same at two floors.
    for feature, plain, floor in zip(metric.features(X), shipped.features(X), floors, strict=True):
        length = np.linalg.norm(np.float64(feature), axis=-1, keepdims=True)
        np.testing.assert_allclose(feature, length * plain, atol=1e-6)
        assert np.all(length < 1 + 1e-6)
        assert floor == 0 or length.max() < 1


def test_floors_at_zero_are_no_floors(tiny) -> None:
    metric = with_floors(tiny, 0, 0, 0, 0)
    np.testing.assert_allclose(rl.distance(X, Y, metric), rl.distance(X, Y, tiny), rtol=1e-6)


@pytest.mark.slow
def test_a_floor_damps_faint_noise(tiny) -> None:
    """On dark flat images without biases activations are as faint as the noise, and are made unit vectors of."""
    bare = {"backbone": jax.tree.map(lambda leaf: leaf * (leaf.ndim != 1), tiny.parameters["backbone"])}
    plain = dataclasses.replace(tiny, version="0.0", parameters=tiny.parameters | bare)
    noise = np.random.default_rng(0).uniform(0.4999, 0.5001, (2, 40, 45, 3)).astype(np.float32)
    faint, strong = (
        [float(rl.distance(x, y, metric)) for metric in (plain, with_floors(plain, 0.05, 0.05, 0.05, 0.05))]
        for x, y in (noise, (X[0], Y[0]))
    )
    assert faint[0] > 0.1 * strong[0]
    assert faint[1] < 1e-3 * faint[0]
    assert strong[1] > 0.9 * strong[0]


@pytest.mark.slow
def test_with_floors_identical_images_are_at_distance_exactly_zero(floored) -> None:
    sizes = np.array([[40, 45]] * 3)
    for distance in (rl.distance, rl.distance_map):
        assert np.all(np.asarray(distance(X, X, floored)) == 0)
    assert np.all(np.diag(rl.pairwise(X, X, floored)) == 0)
    assert np.all(np.asarray(floored.padded_distance(X, X, sizes)) == 0)


@pytest.mark.slow
def test_every_way_to_a_distance_with_floors_agrees(floored) -> None:
    expected = rl.distance(X, Y, floored)
    np.testing.assert_allclose(jax.vmap(rl.distance, in_axes=(0, 0, None))(X, Y, floored), expected, rtol=1e-5)
    np.testing.assert_allclose(rl.distance(X, Y, dataclasses.replace(floored, max_batch=2)), expected, rtol=1e-5)
    np.testing.assert_allclose(np.diag(rl.pairwise(X, Y, floored)), expected, rtol=1e-5)
    np.testing.assert_allclose(floored.between(floored.features(X), floored.features(Y)), expected, rtol=1e-6)
    bfloat16 = rl.distance(X, Y, dataclasses.replace(floored, dtype="bfloat16"))
    assert bfloat16.dtype == jnp.float32
    np.testing.assert_allclose(bfloat16, expected, rtol=0.03)
    sizes = np.array([[40, 45], [33, 31], [33, 31]])
    alone = [rl.distance(a[:h, :w], b[:h, :w], floored) for a, b, (h, w) in zip(X, Y, sizes, strict=True)]
    np.testing.assert_allclose(floored.padded_distance(X, Y, sizes), alone, rtol=1e-6)


def test_many_floors_at_once(tiny) -> None:
    """A metric whose floors alone are mapped over."""
    several = np.array([FLOORS, (1, 1, 1, 1)], np.float32)

    def distances(floors: tuple) -> jax.Array:
        return rl.distance(X, Y, dataclasses.replace(tiny, parameters=tiny.parameters | {"floors": floors}))

    found = jax.jit(jax.vmap(distances))(tuple(several.T))
    expected = [rl.distance(X, Y, with_floors(tiny, *floors)) for floors in several.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def of_pairs(x: np.ndarray, y: np.ndarray, metric: Lpips) -> jax.Array:
    return rl.distance(x, y, metric).sum()


def of_a_matrix(x: np.ndarray, y: np.ndarray, metric: Lpips) -> jax.Array:
    return jnp.vdot(rl.pairwise(x, y, metric), jnp.array([[1, 2], [3, -1]]))


def of_padded_pairs(x: np.ndarray, y: np.ndarray, metric: Lpips) -> jax.Array:
    return metric.padded_distance(x, y, jnp.array([[33, 35], [31, 32]])).sum()


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (of_pairs, {}),
        pytest.param(of_pairs, {"remat": True}, marks=pytest.mark.slow),
        pytest.param(of_pairs, {"forward_mode": True}, marks=pytest.mark.slow),
        pytest.param(of_pairs, {"max_batch": 1}, marks=pytest.mark.slow),
        (of_a_matrix, {}),
        pytest.param(of_padded_pairs, {}, marks=pytest.mark.slow),
    ],
)
def test_the_gradient_by_floors_is_the_slope(function, options, floored) -> None:
    """Central differences in float64."""
    with jax.enable_x64(True):
        metric = dataclasses.replace(floored, dtype="float64", **options)
        x, y = X[:2, :33, :35] / 255, Y[:2, :33, :35] / 255

        @jax.jit
        def value(floors: tuple) -> jax.Array:
            parameters = metric.parameters | {"floors": floors}
            return function(x, y, dataclasses.replace(metric, parameters=parameters))

        floors = tuple(jnp.array(FLOORS))
        gradient = jax.jit(jax.grad(value))(floors)
        for tap, (slope, floor) in enumerate(zip(gradient, FLOORS, strict=True)):
            below, above = (value((*floors[:tap], floors[tap] + step, *floors[tap + 1 :])) for step in (-1e-4, 1e-4))
            np.testing.assert_allclose(slope, (above - below) / 2e-4, rtol=1e-4, atol=1e-10)
            assert slope != 0 or floor == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("floor", [0, 1e-30, 1e-10, 1])
def test_gradients_with_floors_are_finite_everywhere(floor, dtype, drawn) -> None:
    metric = with_floors(drawn(TINY, dtype=dtype, version="0.0"), *[floor] * 4)
    bare = {"backbone": jax.tree.map(lambda leaf: leaf * (leaf.ndim != 1), metric.parameters["backbone"])}
    y = np.stack([image[:32, :32] for image in IMAGES.values()])
    for candidate in (metric, dataclasses.replace(metric, parameters=metric.parameters | bare)):
        for x in (y, np.broadcast_to(y[:1], y.shape)):
            assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients(candidate, x, y)))


@pytest.mark.parametrize("exponent", range(-45, 1, 5))
def test_features_of_every_strength_have_finite_gradients_with_floors(exponent, tiny) -> None:
    """Scaled kernels without biases make activations of every size down to the smallest float."""
    kernels = jax.tree.map(lambda leaf: leaf * (leaf.ndim != 1), tiny.parameters["backbone"])
    first = next(iter(kernels))
    kernels[first]["kernel"] *= 10.0**exponent
    for floor in (0, 1):
        metric = with_floors(
            dataclasses.replace(tiny, parameters=tiny.parameters | {"backbone": kernels}), *[floor] * 4
        )
        gradient = gradients(metric, as_floats(X[:1]), as_floats(Y[:1]))
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize("floors", [(), (1.0,) * 3, (1.0,) * 5, (np.ones(1),) * 4, (np.ones(16, np.float32),) * 4])
def test_floors_that_are_not_one_a_tap_are_refused(floors, tiny) -> None:
    metric = dataclasses.replace(tiny, parameters=tiny.parameters | {"floors": floors})
    with pytest.raises(rl.MetricError, match=r"4 taps and needs one floor of shape \(\) for each, got \["):
        rl.distance(X, Y, metric)


def test_the_signature_tells_of_floors(tiny, floored) -> None:
    assert "floors" not in tiny.signature
    assert "floors=4" in floored.signature
    assert len({tiny.signature, floored.signature, with_floors(tiny, 1, 1, 1, 1).signature}) == 3


def test_floors_come_from_the_file(tmp_path) -> None:
    """With the heads, by name and by path; they stay if the heads are not wanted."""
    expected = with_floors(rl.load("lpips-tiny"))
    path = tmp_path / "lpips-tiny.safetensors"
    native.write(path, jax.device_get(expected.parameters), with_heads(TINY), metric="lpips-tiny")
    for metric in (rl.load("lpips-tiny", weights_dir=tmp_path), rl.load(path)):
        assert metric.signature == expected.signature
        np.testing.assert_array_equal(rl.distance(X, Y, metric), rl.distance(X, Y, expected))
    unweighted = rl.load(path, unweighted=True)
    assert unweighted.parameters["floors"] == metric.parameters["floors"]
    assert all(np.all(np.asarray(head) == 1) for head in unweighted.parameters["heads"])
    assert all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in unweighted.parameters["floors"])


@pytest.mark.slow
def test_heads_bring_floors_to_a_backbone_of_another_file(drawn, tmp_path) -> None:
    parameters = jax.device_get(with_floors(drawn(ALEX), 1, 2, 3, 4, 5).parameters)
    native.write(tmp_path / "alex.safetensors", {"backbone": parameters["backbone"]}, with_heads(ALEX))
    alone = {"heads": parameters["heads"], "floors": parameters["floors"]}
    native.write(tmp_path / "rlpips-alex.safetensors", alone, with_heads(ALEX), metric="rlpips-alex")
    metric = rl.load("rlpips-alex", weights_dir=tmp_path)
    assert [float(floor) for floor in metric.parameters["floors"]] == [1, 2, 3, 4, 5]
