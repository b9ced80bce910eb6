"""E-LPIPS: reference values, estimators without bias, gradients, and what an ensemble is not asked for."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import rlpips_jax as rl
from rlpips_jax import attacks
from rlpips_jax.backbones import (
    ELPIPS_VGG,
    INPUT,
    SQUEEZE,
    VGG,
    Convolution,
    Dropout,
    Fire,
    Pool,
    Pooling,
    Sequential,
)
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.ensemble import (
    Ensemble,
    distance_under,
    level_probabilities,
    sample_transformations,
    transform,
    transformations,
)
from rlpips_jax.ensemble import inference as estimation
from rlpips_jax.ensemble import sampling as estimators
from rlpips_jax.ensemble.ensemble import _between_pairs, _Chunk
from rlpips_jax.ensemble.sampling import Samples
from rlpips_jax.ensemble.transformations import from_uniform
from rlpips_jax.errors import AttackError, EnsembleError, ImageError, MetricError
from rlpips_jax.weights import native
from rlpips_jax.weights.parameters import from_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint
from tests.ensemble.test_transformations import of_record

MINI = Sequential(
    name="mini",
    layers=(Convolution(0, 6, 5, stride=4), Pool(1), Fire(2, 4, 4)),
    pooling=Pooling("max", 3, 2),
    tapped=(INPUT, 0, 2),
)
"""A network with every kind of layer."""

SINGLE = replace(MINI, name="single", layers=MINI.layers[:1], tapped=(INPUT, 0))
"""Its first layer, where the network is no matter."""

KEY = jax.random.key(0)
SMALL = 40
"""Pixels of images that have one scale level."""
LEVELS = 130
"""Pixels of images that have two scale levels."""
FEW = 44
"""Pixels of images that have two where `small_levels` holds; of no others, as programs are kept by shape."""


@pytest.fixture(scope="module")
def ensemble(drawn: Callable[..., Lpips]) -> Ensemble:
    return Ensemble(drawn(MINI))


@pytest.fixture(scope="module")
def single(drawn: Callable[..., Lpips]) -> Ensemble:
    return Ensemble(drawn(SINGLE))


@pytest.fixture
def small_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scale levels at a ninth of the pixels that they take."""
    monkeypatch.setattr(transformations, "PIXELS_A_LEVEL", FEW // 2)


def pairs(n: int, side: int = LEVELS) -> tuple[jax.Array, jax.Array]:
    """Smooth colours, and the same with noise."""
    rng = np.random.default_rng(0)
    coarse = rng.random((n, 8, 8, 3), np.float32)
    x = jax.image.resize(coarse, (n, side, side, 3), "bicubic").clip(0, 1)
    return x, jnp.clip(x + rng.normal(0, 0.1, x.shape).astype(np.float32), 0, 1)


@pytest.fixture
def weights(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequential], Path]:
    """Makes a folder of weights: of a network as it is kept, and E-LPIPS's heads as they are published."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(architecture: Sequential) -> Path:
        name = {"squeeze": "squeezenet1_1", "vgg": "vgg16"}[architecture.name]
        tensors, layout = read_checkpoint(shared / "weights" / f"{name}-features.pth"), with_heads(architecture)
        native.write(tmp_path / f"{architecture.name}.safetensors", from_pytorch(tensors, layout, name), layout)
        (tmp_path / "elpips").symlink_to(shared / "weights" / "elpips_heads")
        return tmp_path

    return make


def goldens(shared: Path) -> list[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    with np.load(shared / "goldens" / "elpips.npz") as found:
        records = json.loads(str(found["records"]))
        return [(record, *(found[f"{name}{record['pair']}"][None] for name in "xy")) for record in records]


@pytest.mark.slow
@pytest.mark.shared
def test_squeeze_reproduces_the_reference(shared: Path, weights: Callable[[Sequential], Path]) -> None:
    ensemble = rl.load("elpips-squeeze", weights_dir=weights(SQUEEZE))
    for record, x, y in goldens(shared):
        (found,) = distance_under(x, y, ensemble.metric, of_record(record))
        np.testing.assert_allclose(found, record["squeeze_maxpool"], rtol=1e-5)


@pytest.mark.shared
@pytest.mark.slow
def test_vgg_reproduces_the_reference(shared: Path, weights: Callable[[Sequential], Path]) -> None:
    """With real weights and with drawn ones, in one program a size."""
    metric = rl.load("elpips-vgg", weights_dir=weights(VGG)).metric
    rng, backbone = np.random.RandomState(0), {}
    for (name,), (_, _, inputs, outputs) in ELPIPS_VGG.convolutions():
        kernel = rng.standard_normal((outputs, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
        bias = rng.standard_normal(outputs) * 0.01
        backbone[name] = {"kernel": jnp.asarray(kernel.transpose(2, 3, 1, 0), jnp.float32), "bias": jnp.float32(bias)}
    metrics = {
        "vgg_avg": metric,
        "vgg_avg_drawn": replace(metric, parameters=metric.parameters | {"backbone": backbone}),
    }
    for record, x, y in goldens(shared):
        for name, each in metrics.items():
            (found,) = distance_under(x, y, each, of_record(record))
            np.testing.assert_allclose(found, record[name], rtol=1e-5)


def test_names() -> None:
    ensemble = rl.load("elpips-tiny", max_batch=4)
    assert isinstance(ensemble, Ensemble)
    assert (ensemble.name, ensemble.keep, ensemble.metric.max_batch) == ("elpips-tiny", 0.99, 4)
    assert ensemble.signature.startswith(f"rlpips-jax {rl.__version__} elpips-tiny ")
    assert ensemble.signature.endswith(" ensemble keep=0.99 estimator=stratified")


@pytest.mark.slow
def test_transposed_kernels_are_a_transposition(ensemble: Ensemble) -> None:
    x, y = pairs(2)
    x, y = x[:, :, :128], y[:, :, :128]
    numbers = jax.random.uniform(KEY, (3, 2, 9))
    chunks = {level: jax.jit(_Chunk(_between_pairs, level, 1.0)) for level in (1, 2)}
    for level in (1, 2):
        for transposed in (True, False):
            samples = Samples(numbers, jnp.asarray(transposed), jnp.zeros((3, 2, 2), jnp.uint32))
            found = chunks[level](ensemble.metric, (x[:, None], y[:, None]), samples)
            expected = [
                distance_under(x, y, ensemble.metric, from_uniform(each, level, transposed)) for each in numbers
            ]
            np.testing.assert_allclose(found, sum(expected), rtol=1e-5)


def test_dropout() -> None:
    x = jnp.ones((6, 40, 50, 8))
    dropout = Dropout(jax.random.bits(KEY, (3, 2), jnp.uint32), 0.9)
    first, second = (np.asarray(jax.jit(dropout.__call__, static_argnums=1)(x, place)) for place in (0, 1))
    assert set(np.unique(first)) == {0, np.float32(1 / 0.9)}
    # Two images in a row share a mask; others and other places have their own.
    np.testing.assert_array_equal(first[::2], first[1::2])
    masks = np.stack([*first[::2], *second[::2]]) > 0
    assert np.abs(masks.mean((1, 2, 3)) - 0.9).max() < 4 * np.sqrt(0.09 / masks[0].size)
    flat = masks.reshape(6, -1)
    shifted = [np.roll(flat[0], shift) for shift in (1, 8, 400, 4096)]
    correlations = np.asarray(np.corrcoef(np.stack([*flat, *shifted])))[np.triu_indices(10, 1)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(masks[0].size)


def test_same_key_same_bits_and_identical_images_are_at_zero(ensemble: Ensemble) -> None:
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(3))
    y = y.at[1].set(x[1])
    first = rl.distance(x, y, ensemble, key=KEY, samples=4)
    np.testing.assert_array_equal(first, rl.distance(x, y, ensemble, key=KEY, samples=4))
    assert first[1] == 0
    assert np.all(first[::2] > 0)
    assert np.all(rl.distance(x, y, ensemble, key=jax.random.key(1), samples=4)[::2] != first[::2])

    # Leading axes and other ranges, in a function that is jitted with the ensemble as an argument.
    @jax.jit
    def outer(x: jax.Array, y: jax.Array, ensemble: Ensemble) -> jax.Array:
        return rl.distance(x[:, None], y[:, None], ensemble, key=KEY, samples=4, value_range=(-1, 1))

    np.testing.assert_allclose(outer(2 * x - 1, 2 * y - 1, ensemble)[:, 0], first, rtol=1e-4)


@pytest.mark.parametrize(
    ("network", "samples", "side"),
    [pytest.param("single", 1, FEW, marks=pytest.mark.slow), ("ensemble", 4, SMALL)],
)
def test_gradients(network: str, samples: int, side: int, small_levels: None, request: pytest.FixtureRequest) -> None:
    """Those taken with the value, those of recomputed draws, and those of plain differentiation are one."""
    ensemble = request.getfixturevalue(network)
    x, y = (each[:, :side, :side] for each in pairs(2))
    assert len(level_probabilities(side, side)) == 1 + (side == FEW)

    def loss(y: jax.Array, x: jax.Array, parameters: Any, ensemble: Ensemble) -> jax.Array:
        ensemble = replace(ensemble, metric=replace(ensemble.metric, parameters=parameters))
        return jnp.vdot(jnp.array([1.0, -2.0]), rl.distance(x, y, ensemble, key=KEY, samples=samples))

    parameters = ensemble.metric.parameters
    plain = replace(ensemble, metric=replace(ensemble.metric, forward_mode=True))
    expected = jax.jit(jax.grad(loss, argnums=(0, 2)))(y, x, parameters, plain)
    found = jax.jit(jax.grad(loss, argnums=(0, 2)))(y, x, parameters, ensemble)
    gradient = jax.jit(jax.grad(loss))
    alone = gradient(y, x, parameters, ensemble)
    assert np.abs(np.asarray(alone)).max() > 0
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[0]))
    for image in (found[0], alone):
        np.testing.assert_allclose(image, expected[0], rtol=0, atol=1e-5 * scale)
    for found_leaf, leaf in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(found_leaf, leaf, rtol=1e-3, atol=1e-5 * np.abs(leaf).max())
    # At x == y too.
    assert np.isfinite(gradient(x, x, parameters, ensemble)).all()


def test_vmap(ensemble: Ensemble) -> None:
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(2))
    call = functools.partial(rl.distance, key=KEY, samples=4)
    found = jax.vmap(lambda x, y: call(x, y, ensemble))(x, y)
    for place in range(2):
        np.testing.assert_allclose(found[place], call(x[place], y[place], ensemble), rtol=1e-5)


@pytest.mark.slow
def test_max_batch_and_remat_change_no_number(ensemble: Ensemble) -> None:
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(3))
    expected = rl.distance(x, y, ensemble, key=KEY, samples=8)
    for options in ({"max_batch": 2}, {"remat": True}):
        other = replace(ensemble, metric=replace(ensemble.metric, **options))
        np.testing.assert_allclose(rl.distance(x, y, other, key=KEY, samples=8), expected, rtol=1e-5)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All of a program, those of loops and branches too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def together(function: Callable[..., Any], *arguments: Any) -> int:
    """Images that are in the network at once."""
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    found = [each for each in equations(program) if each.primitive.name == "conv_general_dilated"]
    return max(each.invars[0].aval.shape[0] for each in found)


@pytest.mark.parametrize(
    ("k", "side", "max_batch", "most"),
    [(2, 40, None, 8), (7, 40, None, 28), (7, 40, 9, 7), (7, 40, 4, 4), (7, 40, 1, 1), (30, 100, None, 22)],
)
def test_images_that_are_compared_at_once(ensemble: Ensemble, k: int, side: int, max_batch: Any, most: int) -> None:
    """All of as many samples as there may be; of one sample, if it has more, as many as there may be."""
    ensemble = replace(ensemble, metric=replace(ensemble.metric, max_batch=max_batch))
    images = np.zeros((k, side, side, 3), np.float32)

    def run(ensemble: Ensemble, images: np.ndarray) -> jax.Array:
        return estimation._comparison_blocks(ensemble, images[0], images, KEY, samples=8, value_range=(0, 1))

    assert together(run, ensemble, images) == most


@pytest.mark.slow
def test_a_comparison_in_blocks(ensemble: Ensemble) -> None:
    x, y = (np.asarray(each[:, :SMALL, :SMALL]) for each in pairs(5))
    bounded = replace(ensemble, metric=replace(ensemble.metric, max_batch=2))
    found, expected = (rl.compare(x[0], y, each, key=KEY, max_samples=64) for each in (bounded, ensemble))
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-5)
    np.testing.assert_allclose(found.difference_errors, expected.difference_errors, rtol=1e-4)


@pytest.mark.slow
def test_an_objective_of_several_images_keeps_to_max_batch(single: Ensemble) -> None:
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(2))

    def margins(ensemble: Ensemble) -> Any:
        return attacks.expected_ranking(ensemble, x, x + 0.5 * (y - x), y, attacked="reference", samples=8, key=KEY)

    bounded = replace(single, metric=replace(single.metric, max_batch=1))
    assert together(margins(bounded), x) == 1
    np.testing.assert_allclose(margins(bounded)(x), margins(single)(x), rtol=1e-4)


def test_64_bit_mode_changes_no_type(single: Ensemble) -> None:
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(2))
    with jax.enable_x64(True):
        for estimator in estimators.ESTIMATORS:
            call = functools.partial(rl.distance, metric=replace(single, estimator=estimator), key=KEY, samples=8)
            assert jax.eval_shape(call, x, y).dtype == np.float32, estimator


@pytest.mark.slow
def test_pairs_on_several_devices(single: Ensemble) -> None:
    """Each device draws as it would for its pair alone; gradients by replicated parameters are summed."""
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(2))

    def loss(metric: Lpips, x: jax.Array, y: jax.Array) -> jax.Array:
        return rl.distance(x, y, Ensemble(metric), key=KEY, samples=4).sum()

    step = jax.value_and_grad(loss)
    (first, one), (second, other) = (jax.jit(step)(single.metric, x[i : i + 1], y[i : i + 1]) for i in range(2))

    def local(metric: Lpips, x: jax.Array, y: jax.Array) -> Any:
        value, gradient = step(metric, x, y)
        return value[None], gradient

    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    specs = (PartitionSpec(), PartitionSpec("data"), PartitionSpec("data"))
    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(PartitionSpec("data"), PartitionSpec()))
    values, gradients = jax.jit(sharded)(single.metric, x, y)
    np.testing.assert_allclose(values, [first, second], rtol=1e-5)
    expected = jax.tree.map(jnp.add, one, other)
    for found, leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, leaf, rtol=1e-3, atol=1e-5 * np.abs(leaf).max())


def test_keys_of_the_old_style(ensemble: Ensemble) -> None:
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(2))
    found, expected = (
        jax.eval_shape(functools.partial(rl.distance, metric=ensemble, key=key, samples=2), x, y)
        for key in (jax.random.PRNGKey(0), KEY)
    )
    assert found == expected


@pytest.mark.slow
def test_functions_of_a_metric_need_a_transformation(ensemble: Ensemble) -> None:
    x, y = (each[:, :SMALL, :48] for each in pairs(2))
    t = sample_transformations(KEY, 1, SMALL, 48, transpose=True)
    expected = distance_under(x, y, ensemble.metric, t)
    one, other = (transform(each, t) for each in (x, y))
    np.testing.assert_array_equal(rl.distance(one, other, ensemble.metric), expected)
    np.testing.assert_allclose(rl.layer_distances(one, other, ensemble.metric).sum(axis=-1), expected, rtol=1e-5)
    assert rl.distance_map(one, other, ensemble.metric).shape == (2, 55, 47)
    np.testing.assert_allclose(jnp.diag(rl.pairwise(one, other, ensemble.metric)), expected, rtol=1e-5)


@pytest.mark.slow
def test_the_draws_of_one_key_are_a_metric(ensemble: Ensemble) -> None:
    """Its expectation is that of the ensemble; features are reused, and all pairs share the draws."""
    x, y = (each[:, :SMALL, :48] for each in pairs(2))
    fixed = ensemble.under(KEY, samples=8)
    matrix = rl.pairwise(x, y, ensemble, key=KEY, samples=8)
    np.testing.assert_allclose(jnp.diag(matrix), rl.distance(x, y, fixed), rtol=1e-5)
    np.testing.assert_allclose(rl.layer_distances(x, y, fixed).sum(axis=-1), rl.distance(x, y, fixed), rtol=1e-5)
    features, others = fixed.features(x), fixed.features(y[0])
    np.testing.assert_allclose(fixed.between(features, others), matrix[:, 0], rtol=1e-5)
    many = np.array([rl.distance(x, y, ensemble.under(jax.random.key(seed), samples=8)) for seed in range(16)])
    error = many.std(axis=0, ddof=1) / 4
    wanted = rl.distance(x, y, ensemble, key=KEY, samples=256)
    assert np.all(np.abs(many.mean(axis=0) - wanted) < 4 * error + 0.01 * wanted)
    assert np.all(rl.pairwise(x, x, ensemble, key=KEY, samples=2).diagonal() == 0)


def test_what_needs_a_key_says_so(ensemble: Ensemble, wrong_types: None) -> None:
    x, y = (each[:, :SMALL, :48] for each in pairs(2))
    functions: list[Any] = [rl.layer_distances, rl.distance_map, rl.pairwise]
    for function in functions:
        with pytest.raises(EnsembleError, match="random"):
            function(x, y, ensemble)
    with pytest.raises(EnsembleError, match="mask"):
        rl.distance(x, y, ensemble, key=KEY, mask=np.ones(x.shape[:-1], bool))


def test_errors(ensemble: Ensemble, wrong_types: None) -> None:
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(2))
    plain: Any = ensemble.metric
    nothing: Any = None
    half: Any = 64.5
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("draws at random and needs one key", lambda: rl.distance(x, y, ensemble)),
        ("samples must be a whole number, 1 or more, got 0", lambda: rl.distance(x, y, ensemble, key=KEY, samples=0)),
        ("drawn-mini is not random", lambda: rl.distance(x, y, ensemble.metric, key=KEY)),
        ("keep must be a share", lambda: replace(ensemble, keep=0)),
        ("estimator must be one of plain, published, strat", lambda: replace(ensemble, estimator="best")),
        ("an Ensemble is needed", lambda: rl.estimate(x, y, plain, key=KEY)),
        ("relative_error must be", lambda: rl.estimate(x, y, ensemble, key=KEY, relative_error=-1)),
        ("max_samples must be 16 or more", lambda: rl.estimate(x, y, ensemble, key=KEY, max_samples=8)),
        ("max_samples must be 16 or more", lambda: rl.estimate(x, y, ensemble, key=KEY, max_samples=nothing)),
        ("max_samples must be a whole", lambda: rl.compare(x[0], x, ensemble, key=KEY, max_samples=half)),
        ("draws at random and needs one key", lambda: rl.compare(x[0], x, ensemble)),
        ("confidence must lie between 0 and 1", lambda: rl.compare(x[0], x, ensemble, key=KEY, confidence=1)),
        ("confidence must lie between 0", lambda: rl.compare(x[0], x, ensemble, key=KEY, confidence=nothing)),
    ]
    no_keys: list[Any] = [None, 0, "a key", jax.random.split(KEY), np.zeros(2, np.int32)]
    for key in no_keys:
        cases += [
            ("drawn-mini draws at random and needs one key", functools.partial(call, key=key))
            for call in (
                functools.partial(rl.distance, x, y, ensemble),
                functools.partial(rl.estimate, x, y, ensemble),
                functools.partial(rl.compare, x[0], x, ensemble),
            )
        ]
        cases.append(("a transformation draws at random", functools.partial(sample_transformations, key, 1, 64, 64)))
    for message, call in cases:
        with pytest.raises(EnsembleError, match=message):
            call()
    missing: Any = None
    with pytest.raises(MetricError, match=r"metric must come from rlpips_jax\.load, .* got NoneType"):
        rl.compare(x[0], x, missing, key=KEY)
    with pytest.raises(ImageError, match="one reference"):
        rl.compare(x, x, ensemble, key=KEY)
    with pytest.raises(ImageError, match="needs at least 8x8"):
        rl.distance(x[:, :7], y[:, :7], ensemble, key=KEY)
    with pytest.raises(AttackError, match="attacked must be one of"):
        attacks.expected_ranking(ensemble, x, x, y, attacked="nobody")


@pytest.mark.slow
def test_an_attack_adapts_to_an_ensemble(single: Ensemble) -> None:
    ensemble = single
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(2))
    closer = x + 0.6 * (y - x)
    margins = {}
    for attacked in attacks.ATTACKED:
        objective = attacks.expected_ranking(ensemble, x, closer, y, attacked=attacked, samples=4)
        margins[attacked] = jax.jit(objective)(attacks.attacked_images(x, closer, y, attacked), KEY)
    # Whichever image moves, all three are seen under the same draws.
    for attacked in attacks.ATTACKED[1:]:
        np.testing.assert_allclose(margins[attacked], margins["closer"], rtol=1e-4)
    assert np.all(margins["closer"] < 0)
    objective = attacks.expected_ranking(ensemble, x, closer, y, samples=4)
    result = attacks.pgd(objective, closer, key=KEY, epsilon=0.05, steps=2)
    assert np.all(result.after > result.before)


@pytest.mark.slow
def test_distance_as_an_objective(single: Ensemble) -> None:
    ensemble = single
    x, y = (each[:, :SMALL, :SMALL] for each in pairs(2))
    objective = attacks.expected_distance_from(ensemble, 2 * x - 1, samples=4, value_range=(-1, 1))
    result = attacks.pgd(objective, 2 * y - 1, key=KEY, epsilon=0.1, steps=2, value_range=(-1, 1))
    assert np.all(result.after > result.before)
    with pytest.raises(AttackError, match=r"value_range=\(-1.0, 1.0\), the attack has \(0.0, 1.0\)"):
        attacks.pgd(objective, y, key=KEY, epsilon=0.1, steps=3)
