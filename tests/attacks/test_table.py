"""The table of attacks: what it says is true, and a line of it is enough to add an attack."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.attacks import ATTACKS, AttackEntry, AttackResult, pgd, table
from rlpips_jax.errors import AttackError
from tests.attacks import test_promises
from tests.attacks.conftest import cases
from training.config import Lin

PAGE = Path(__file__).resolve().parents[2] / "docs" / "attacks.md"


@pytest.mark.parametrize("name", ATTACKS)
def test_entries_name_the_arguments_that_their_functions_take(name: str) -> None:
    entry = ATTACKS[name]
    parameters = set(inspect.signature(entry.function).parameters)
    assert {"key", "value_range", "steps", *filter(None, [entry.radius])} <= parameters
    first = "metric" if entry.takes in ("distance", "references") else "objective"
    assert [*inspect.signature(entry.function).parameters][:2] == [first, "images"]
    assert ("norm" in parameters) == (len(entry.norms) > 1)
    assert ("restarts" in parameters) == entry.restarts
    assert ("random_start" in parameters) == entry.random_start
    assert set(entry.moves) <= set(rl.attacks.ATTACKED)


@pytest.mark.parametrize("name", ATTACKS)
def test_public_names_are_functions_and_not_their_modules(name: str) -> None:
    assert callable(getattr(rl.attacks, name))


def test_the_documentation_has_the_table() -> None:
    assert table.markdown() in PAGE.read_text(encoding="utf-8")


def test_an_attack_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttackError, match="no attack is called 'pdg'; there are pgd, apgd"):
        table.entry("pdg")


def ascend(
    objective: Any, images: Any, *, key: Any, epsilon: Any, steps: int, value_range: Any = (0.0, 1.0)
) -> AttackResult:
    """An attack of a user's own, in one norm and with one start."""
    return pgd(objective, images, key=key, epsilon=epsilon, steps=steps, value_range=value_range)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> AttackEntry:
    """One line of the table."""
    entry = AttackEntry(function=ascend, does="goes up", norms=("linf",), restarts=False)
    monkeypatch.setitem(ATTACKS, "ascend", entry)
    return entry


@pytest.mark.usefixtures("added")
def test_an_entry_is_tested_and_listed(objective: Any, command: Any) -> None:
    assert "| `ascend` | goes up | l-inf | any image of a triplet | yes |" in table.markdown()
    for words in (("attack",), ("evaluate",)):
        status, out, _ = command(*words, "--help")
        assert status == 0
        assert "ascend" in out
    assert Lin(attack="ascend").recipe.radius == pytest.approx(3 / 255)
    (case,) = (case for case in cases(ATTACKS) if case.name.startswith("ascend"))
    assert (case.bounded, case.options) == ("linf", ("steps",))
    test_promises.test_says_what_it_reached(case, objective)
    test_promises.test_is_determined_by_its_key(case, objective)
    test_promises.test_names_its_arguments_alike(case)


@pytest.mark.slow
@pytest.mark.usefixtures("added")
def test_an_entry_is_usable_from_the_command_line(command: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 3, 40, 40, 3), dtype=np.uint8)
    for place, picture in enumerate(images[0, :2]):
        rl.save_image(tmp_path / f"{place}.png", picture)
    data = tmp_path / "data.npz"
    triplets = rl.evaluation.Triplets(images[:, 0], images[:, 1], images[:, 2], np.zeros(4, np.float32), ("noise",) * 4)
    rl.evaluation.write_npz(data, {"drawn": triplets})
    common = ("--metric", "lpips-tiny", "--attack", "ascend", "--steps", 2)
    one = tmp_path / "one"
    assert command("attack", tmp_path / "0.png", tmp_path / "1.png", "--out", one, *common)[0] == 0
    assert json.loads((one / "result.json").read_text())["attack"]["name"] == "ascend"
    status, out, _ = command("evaluate", "--data", data, "--epsilon", "4/255", "--out", tmp_path / "all", *common)
    assert status == 0
    assert "ascend linf" in out
    status, _, err = command("attack", tmp_path / "0.png", tmp_path / "1.png", *common, "--norm", "l2")
    assert status == 2
    assert "ascend has no --norm l2" in err
