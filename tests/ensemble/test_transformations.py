"""E-LPIPS's transformations: against padding and slicing done by NumPy, and against the laws they are drawn by."""

import json
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rlpips_jax.ensemble import sampling as estimators
from rlpips_jax.ensemble.transformations import (
    FLIPS,
    NUMBERS,
    PERMUTATIONS,
    SHIFTS,
    Transformation,
    from_uniform,
    level_probabilities,
    sample_transformations,
    transform,
)
from rlpips_jax.errors import EnsembleError, ImageError

KEY = jax.random.key(0)
DRAWS = 4000
COUNTS = (12, 4, 3)
"""Stratified samples of each level."""
STEPS = ("scale_level", "scale_offset", "offset", "flip", "transpose", "permutation", "color")
"""What decides each step of a transformation."""


def by_numpy(image: np.ndarray, t: Transformation) -> np.ndarray:
    """The definition, step by step, for a transformation of one image."""
    s = t.scale_level
    pads = []
    for axis in range(2):
        length, before = image.shape[axis], int(t.scale_offset[0, axis])
        total = (s - 1 + length + s - 1) // s * s
        pads.append((before, total - length - before))
    image = np.pad(image, (*pads, (0, 0)), "reflect")
    h, w, _ = image.shape
    image = image.reshape(h // s, s, w // s, s, 3).mean((1, 3))
    image = np.pad(image, (*((SHIFTS - 1 - int(o), int(o)) for o in t.offset[0]), (0, 0)), "reflect")
    flip = FLIPS[int(t.flip[0])]
    if flip in ("x", "both"):
        image = image[:, ::-1]
    if flip in ("y", "both"):
        image = image[::-1]
    if t.transpose:
        image = image.transpose(1, 0, 2)
    return image[..., np.asarray(t.permutation[0])] * np.asarray(t.color[0])


@pytest.mark.parametrize(("level", "size"), [(1, (9, 70)), (2, (131, 128)), (3, (200, 197))])
def test_transform_follows_the_definition(level: int, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    run = jax.jit(transform)
    for seed in range(8):
        t = sample_transformations(jax.random.key(seed), 1, *size, scale_level=level, transpose=seed % 2 == 1)
        np.testing.assert_allclose(run(image[None], t)[0], by_numpy(image, t), rtol=1e-5, atol=1e-6)


def test_transform_takes_images_as_all_functions_do() -> None:
    t = sample_transformations(KEY, 1, 16, 20, transpose=False)
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 20, 3), np.uint8)
    expected = by_numpy((image[0] / 255).astype(np.float32), t)
    symmetric = (image / 127.5 - 1).astype(np.float32)
    for found in (transform(image, t), transform(symmetric, t, value_range=(-1, 1))):
        np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ImageError, match=r"value_range=\(-1, 1\) would fit"):
        transform(symmetric, t)
    with pytest.raises(ImageError, match=r"takes a batch \(n, h, w, 3\), got \(16, 20, 3\): pass images\[None\]"):
        transform(image[0], t)


def test_gradients_are_those_of_a_linear_map() -> None:
    x = jnp.asarray(np.random.default_rng(0).random((2, 130, 128, 3)), jnp.float32)
    t = sample_transformations(KEY, 2, 130, 128, scale_level=2, transpose=True)
    y, gradient = jax.jit(lambda x: (transform(x, t), jax.grad(lambda x: jnp.sum(transform(x, t) ** 2) / 2)(x)))(x)
    np.testing.assert_allclose(jnp.vdot(x, gradient), jnp.vdot(y, y), rtol=1e-5)


@pytest.mark.shared
def test_transform_has_the_published_sums(shared: Path) -> None:
    with np.load(shared / "goldens" / "elpips.npz") as goldens:
        for record in json.loads(str(goldens["records"])):
            t = of_record(record)
            image = jax.jit(transform)(jnp.asarray(goldens[f"x{record['pair']}"][None] / 255, jnp.float32), t)
            assert sorted(image.shape[1:3]) == sorted(record["shape"])
            np.testing.assert_allclose(np.asarray(image, np.float64).sum(), record["checksum"], rtol=1e-6)


def of_record(record: dict) -> Transformation:
    """The explicit parameters of a record of the reference data."""
    return Transformation(
        scale_level=record["scale_level"],
        transpose=bool(record["swap"]),
        scale_offset=jnp.array([record["scale_offset"]]),
        offset=jnp.array([record["offset"]]),
        flip=jnp.array([record["flip"]]),
        permutation=jnp.array([record["perm"]]),
        color=jnp.array([record["color"]], jnp.float32),
    )


def uniforms(estimator: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers `(draws, 9)`, levels and transpositions of samples, four images a sample, of 256x256 pixels."""
    draw = jax.jit(estimators.drawn_samples, static_argnums=(1, 2, 3, 4, 5))
    drawn, levels = draw(KEY, DRAWS // 4, 4, 256, 256, estimator)
    numbers = drawn.numbers.reshape(-1, NUMBERS)
    return np.asarray(numbers), np.asarray(levels) + 1, np.asarray(drawn.transposed)


def evenly(found: np.ndarray, probabilities: np.ndarray) -> None:
    counts = np.array([(found == choice).sum() for choice in range(len(probabilities))])
    assert counts.sum() == len(found)
    assert stats.chisquare(counts, probabilities * len(found)).pvalue > 1e-3


@pytest.mark.parametrize("estimator", estimators.ESTIMATORS)
def test_draws_follow_their_laws(estimator: str) -> None:
    numbers, levels, transposed = uniforms(estimator)
    t = jax.jit(from_uniform, static_argnums=(1, 2))(jnp.asarray(numbers), 3, False)
    evenly(levels - 1, level_probabilities(256, 256))
    evenly(transposed.astype(int), np.full(2, 1 / 2))
    evenly(np.asarray(t.flip), np.full(4, 1 / 4))
    for axis in range(2):
        evenly(np.asarray(t.offset[:, axis]), np.full(SHIFTS, 1 / SHIFTS))
        evenly(np.asarray(t.scale_offset[:, axis]), np.full(3, 1 / 3))
    order = np.argmax(np.all(np.asarray(t.permutation)[:, None] == PERMUTATIONS, axis=-1), axis=1)
    evenly(order, np.full(6, 1 / 6))
    for channel in range(3):
        fit = cast(Any, stats.kstest(np.asarray(t.color[:, channel]), stats.uniform(0.2, 0.8).cdf))
        assert fit.pvalue > 1e-3
    # Pairs of choices are independent.
    together = np.histogram2d(np.asarray(t.flip), order, bins=(4, 6))[0]
    assert cast(Any, stats.chi2_contingency(together)).pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:, :3].T)[0, 1]) < 4 / np.sqrt(DRAWS)


def test_every_position_of_a_stratified_sample_is_uniform() -> None:
    """Not the set of samples alone, which would be so by construction."""
    draw = jax.jit(estimators.latin_hypercube, static_argnums=2)
    found = np.asarray(draw(*jax.random.uniform(KEY, (2, 8, DRAWS)), (3, 5))).T
    for group in (found[:, :3], found[:, 3:]):
        count = group.shape[1]
        for place in range(count):
            assert stats.kstest(group[:, place], "uniform").pvalue > 1e-3
        np.testing.assert_array_equal(np.sort(np.floor(group * count), axis=1), np.tile(np.arange(count), (DRAWS, 1)))


@pytest.fixture(scope="module")
def stratified() -> list[estimators.Samples]:
    """Samples of three levels for each of many keys, two images a sample, in chunks of 3, 2 and 1."""
    draw = jax.vmap(lambda key: estimators.stratified_samples(key, COUNTS, 2, (3, 2, 1)))
    return jax.tree.map(np.asarray, jax.jit(draw)(jax.random.split(KEY, DRAWS)))


def test_half_of_the_stratified_samples_are_transposed(stratified: list[estimators.Samples]) -> None:
    for samples, chunks in zip(stratified, (4, 2, 3), strict=True):
        assert samples.transposed.shape == (DRAWS, chunks)
        turned = np.asarray(samples.transposed).astype(int)
        assert set(turned.sum(axis=1)) == {chunks // 2, -(-chunks // 2)}
        for place in range(chunks):
            evenly(turned[:, place], np.full(2, 1 / 2))
    # Levels are turned independently, and whatever else is drawn.
    first, second = (samples.transposed[:, 0] for samples in stratified[:2])
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(DRAWS)
    numbers = stratified[0].numbers[:, 0, 0, 0].T
    assert np.abs(np.corrcoef(first, numbers)[0, 1:]).max() < 4 / np.sqrt(DRAWS)


def test_numbers_of_each_level_are_spread_and_uniform(stratified: list[estimators.Samples]) -> None:
    for samples, count in zip(stratified, COUNTS, strict=True):
        numbers = np.asarray(samples.numbers).reshape(DRAWS, count, 2, NUMBERS)
        # One in each part, but for rounding.
        centres = np.arange(count)[:, None, None] + 0.5
        assert np.abs(np.sort(numbers, axis=1) * count - centres).max() <= 0.5 + 1e-5
        columns = numbers.reshape(DRAWS, -1).T
        # Of 378 columns in all.
        assert min(cast(Any, stats.kstest(column, "uniform")).pvalue for column in columns) > 1e-5
        # Images, and choices of one image, are independent.
        of_a_sample = np.corrcoef(numbers[:, 0].reshape(DRAWS, -1).T)
        assert np.abs(np.triu(of_a_sample, 1)).max() < 5 / np.sqrt(DRAWS)


def test_seeds_are_all_different(stratified: list[estimators.Samples]) -> None:
    seeds = np.concatenate([np.asarray(samples.seeds).reshape(DRAWS, -1, 2) for samples in stratified], axis=1)
    assert seeds.shape == (DRAWS, 2 * sum(COUNTS), 2)
    flat = seeds.reshape(-1, 2).astype(np.uint64)
    assert len(np.unique(flat[:, 0] << np.uint64(32) | flat[:, 1])) == len(flat)
    bits = np.unpackbits(seeds.reshape(-1, 2).view(np.uint8), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 2.5 / np.sqrt(len(bits))


def test_published_draws_cover_the_batch() -> None:
    drawn, _ = jax.jit(lambda: estimators.drawn_samples(KEY, 3, 12, 64, 64, "published"))()
    for numbers in drawn.numbers[:, 0]:
        t = from_uniform(numbers, 1, False)
        for channel in range(3):
            assert sorted(np.floor(np.asarray(numbers[:, channel]) * 12)) == list(range(12))
        assert np.bincount(np.asarray(t.flip)).tolist() == [3, 3, 3, 3]


def test_host_draws() -> None:
    found = [sample_transformations(jax.random.key(seed), 1, 256, 256) for seed in range(200)]
    evenly(np.array([t.scale_level for t in found]) - 1, level_probabilities(256, 256))
    evenly(np.array([int(t.transpose) for t in found]), np.full(2, 1 / 2))
    # Fields come in the order of the steps, and so do positional arguments.
    chosen = sample_transformations(KEY, 1, 256, 256, 3, True)
    assert (chosen.scale_level, chosen.transpose) == (3, True)
    again = Transformation(3, *(getattr(chosen, name) for name in STEPS[1:]))
    assert all(getattr(again, name) is getattr(chosen, name) for name in STEPS)
    np.testing.assert_allclose(level_probabilities(256, 256), np.array([144, 36, 16, 9]) / 205)
    assert level_probabilities(20, 1000).tolist() == [1]


def test_64_bit_mode_changes_no_draw() -> None:
    t = sample_transformations(KEY, 2, 130, 128)
    with jax.enable_x64(True):
        found = sample_transformations(KEY, 2, 130, 128)
        transformed = jax.eval_shape(transform, jax.ShapeDtypeStruct((2, 130, 128, 3), jnp.float32), found)
    assert transformed.dtype == np.float32
    assert jax.tree.structure(found) == jax.tree.structure(t)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(t), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("samples", [1, 4, 7, 8, 16, 31, 32, 100])
@pytest.mark.parametrize("side", [64, 128, 256])
def test_allocation(samples: int, side: int) -> None:
    counts = estimators.allocation(samples, side, side)
    probabilities = level_probabilities(side, side)
    if counts is None:
        assert samples < 8
        return
    assert sum(counts) == samples
    assert min(counts) >= 1
    assert len(counts) == len(probabilities)
    # As many as there should be, but for one pair, or for levels that would have less than one.
    assert np.all(np.abs(np.array(counts) - samples * probabilities) <= 2 + len(counts))
    for level, count in enumerate(counts, start=1):
        chunk = estimators.together(count, 2, level, side, side)
        assert count % chunk == 0
        assert count == 1 or chunk <= count // 2


@pytest.mark.parametrize(("images", "most", "size"), [(2, 64, 6), (4, 8, 2), (5, 17, 3), (9, 8, 1)])
def test_what_bounds_memory_changes_no_draw(images: int, most: int, size: int) -> None:
    rng = np.random.default_rng(0)
    numbers, seeds = rng.random((4, 6, 2, NUMBERS), np.float32), rng.integers(0, 9, (4, 6, 2, 2), np.uint32)
    transposed = np.array([True, False, True, True])
    samples = estimators.Samples(*map(jnp.asarray, (numbers, transposed, seeds)))
    found = estimators.cut(samples, images, most)
    assert found.numbers.shape[:2] == (24 // size, size)
    np.testing.assert_array_equal(found.numbers.reshape(24, 2, NUMBERS), numbers.reshape(24, 2, NUMBERS))
    np.testing.assert_array_equal(found.seeds.reshape(24, 2, 2), seeds.reshape(24, 2, 2))
    np.testing.assert_array_equal(np.repeat(found.transposed, size), np.repeat(transposed, 6))


def test_errors() -> None:
    image = jnp.zeros((2, 64, 64, 3))
    t = sample_transformations(KEY, 3, 64, 64)
    with pytest.raises(EnsembleError, match=r"of \(3,\) images, but there are 2"):
        transform(image, t)
    with pytest.raises(EnsembleError, match="too small for scale level 1, which needs 8"):
        transform(image[:, :7], sample_transformations(KEY, 2, 64, 64))
    with pytest.raises(EnsembleError, match="too small for scale level 2, which needs 128"):
        transform(image, sample_transformations(KEY, 2, 128, 128, scale_level=2))
    with pytest.raises(EnsembleError, match="scale_level is 2; images of 64x64 have 1 to 1"):
        sample_transformations(KEY, 2, 64, 64, scale_level=2)
    with pytest.raises(EnsembleError, match="under jit give both"):
        jax.jit(lambda key: sample_transformations(key, 2, 64, 64, scale_level=1))(KEY)
    given = jax.jit(lambda key: sample_transformations(key, 2, 64, 64, scale_level=1, transpose=False))(KEY)
    assert not given.transpose


def test_a_key_with_a_value_draws_inside_a_traced_function_what_it_draws_outside() -> None:
    static = []

    def draw() -> list[jax.Array]:
        drawn = sample_transformations(KEY, 2, 128, 128)
        static.append((drawn.scale_level, drawn.transpose))
        return jax.tree.leaves(drawn)

    for inside, outside in zip(jax.jit(draw)(), draw(), strict=True):
        np.testing.assert_array_equal(inside, outside)
    assert static[0] == static[1]
