"""Many pairs: each its own distance, in order, in few programs and without reading far ahead."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.distances import distance as distance_module
from rlpips_jax.distances import network
from rlpips_jax.scoring import batches as scoring
from rlpips_jax.scoring import readers, shapes
from rlpips_jax.scoring.batches import score_pairs
from rlpips_jax.scoring.pairs import Pair, Result
from rlpips_jax.scoring.readers import Readers

Draw = Callable[..., Path]
Files = list[tuple[Path, Path]]


def pair(reference: Path, image: Path) -> Pair:
    return Pair(str(reference), str(image))


def run(pairs: list[Pair], metric: rl.Lpips, workers: int = 0) -> list[Result]:
    with Readers(workers) as pool:
        parts = list(score_pairs(pairs, metric, pool))
    assert all(parts)
    return [result for part in parts for result in part]


@pytest.fixture
def mixed(tmp_path: Path, draw: Draw) -> Files:
    """Pairs of many sizes, some of 16 bits, in no order."""
    rng = np.random.default_rng(3)
    sizes = [tuple(map(int, rng.integers(56, 88, 2))) for _ in range(6)]
    found: Files = []
    for number in range(26):
        size = sizes[number * 5 % 6]
        reference = draw(tmp_path / f"{number}r.png", 2 * number, size, deep=number % 7 == 3)
        image = draw(tmp_path / f"{number}i.png", 2 * number + 1, size, deep=number % 7 in (3, 5))
        found.append((reference, image))
    return found


def programs() -> int:
    """How many programs have been compiled for distances."""
    jitted: list[Any] = [distance_module._distance, network._padded_distance]
    return sum(function._cache_size() for function in jitted)


@pytest.mark.parametrize("window", [1024, pytest.param(7, marks=pytest.mark.slow)])
def test_every_pair_has_its_own_distance_in_order(
    mixed: Files, tiny: rl.Lpips, one_by_one, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "WINDOW", window)
    monkeypatch.setattr(readers, "FEW", 5)
    monkeypatch.setattr(shapes, "MOST", 5)
    before = programs()
    results = run([pair(*files) for files in mixed], tiny, workers=2)
    # Bytes and floats each make the large shapes that are kept in reserve.
    assert programs() - before <= 2 * shapes.MOST
    assert [(result.reference, result.image) for result in results] == [(str(a), str(b)) for a, b in mixed]
    found = np.array([result.distance for result in results])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(mixed, tiny), rtol=0, atol=1e-6)


def test_a_shape_is_compiled_once(tmp_path: Path, draw: Draw, tiny: rl.Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WINDOW", 5)
    monkeypatch.setattr(scoring, "SAMPLE", 4)
    monkeypatch.setattr(scoring, "LARGEST_BATCH", 4)
    chosen = []
    choose = shapes.Shapes.shape
    monkeypatch.setattr(shapes.Shapes, "shape", lambda self, size: chosen.append(choose(self, size)) or chosen[-1])
    files = [draw(tmp_path / f"{number}.png", number, (60 + number % 3, 61)) for number in range(18)]
    before = programs()
    results = run([pair(files[0], files[0]), *[pair(file, file) for file in files]], tiny)
    assert programs() - before == len(set(chosen)) == 3
    assert [result.distance for result in results] == [0] * 19


def test_one_size_runs_at_that_size(
    tmp_path: Path, draw: Draw, tiny: rl.Lpips, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    distance = rl.distance
    monkeypatch.setattr(scoring, "distance", lambda x, y, metric: ran.append(x.shape) or distance(x, y, metric))
    files = [draw(tmp_path / f"{number}.png", number) for number in range(4)]
    run([pair(files[0], file) for file in files[1:]], tiny)
    assert ran == [(3, 32, 40, 3)]


def test_failures_take_their_places(tmp_path: Path, draw: Draw, tiny: rl.Lpips) -> None:
    good, wide, small = (
        draw(tmp_path / f"{size}.png", size=size) for size in ((32, 40), (32, 41), (tiny.minimum_size - 1, 40))
    )
    torn = tmp_path / "torn.png"
    torn.write_bytes(good.read_bytes()[:-40])
    absent = tmp_path / "absent.png"
    pairs = [
        pair(good, good),
        pair(good, wide),
        pair(absent, good),
        Pair("", "", error="line 5: not a pair"),
        pair(small, small),
        pair(good, torn),
        pair(absent, torn),
        pair(wide, wide),
    ]
    results = run(pairs, tiny)
    assert [result.error is None for result in results] == [True, False, False, False, False, False, False, True]
    assert [result.distance for result in results if result.error is None] == [0, 0]
    words = ["differ in size", "does not exist", "line 5", "needs at least", "cannot be read", "does not exist"]
    assert all(word in (result.error or "") for word, result in zip(words, results[1:-1], strict=True))
    assert results[-2].error == f"{results[2].error}; {results[5].error}"


def test_a_distance_that_is_no_number_is_an_error(tmp_path: Path, draw: Draw, tiny: rl.Lpips) -> None:
    heads = tuple(head * np.nan for head in tiny.parameters["heads"])
    broken = replace(tiny, parameters=tiny.parameters | {"heads": heads})
    one, other = (draw(tmp_path / f"{number}.png", number) for number in range(2))
    (result,) = run([pair(one, other)], broken)
    assert result.distance is None
    assert "came out as nan" in (result.error or "")


@pytest.mark.slow
def test_pairs_are_taken_as_they_are_needed(
    tmp_path: Path, draw: Draw, tiny: rl.Lpips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "WINDOW", 8)
    monkeypatch.setattr(readers, "MOST_AHEAD", 4)
    files = [draw(tmp_path / f"{number}.png", number) for number in range(2)]
    taken = 0

    def endless() -> Iterator[Pair]:
        nonlocal taken
        while True:
            taken += 1
            yield pair(*files)

    with Readers(0) as pool:
        parts = score_pairs(endless(), tiny, pool)
        for number in range(1, 4):
            assert len(next(parts)) == 8
            assert taken <= 8 * number + 4


def test_results_do_not_wait_long_where_pairs_take_long(
    tmp_path: Path, draw: Draw, tiny: rl.Lpips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "FEWEST", 3)
    monkeypatch.setattr(scoring, "LONGEST", 0.0)
    good = draw(tmp_path / "good.png")
    with Readers(0) as pool:
        assert [len(part) for part in score_pairs([pair(good, good)] * 7, tiny, pool)] == [3, 3, 1]


def test_results_come_as_soon_as_those_before_them_are_there(
    tmp_path: Path, draw: Draw, tiny: rl.Lpips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LARGEST_BATCH", 4)
    monkeypatch.setattr(scoring, "SAMPLE", 4)
    small, large = (draw(tmp_path / f"{side}.png", size=(side, side)) for side in (32, 64))
    # The large pair waits for its batch to be full until the end, and so do all results after it.
    files = [small] * 20 + [large] + [small] * 20
    with Readers(0) as pool:
        sizes = [len(part) for part in score_pairs([pair(file, file) for file in files], tiny, pool)]
    assert sizes == [4, 4, 4, 4, 4, 21]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_pause_raises_ends_the_work(
    tmp_path: Path, draw: Draw, tiny: rl.Lpips, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(readers, "FEW", 1)
    good = draw(tmp_path / "good.png")
    calls = 0

    def pause() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    with Readers(workers, pause=pause) as pool, pytest.raises(KeyboardInterrupt):
        list(score_pairs([pair(good, good)] * 100, tiny, pool, pause=pause))
