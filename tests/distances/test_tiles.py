"""Large images in tiles: the same numbers and gradients as of the whole, within a bound of memory."""

import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import ELPIPS_SQUEEZE, RESNET18, SQUEEZE, STALEX, TINY, VGG, Backbone, Reach
from rlpips_jax.backbones.locality import Locality
from rlpips_jax.distances import tiles
from rlpips_jax.distances.dists import Dists
from rlpips_jax.ops.pooling import Pooling

TINY_L2 = replace(TINY, pooling=Pooling("l2", 3, 2))


def photographs(*shape: int, seed: int = 0) -> np.ndarray:
    """Bytes with edges and gradients."""
    noise = np.random.RandomState(seed).uniform(-0.5, 0.5, shape)
    smooth = np.cumsum(np.cumsum(noise, axis=-3), axis=-2)
    span = np.ptp(smooth, axis=(-3, -2), keepdims=True)
    return (255 * (smooth - smooth.min(axis=(-3, -2), keepdims=True)) / span).astype(np.uint8)


def allowing(metric: Any, pixels: int) -> Any:
    """The metric with the memory for tiles of so many pixels."""
    return replace(metric, max_memory=int(np.ceil(pixels * tiles.bytes_per_pixel(metric))))


def dists(lpips: Any) -> Dists:
    channels = 3 + sum(lpips.backbone.channels)
    rng = np.random.default_rng(0)
    weights = {name: jnp.asarray(rng.uniform(0, 1, channels), jnp.float32) for name in ("alpha", "beta")}
    return Dists({"backbone": lpips.parameters["backbone"], **weights}, "drawn-dists", lpips.backbone)


@pytest.mark.parametrize(
    ("backbone", "height", "width", "pixels", "count"),
    [
        pytest.param(TINY, 200, 187, 168 * 171, 4, id="padded strides", marks=pytest.mark.slow),
        pytest.param(TINY_L2, 161, 230, 161 * 182, 2, id="statistics", marks=pytest.mark.slow),
        pytest.param(SQUEEZE, 290, 288, 258 * 256, 4, id="poolings over the edge", marks=pytest.mark.slow),
        pytest.param(ELPIPS_SQUEEZE, 289, 230, 257 * 230, 2, id="input tapped", marks=pytest.mark.slow),
        pytest.param(STALEX, 130, 163, 130 * 131, 2, id="blurred and reflected", marks=pytest.mark.slow),
        pytest.param(VGG, 200, 251, 200 * 219, 2, id="deep", marks=pytest.mark.slow),
        pytest.param(RESNET18, 96, 515, 96 * 483, 2, id="residual", marks=pytest.mark.slow),
    ],
)
def test_tiles_are_exact(drawn, backbone: Backbone, height: int, width: int, pixels: int, count: int) -> None:
    """In float64, where a seam would show."""
    x, y = (photographs(height, width, 3, seed=seed) / 255 for seed in (0, 1))
    with jax.enable_x64(True):
        whole = replace(dists(drawn(backbone)) if backbone is TINY_L2 else drawn(backbone), dtype="float64")
        parts = allowing(whole, pixels)
        tiling = tiles.tiling_of(parts, height, width)
        assert tiling is not None
        assert (tiling.tiles, tiling.pixels <= pixels) == (count, True)

        def layers(y: Any, metric: Any) -> Any:
            return jnp.vdot(rl.layer_distances(x, y, metric), jnp.arange(1.0, len(tiling_of_layers) + 1))

        tiling_of_layers = rl.layer_distances(x, y, parts)
        np.testing.assert_allclose(tiling_of_layers, rl.layer_distances(x, y, whole), rtol=1e-11)
        if backbone in (TINY, TINY_L2):
            found, expected = (jax.grad(layers)(jnp.asarray(y), metric) for metric in (parts, whole))
            np.testing.assert_allclose(found, expected, atol=1e-11 * float(jnp.abs(expected).max()))


@pytest.mark.slow
def test_batches_lone_images_and_bytes(drawn) -> None:
    whole = drawn(TINY)
    parts = allowing(whole, 165 * 154)
    x, y = photographs(2, 181, 170, 3), photographs(2, 181, 170, 3, seed=1)
    y[1] = x[1]
    expected = rl.distance(x, y, whole)
    found = rl.distance(x, y, parts)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[1] == 0
    np.testing.assert_allclose(rl.distance(x[0], y, parts)[0], expected[0], rtol=1e-6)
    floats = y[0].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(rl.distance(x[0], floats, parts, value_range=(-1, 1)), expected[0], rtol=1e-5)
    # Images that fit are not cut, and as many go through the network as fit.
    assert tiles.tiling_of(parts, 60, 70) is None
    assert tiles.pairs_at_once(parts, 60, 70) == 165 * 154 // (60 * 70)
    assert tiles.pairs_at_once(replace(parts, max_batch=2), 60, 70) == 2


@pytest.mark.parametrize(
    "locality",
    [Locality((Reach(1, 2, 2), Reach(16, 90, 105)), 1.0), Locality((Reach(2, 0, 2), Reach(16, 88, 118)), 1.0)],
)
def test_cuts_leave_no_position_out_and_see_all_that_it_needs(locality: Locality) -> None:
    for length in (321, 640, 1001):
        every = tiles.all_cuts(length, 16, locality)
        assert len(every) > 1
        for cuts, reach in itertools.product(every, locality.reaches):
            positions = np.arange(-(-length // reach.stride))
            ends = (*cuts.cores[1:], length + reach.stride)
            owner = np.searchsorted(cuts.cores, positions * reach.stride, side="right") - 1
            for tile, (start, core, end) in enumerate(zip(cuts.starts, cuts.cores, ends, strict=True)):
                assert (start % 16, core % 16) == (0, 0)
                own = positions[owner == tile] * reach.stride
                assert np.all((own >= core) & (own < end))
                assert start == 0 or np.all(own - reach.before >= start)
                assert start + cuts.size == length or np.all(own + reach.after < start + cuts.size)
        assert all(cuts.starts[-1] + cuts.size == length for cuts in every)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "side"), [(TINY, 400), (SQUEEZE, 400), (VGG, 280)])
def test_memory_is_bounded(drawn, backbone: Backbone, side: int) -> None:
    """What the compiler sets aside for a gradient, beside three arrays of the size of the images."""
    metric = allowing(drawn(backbone), side**2)
    image = jax.ShapeDtypeStruct((2 * side, 2 * side, 3), jnp.float32)

    def held(metric: Any) -> int:
        gradient = jax.jit(jax.grad(lambda y, x, metric: rl.distance(x, y, metric)))
        memory = gradient.lower(image, image, metric).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes - 3 * 4 * image.size

    assert held(metric) < metric.max_memory
    assert held(replace(metric, max_memory=None)) > 1.5 * metric.max_memory


@pytest.mark.usefixtures("wrong_types")
def test_what_cannot_be_cut_says_so(drawn) -> None:
    x, y = photographs(200, 210, 3), photographs(200, 210, 3, seed=1)
    for name in ("ensemble:lpips-tiny", "elpips-tiny"):
        with pytest.raises(rl.MetricError, match="cannot be computed in parts of an image, which max_memory needs"):
            rl.load(name, max_memory=1 << 30)
    with pytest.raises(rl.MetricError, match="max_memory must be a whole number, 1 or more"):
        rl.load("lpips-tiny", max_memory=0)
    with pytest.raises(rl.MetricError, match=r"max_memory is 1000 bytes, but lpips-tiny needs \d+ MiB for"):
        rl.distance(x, y, rl.load("lpips-tiny", max_memory=1000))
    parts = allowing(drawn(TINY), 190 * 190)
    with pytest.raises(rl.MetricError, match="distance_map needs whole images, but max_memory"):
        rl.distance_map(x, y, parts)
    with pytest.raises(rl.MetricError, match="mask needs whole images, but max_memory"):
        rl.distance(x, y, parts, mask=np.ones((200, 210), bool))
    assert not parts.can_pad
