"""A run's folder: its own run continues in it; another one is refused, and told what differs."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlpips_jax.errors import TrainingError
from training import run_folder
from training.config import NOT_DECISIVE, Lin


def test_a_folder_is_its_runs_alone(tmp_path) -> None:
    folder, document = tmp_path / "run", {"seed": 0, "rate": 0.1}
    assert not run_folder.check(folder, document)
    run_folder.claim(folder, document)
    assert run_folder.check(folder, document)
    for other, differences in (
        ({"seed": 1, "rate": 0.1}, r"seed 0 \(now 1\)"),
        ({"seed": 0}, r"rate 0.1 \(now None\)"),
    ):
        with pytest.raises(TrainingError, match=rf"a run with {differences}; give another --out"):
            run_folder.claim(folder, other)
    for damaged in ("{", "[]", "null", "[" * 200_000):
        (folder / run_folder.RECORD).write_text(damaged)
        with pytest.raises(TrainingError, match=r"configuration.json is damaged"):
            run_folder.check(folder, document)
        assert (folder / run_folder.RECORD).read_text() == damaged


def test_what_decides_nothing_is_not_compared_in_folders_of_earlier_versions_either(tmp_path) -> None:
    earlier = Lin().document() | {"checkpoint_every": 100}
    run_folder.claim(tmp_path, earlier)
    run_folder.claim(tmp_path, Lin(checkpoint_every=10).document(), NOT_DECISIVE)
    assert json.loads((tmp_path / run_folder.RECORD).read_text()) == earlier
    with pytest.raises(TrainingError, match=r"a run with evaluate_every None \(now 7\); "):
        run_folder.check(tmp_path, Lin(evaluate_every=7).document(), NOT_DECISIVE)


@pytest.mark.parametrize("same", [False, True])
def test_of_runs_that_start_at_once_one_gets_the_folder(tmp_path, same: bool) -> None:
    start = threading.Barrier(4)

    def run(seed: int, folder: Path) -> str | None:
        start.wait()
        try:
            run_folder.claim(folder, {"seed": 0 if same else seed})
        except TrainingError as error:
            return str(error)
        return None

    for attempt in range(10):
        folder = tmp_path / str(attempt)
        with ThreadPoolExecutor(4) as pool:
            refusals = [said for said in pool.map(run, range(4), [folder] * 4) if said is not None]
        assert len(refusals) == (0 if same else 3)
        assert all(f"{folder} holds a run with seed" in said for said in refusals)
        assert [path.name for path in folder.iterdir()] == [run_folder.RECORD]
