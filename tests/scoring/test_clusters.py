"""Sets over a cluster: the results of one process, whatever becomes of the nodes."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks.clusters import two_nodes
from rlpips_jax.scoring import AllPairs, Pair, Result, Sampling, Scoring, clusters, score
from rlpips_jax.scoring.all_pairs import Group
from rlpips_jax.scoring.file_scores import Scorer
from rlpips_jax.scoring.parts import PartForm, Parts
from rlpips_jax.scoring.records import JsonLines
from tests.cli.conftest import Draw

# Ray's own, about files of its logs and its future.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
]

COUNT = 480


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, draw: Draw) -> list[Pair]:
    """Pairs of pictures of two sizes, among them one that cannot be compared and one that is not there."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [str(draw(folder / f"{number}.png", number, [(32, 40), (36, 33)][number % 2])) for number in range(40)]
    found = [Pair(paths[at % 40], paths[(at + 2 * (1 + at // 40)) % 40]) for at in range(COUNT)]
    found[7] = Pair(paths[0], paths[1])
    found[8] = Pair(paths[0], str(folder / "absent.png"))
    return found


@pytest.fixture(scope="module")
def expected(pairs: list[Pair], tiny: rl.Lpips) -> list[Result]:
    return list(score(pairs, tiny, workers=0))


@pytest.fixture
def connected() -> Iterator[Callable[[], object]]:
    """A cluster of two nodes; what kills one of them."""
    ray = pytest.importorskip("ray")
    with two_nodes() as (address, kill):
        ray.init(address=address, log_to_driver=False)
        yield kill
        ray.shutdown()


def result_of(row: dict[str, Any]) -> Result:
    """The result that a row holds."""
    error = row.get("error") or None
    return Result(row["reference"], row["image"], None if error else np.float32(row["distance"]), error)


def alike(found: list[Result], expected: list[Result]) -> None:
    assert [(r.reference, r.image, r.error) for r in found] == [(r.reference, r.image, r.error) for r in expected]
    one, other = (
        np.array([np.nan if r.distance is None else r.distance for r in results], np.float64)
        for results in (found, expected)
    )
    np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


@pytest.mark.slow
def test_a_node_that_is_killed_loses_and_doubles_nothing(
    pairs, expected, tiny, connected, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(clusters, "PAIRS", 32)
    done = clusters.score_on_cluster(pairs, tiny, tmp_path / "out")
    first = next(done)
    connected()
    results = first + [result for part in done for result in part]
    assert Counter((r.reference, r.image) for r in results) == Counter((r.reference, r.image) for r in expected)
    # A part that is missing is computed again, the others are read.
    (tmp_path / "out" / "part-000003.jsonl").unlink()
    again = [result for part in clusters.score_on_cluster(pairs, tiny, tmp_path / "out") for result in part]
    assert sum(result.recorded for result in again) == COUNT - 32
    files = sorted((tmp_path / "out").glob("part-*.jsonl"))
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()[1:]]
    alike([result_of(row) for row in lines], expected)


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_a_data_set_of_rays(pairs, expected, tiny) -> None:
    rows = [{"reference": p.reference, "image": p.image, "number": at} for at, p in enumerate(pairs)]
    data = pytest.importorskip("ray.data").from_items(rows)
    found = rl.scoring.score_dataset(data, tiny, actors=(1, 2), batch_size=64).take_all()
    found.sort(key=lambda row: row["number"])
    alike([result_of(row) for row in found], expected)


@pytest.mark.slow
def test_sets_one_after_the_other_share_programs(pairs, expected, tiny) -> None:
    scorer = Scorer(tiny)
    alike([result for at in range(0, 96, 32) for result in scorer(pairs[at : at + 32])], expected[:96])
    assert scorer._programs is not None
    assert len(scorer._programs.shapes) == len(scorer._programs.images_of) == 2


def test_blocks_hold_all_pairs_once() -> None:
    paths = [f"{number}.png" for number in range(150)]
    groups = [Group((32, 32), paths), Group((40, 40), [f"{path}.jpg" for path in paths], 70)]
    whole = AllPairs([Pair("", "damaged.png", error="damaged")], groups)
    blocks = list(clusters._blocks(whole))
    assert len(blocks) > 8

    def unordered(pairs: Any) -> Counter:
        return Counter((frozenset((pair.reference, pair.image)), pair.error) for pair in pairs)

    assert unordered(pair for block in blocks for pair in block) == unordered(whole)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_parts_are_read_back_and_refuse_others(form: PartForm, tiny, tmp_path) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    pairs = [Pair("a.png", "b.png"), Pair("a.png", "c\udcff.png")]
    results = [Result("a.png", "b.png", np.float32(0.25), measures={"psnr": np.float64(20.5)})]
    results.append(Result("a.png", "c\\xff.png", error="c.png cannot be read"))

    def run(pairs_of_a_part: str = "2 pairs", metric: Any = tiny) -> Parts:
        return Parts(tmp_path / "out", form, JsonLines(metric, measures=["psnr"]), ("psnr",), pairs_of_a_part)

    parts = run()
    parts.begin()
    assert parts.recorded(0, pairs) is None
    parts.write(0, results)
    run().begin()
    found = parts.recorded(0, pairs)
    assert found is not None
    assert [(r.distance, r.error, r.recorded, dict(r.measures)) for r in found] == [
        (0.25, None, True, {"psnr": 20.5}),
        (None, "c.png cannot be read", True, {}),
    ]
    with pytest.raises(rl.RlpipsError, match="has results of other pairs"):
        parts.recorded(0, pairs[:1])
    for other in (run("3 pairs"), run(metric=rl.load("rlpips-tiny"))):
        with pytest.raises(rl.RlpipsError, match=r"is of another run and was left as it is: its (pairs|signature) is"):
            other.begin()
    parts.path(0).write_bytes(parts.path(0).read_bytes()[:-9])
    with pytest.raises(rl.RlpipsError, match="is damaged"):
        parts.recorded(0, pairs)


def test_a_random_metric_needs_to_know_how_far(tmp_path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(rl.EnsembleError, match="is random: pass scoring"):
        clusters.score_on_cluster([], rl.load("elpips-tiny"), tmp_path)
    scorer = Scorer(rl.load("elpips-tiny"), Scoring(sampling=Sampling(max_samples=2)))
    assert scorer([]) == []
