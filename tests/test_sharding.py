"""Images sharded over the axes of a mesh give the numbers of one device, whatever the kind of the axes.

`jax.make_mesh` makes explicit axes by default. Parameters are replicated.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import rlpips_jax as rl
from training.config import Natural
from training.step import JUDGED, Batch, first_state, make_optimiser, make_step

DEVICES = 4
SPECS = {"batch": PartitionSpec("data"), "height": PartitionSpec(None, "data")}
EVERYWHERE = PartitionSpec()
KINDS = {"explicit": AxisType.Explicit, "automatic": AxisType.Auto}

REPLICATED = "replicated"
"""The name of what has no axis of images: gradients by parameters."""


def distances(metric: Any, x: Any, y: Any) -> Any:
    """Every kind of distance of pairs, and of features."""
    features = [metric.features(images) for images in (x, y)]
    return {
        "distance": rl.distance(x, y, metric),
        "layers": rl.layer_distances(x, y, metric),
        "map": rl.distance_map(x, y, metric),
        "features": metric.between(*features),
    }


def gradients(metric: Any, x: Any, y: Any) -> Any:
    """By images and by parameters, with one function for both."""

    def loss(metric: Any, x: Any) -> Any:
        return rl.distance(x, y, metric).sum()

    by_metric, by_images = jax.grad(loss, argnums=(0, 1))(metric, x)
    return {"images": by_images, REPLICATED: jax.tree.leaves(by_metric)}


def of_blocks(metric: Any, x: Any, y: Any) -> Any:
    """At most 3 images at a time, with activations computed again in the gradient."""
    limited = replace(metric, max_batch=3, remat=True)
    gradient = jax.grad(lambda x: rl.distance(x, y, limited).sum())(x)
    return {"distance": rl.distance(x, y, limited), "images": gradient}


def pairwise(metric: Any, x: Any, y: Any) -> Any:
    features = [metric.features(images) for images in (x, y)]
    return {"pairwise": rl.pairwise(x, y, metric), "of features": metric.pairwise_between(*features)}


def attack(metric: Any, x: Any, y: Any) -> Any:
    """The objective closes over an image that is sharded too."""
    result = rl.attacks.pgd(
        lambda images: rl.distance(x, images, metric),
        y,
        key=jax.random.key(0),
        epsilon=0.1,
        steps=2,
        random_start=False,
        norm="l2",
    )
    return {"adversarial": result.adversarial, "after": result.after, "l2": result.l2}


def ensemble(metric: Any, x: Any, y: Any) -> Any:
    drawn = rl.Ensemble(metric)

    def loss(x: Any) -> Any:
        return rl.distance(x, y, drawn, key=jax.random.key(0), samples=2).sum()

    return {"distance": rl.distance(x, y, drawn, key=jax.random.key(0), samples=2), "images": jax.grad(loss)(x)}


OPERATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    function.__name__: function for function in (distances, gradients, of_blocks, pairwise, attack, ensemble)
}


@pytest.fixture(scope="module")
def tiny() -> Any:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    x, y = np.random.default_rng(0).random((2, 8, 32, 32, 3), np.float32)
    return x, y


def mesh_of(kind: AxisType) -> Mesh:
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,), devices=jax.devices()[:DEVICES])


@functools.cache
def jitted(operation: str) -> Callable[..., Any]:
    return jax.jit(OPERATIONS[operation])


def assert_alike(found: Any, expected: Any) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5 * np.abs(other).max())


def cases(
    *fast: tuple[str, ...], operations: Iterable[str] = OPERATIONS, layouts: Iterable[str] = SPECS
) -> pytest.MarkDecorator:
    """Every operation with every kind of axes and layout; those that are not given as fast are slow."""
    found = []
    for operation, kind, layout in itertools.product(operations, KINDS, layouts):
        chosen = any(set(each) <= {operation, kind, layout} for each in fast)
        marks = () if chosen else (pytest.mark.slow,)
        found.append(pytest.param(operation, KINDS[kind], layout, marks=marks, id=f"{operation}-{kind}-{layout}"))
    return pytest.mark.parametrize(("operation", "kind", "layout"), found)


@cases(("distances",), ("gradients", "explicit", "batch"), ("attack", "explicit", "batch"))
def test_numbers_are_those_of_one_device(operation: str, kind: AxisType, layout: str, tiny, images) -> None:
    sharding = NamedSharding(mesh_of(kind), SPECS[layout])
    found = jitted(operation)(tiny, *(jax.device_put(array, sharding) for array in images))
    assert_alike(found, jitted(operation)(tiny, *images))


@cases(("gradients", "automatic"), layouts=("batch",))
def test_inside_shard_map_each_device_compares_its_own_images(
    operation: str, kind: AxisType, layout: str, tiny, images
) -> None:
    parts = zip(*(np.split(array, DEVICES) for array in images), strict=True)
    apart = [jitted(operation)(tiny, *part) for part in parts]
    expected = {name: np.concatenate([part[name] for part in apart]) for name in apart[0] if name != REPLICATED}
    specs = dict.fromkeys(expected, SPECS[layout])
    if REPLICATED in apart[0]:
        expected[REPLICATED] = jax.tree.map(lambda *leaves: sum(leaves), *(part[REPLICATED] for part in apart))
        specs[REPLICATED] = EVERYWHERE
    in_specs = (EVERYWHERE, SPECS["batch"], SPECS["batch"])
    mesh = mesh_of(kind)
    on_each = jax.shard_map(OPERATIONS[operation], mesh=mesh, in_specs=in_specs, out_specs=specs)
    placed = (jax.device_put(array, NamedSharding(mesh, SPECS["batch"])) for array in images)
    assert_alike(jax.jit(on_each)(tiny, *placed), expected)


@cases(("explicit", "batch"), operations=("training",))
def test_a_training_step_is_that_of_one_device(operation: str, kind: AxisType, layout: str, tiny, images) -> None:
    mesh, config = mesh_of(kind), Natural(batch=8, loss="head")
    optimiser = make_optimiser(config, lambda step: 1.0)
    step = make_step(config, optimiser)
    x, y = (np.round(255 * array).astype(np.uint8) for array in images)
    batch = Batch(x, y, x[::-1].copy(), jax.numpy.linspace(0, 1, 8))

    def placed(array: Any) -> Any:
        """Images as the layout has them, judgments with them; the parameters and all else on every device."""
        spec = SPECS["batch"] if array.shape == (8,) else SPECS[layout] if array.ndim == 4 else EVERYWHERE
        return jax.device_put(array, NamedSharding(mesh, spec))

    def after(place: Callable[[Any], Any]) -> Any:
        state = first_state(config, tiny, optimiser, x)
        return step(state, tiny, {JUDGED: jax.tree.map(place, batch)})

    assert_alike(after(placed), after(jax.numpy.asarray))
