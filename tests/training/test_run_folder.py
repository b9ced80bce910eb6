"""A run's folder: its own run goes on in it, another is refused by what differs."""

import json

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
    (folder / run_folder.RECORD).write_text("{")
    with pytest.raises(TrainingError, match=r"configuration.json is damaged"):
        run_folder.check(folder, document)


def test_what_decides_nothing_is_not_compared_in_folders_of_earlier_versions_either(tmp_path) -> None:
    earlier = Lin().document() | {"checkpoint_every": 100}
    run_folder.claim(tmp_path, earlier)
    run_folder.claim(tmp_path, Lin(checkpoint_every=10).document(), NOT_DECISIVE)
    assert json.loads((tmp_path / run_folder.RECORD).read_text()) == earlier
    with pytest.raises(TrainingError, match=r"a run with evaluate_every None \(now 7\); "):
        run_folder.check(tmp_path, Lin(evaluate_every=7).document(), NOT_DECISIVE)
