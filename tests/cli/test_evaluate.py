"""`rlpips evaluate`, `certify` and `attack`: what they print and write, resumption, and errors that teach."""

import importlib.resources
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.cli.evaluate import Evaluate
from rlpips_jax.evaluation import exposure, measurement, ordinal, two_afc_score, write_npz

COUNT = 6

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(3):
        draw(folder / f"{seed}.png", seed, (80, 90))
    return folder


@pytest.fixture(scope="module")
def data(photographs: Path) -> Path:
    path = photographs.parent / "triplets.npz"
    write_npz(path, {"ordinal": ordinal(photographs, COUNT, kinds=("blur", "noise"), size=64)})
    return path


def evaluate(command: Command, data: Path, out: Path, *more: object) -> tuple[int, str, str]:
    return command("evaluate", "--data", data, "--metric", "lpips-tiny", "--batch", 4, "--out", out, *more)


ATTACK = ("--attack", "pgd", "--steps", 2, "--epsilon", "1/255", "8/255")


def documents(out: Path) -> dict[str, Any]:
    """Results by their attack and radius."""
    found = [json.loads(text) for text in _texts(out)]
    threats = (document["threat"] or {"name": "natural", "epsilon": 0} for document in found)
    names = [f"{threat['name']} {round(255 * threat['epsilon'])}" for threat in threats]
    return dict(zip(names, found, strict=True))


def test_table_documents_and_curves(command: Command, data: Path, tmp_path: Path) -> None:
    status, out, _ = evaluate(command, data, tmp_path, *ATTACK)
    assert status == 0
    assert len(out.splitlines()) == 5
    assert "1/255" in out
    assert "16/255" in out
    assert (tmp_path / "curves-triplets.npz-ordinal-pgd-linf.png").stat().st_size > 1000
    assert "ordinal: noise" in (tmp_path / "table.txt").read_text()
    found = documents(tmp_path)
    assert set(found) == {"natural 0", "pgd 1", "pgd 8"}
    for document in found.values():
        lines = (tmp_path / document["columns"]).read_text().splitlines()
        d0, d1 = np.concatenate([np.float32(json.loads(line)) for line in lines[1:]], axis=1)
        judgment = rl.evaluation.read(data)[0].judgment
        assert document["scores"]["two_afc"]["mean"] == pytest.approx(float(two_afc_score(d0, d1, judgment)))
        assert document["triplets"] == len(d0) == COUNT
        assert len(document["source"]["sha256"]) == 64
        assert "--data" in document["command"]
    assert found["natural 0"]["scores"]["flip_rate"] is None
    assert found["pgd 8"]["threat"]["seed"] == 0


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_alike(
    command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    evaluate(command, data, whole, *ATTACK)
    attacked, calls = measurement.attack_triplets, 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return attacked(*arguments, **options)

    monkeypatch.setattr(measurement, "attack_triplets", interrupted)
    assert evaluate(command, data, torn, *ATTACK)[0] == 130
    assert set(documents(torn)) == {"natural 0", "pgd 1"}
    status, out, _ = evaluate(command, data, torn, *ATTACK)
    assert status == 0
    assert calls == 5
    assert {path.name: path.read_bytes() for path in torn.glob("*.jsonl")} == {
        path.name: path.read_bytes() for path in whole.glob("*.jsonl")
    }
    monkeypatch.setattr(measurement, "attack_triplets", None)
    assert evaluate(command, data, torn, *ATTACK)[:2] == (0, out)


def test_shifts_and_photographs(command: Command, photographs: Path, tmp_path: Path) -> None:
    status, out, _ = evaluate(
        command, photographs, tmp_path, "--count", 4, "--size", 64, "--teacher", "lpips-tiny", "--shift", 2
    )
    assert status == 0
    assert [line.split()[:3] for line in out.splitlines() if "cropped shift pixels" in line] == [
        [photographs.name, kind, "lpips-tiny"] for kind in ("ordinal", "ordinal", "crossed", "crossed")
    ]
    assert "2 px" in out


@pytest.mark.slow
def test_radii_of_reversal(command: Command, data: Path, tmp_path: Path) -> None:
    """Their own table and document, and a second run that computes nothing."""
    attack = ("--attack", "minimum", "--attack", "first_reversal", "--steps", 6)
    status, out, _ = evaluate(command, data, tmp_path, *attack)
    assert status == 0
    assert [" ".join(line.split()[3:5]) for line in out.splitlines() if "closer" in line] == [
        "minimum linf",
        "first_reversal linf",
    ]
    found = [json.loads(text) for text in _texts(tmp_path)]
    (smallest,) = (one for one in found if one["threat"] and one["threat"]["name"] == "minimum")
    quartiles = [score["mean"] for score in smallest["radii"][""]["radius"]]
    assert quartiles == sorted(quartiles)
    assert smallest["radii"][""]["reversed"]["mean"] == 1
    assert evaluate(command, data, tmp_path, *attack)[1] == out


def test_attacks_adapt_to_ensembles() -> None:
    """Fresh draws, transfer, and all draws known; metrics that are not random have none of it."""
    tiny = rl.load("lpips-tiny")
    ensemble = rl.Ensemble(tiny)
    options = Evaluate(
        data=(), attack=("pgd", "distort"), epsilon=("1/255",), draws=(1, 4), fixed_key=True, surrogate="lpips-tiny"
    )
    assert [threat.words for threat in options._threats(tiny, tiny)] == ["-", "pgd linf", "distort linf"]
    assert [threat.words for threat in options._threats(ensemble, tiny)] == [
        *("-", "pgd linf, 1 draw", "pgd linf, 4 draws", "pgd linf, key known", "pgd linf, on lpips-tiny"),
        *("distort linf, 1 draw", "distort linf, 4 draws", "distort linf, key known"),
    ]


@pytest.mark.slow
def test_ensembles_beside_metrics(
    command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once more, from what is there."""
    random = ("--metric", "elpips-tiny", "--samples", 1, "--draws", 1)
    arguments = (*random, "--limit", 3, "--attack", "distort", "--steps", 1, "--epsilon", "8/255")
    status, out, _ = evaluate(command, data, tmp_path, *arguments)
    assert status == 0
    rows = [re.split(r"  +", line) for line in out.splitlines() if "-tiny" in line]
    assert [row[1:3] for row in rows] == [
        *(["lpips-tiny", "-"], ["elpips-tiny (1)", "-"]),
        *(["lpips-tiny", "distort linf"], ["elpips-tiny (1)", "distort linf, 1 draw"]),
    ]
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    for metric in ("lpips-tiny", "elpips-tiny"):
        (exposed,) = (document for document in found if "exposure" in document and document["metric"] == metric)
        (natural,) = (document for document in found if not document["threat"] and document["metric"] == metric)
        distances, usual = (
            np.array([json.loads(line) for line in (tmp_path / document["columns"]).read_text().splitlines()[1:]])
            for document in (exposed, natural)
        )
        assert exposed["exposure"]["usual"]["distance"] == pytest.approx(usual.mean(), rel=1e-5)
        assert exposed["exposure"]["distance"]["mean"] == pytest.approx(distances[0, 0].mean() / usual.mean(), rel=1e-5)
    monkeypatch.setattr(exposure, "exposed", None)
    assert evaluate(command, data, tmp_path, *arguments)[:2] == (0, out)


@pytest.mark.slow
def test_impostors_stay_within_a_share_of_what_is_usual(command: Command, data: Path, tmp_path: Path) -> None:
    status, out, _ = evaluate(command, data, tmp_path, "--attack", "impostor", "--bound", 0.25, "--steps", 2)
    assert status == 0
    (found,) = (d for path in tmp_path.glob("*.json") if "exposure" in (d := json.loads(path.read_text())))
    assert found["threat"]["steps"] == 8
    assert 0 < found["exposure"]["distance"]["mean"] <= 0.25 * (1 + 1e-5)
    assert "0.25 usual" in out
    assert "impostor" in (tmp_path / "table.txt").read_text()


@pytest.mark.slow
def test_files_of_one_name_are_told_apart_by_folder(command: Command, data: Path, tmp_path: Path) -> None:
    tiny = importlib.resources.files("rlpips_jax") / "data" / "lpips-tiny.safetensors"
    files = [tmp_path / folder / "lpips-tiny.safetensors" for folder in ("first", "second")]
    for path in files:
        path.parent.mkdir()
        path.write_bytes(tiny.read_bytes())
    metrics = ("--metric", files[0], "--metric", f"ensemble:{files[1]}", "--metric", files[1])
    status, out, _ = evaluate(command, data, tmp_path / "out", *metrics, "--samples", 2)
    assert status == 0
    found = {document["metric"] for document in map(json.loads, _texts(tmp_path / "out"))}
    assert found == {"lpips-tiny", "first/lpips-tiny", "second/lpips-tiny", "ensemble:lpips-tiny"}
    assert all(name in out for name in found)


@pytest.mark.slow
def test_metrics_of_one_network_compile_each_attack_once(
    command: Command, data: Path, tmp_path: Path, compilations: list[str]
) -> None:
    tiny = importlib.resources.files("rlpips_jax") / "data" / "lpips-tiny.safetensors"
    files = [tmp_path / folder / "lpips-tiny.safetensors" for folder in ("first", "second")]
    for path in files:
        path.parent.mkdir()
        path.write_bytes(tiny.read_bytes())
    assert evaluate(command, data, tmp_path / "one", *ATTACK)[0] == 0
    compilations.clear()
    status, out, _ = evaluate(command, data, tmp_path / "three", *ATTACK, "--metric", files[0], "--metric", files[1])
    assert status == 0
    assert all(name in out for name in ("first/lpips-tiny", "second/lpips-tiny"))
    assert compilations == []


def _texts(out: Path) -> Iterator[str]:
    return (path.read_text() for path in out.glob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--epsilon", "1/255"), "--epsilon needs an attack"),
        (("--surrogate", "lpips-tiny"), "--surrogate needs an attack"),
        (("--surrogate", "lpips-tiny", "--attack", "distort"), "--surrogate needs an attack that uses it"),
        (("--surrogate", "lpips-tiny", "--attack", "pgd"), "is the only --metric"),
        (("--epsilon", "1/255", "--attack", "impostor"), "--epsilon needs an attack that uses it"),
        (("--samples", 4), "--samples is for randomised metrics"),
        (("--fixed-key", "--attack", "pgd"), "--fixed-key is for randomised metrics"),
        (("--attack", "pgd", "--draws", 0), "--draws must be 1 or more"),
        (("--attack", "pgd", "--draws", 4), "--draws is for randomised metrics"),
        (("--attack", "impostor", "--bound", 0), "--bound must be above 0"),
        (("--attack", "pgd", "--epsilon", "2"), "from 0 to 1"),
        (("--attack", "pgd", "--epsilon", "x"), "not a number such as 2/255"),
        (("--attack", "pgd", "--norm", "linf", "l2", "--epsilon", "0.1"), "cannot be right for l2, linf"),
        (("--attack", "recolor", "--norm", "l2"), "--attack recolor needs --norm linf, got l2"),
        (("--attack", "pgd", "--steps", 0), "--steps must be 1 or more"),
        (("--limit", 0), "--limit must be 1 or more"),
        (("--shift", 64), "from 1 to 63 pixels"),
        (("--metric", "lpips-tiny"), "must have different names"),
    ],
)
def test_arguments_that_make_no_sense(
    command: Command, data: Path, tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    status, out, err = evaluate(command, data, tmp_path / "out", *arguments)
    assert status == 2
    assert says in err
    assert out == ""


def test_certificates(command: Command, data: Path, tmp_path: Path) -> None:
    arguments = (
        *("certify", "--data", data, "--metric", "lpips-tiny", "--sigma", 0.02, "--samples", 20, "--alpha", 0.01),
        *("--selection-samples", 5, "--radius", 0, 0.01, 1, "--out", tmp_path),
    )
    status, out, _ = command(*arguments)
    assert status == 0
    row = out.splitlines()[-1].split()
    assert row[-1] == str(COUNT)
    shares = [float(cell) for cell in row[4:7]]
    assert shares == sorted(shares, reverse=True)
    assert shares[2] == 0, "20 samples cannot prove so much"
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["certificate"]["sigma"] == 0.02
    before = path.read_bytes()
    assert command(*arguments)[:2] == (0, out)
    assert path.read_bytes() == before
    status, _, err = command(*arguments, "--radius", -1)
    assert status == 2
    assert "--radius must be 0 or more" in err
    for draws, says in ((2, "--draws is for randomised metrics"), (0, "--draws must be 1 or more, got 0")):
        status, _, err = command(*arguments, "--draws", draws)
        assert (status, says in err) == (2, True)


@pytest.mark.slow
def test_an_ensemble_is_certified(command: Command, data: Path, pictures: list[Path], tmp_path: Path) -> None:
    smoothing = ("--metric", "elpips-tiny", "--draws", 2, "--sigma", 0.02, "--samples", 20, "--alpha", 0.1)
    status, out, _ = command("certify", "--data", data, "--limit", 2, *smoothing, "--radius", 0, "--out", tmp_path)
    assert status == 0
    assert out.splitlines()[-1].split()[3:] == ["0.02", "1.000", "0.000", "2"]
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["certificate"]["draws"] == 2
    status, out, _ = command("certify", "--images", *pictures[:2], *smoothing, "--radius", 0)
    assert (status, "elpips-tiny" in out) == (0, True)


@pytest.mark.slow
def test_the_certificate_of_a_distance(command: Command, pictures: list[Path]) -> None:
    smoothing = ("--metric", "lpips-tiny", "--sigma", 0.02, "--samples", 20, "--alpha", 0.1)
    status, out, err = command("certify", "--images", *pictures[:2], *smoothing, "--radius", 0, "2/255", "36/255")
    assert status == 0
    assert "36/255 needs" in err
    cells = re.findall(r"\[([0-9.]+), ([0-9.a-z]+)\]", out)
    (low, high), (lower, higher), beyond = [(float(a), float(b)) for a, b in cells]
    assert 0 < lower <= low <= high <= higher < np.inf
    assert beyond == (0, np.inf)
    status, _, err = command("certify", "--images", *pictures[:2], "--data", pictures[0].parent, *smoothing)
    assert (status, "give one of them" in err) == (2, True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., Path]) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [draw(folder / f"{seed}.png", seed) for seed in range(3)]


def attack(command: Command, pictures: list[Path], out: Path, *more: object) -> dict[str, Any]:
    words = ("attack", *pictures, "--metric", "lpips-tiny", "--steps", 3, "--out", out, "--replace", *more)
    status, _, err = command(*words)
    assert (status, err.count("\n")) == (0, 1)
    assert "steps on 40x32 pixels" in err
    assert rl.load_image(out / "sheet.png").shape[1] > 600
    return json.loads((out / "result.json").read_text())


def test_own_pictures_are_attacked_within_the_bound(
    command: Command, pictures: list[Path], tmp_path: Path, tiny: rl.Lpips
) -> None:
    result = attack(command, pictures[:2], tmp_path, "--epsilon", "3/255")
    written = rl.load_image(tmp_path / "adversarial.png")
    assert np.abs(written.astype(int) - rl.load_image(pictures[1])).max() == result["linf"] == 3
    (row,) = result["distances"]
    assert row["after"] > row["before"]
    assert row["after"] == pytest.approx(float(rl.distance(rl.load_image(pictures[0]), written, tiny)), rel=1e-6)
    status, _, err = command("attack", *pictures[:2], "--metric", "lpips-tiny", "--out", tmp_path)
    assert (status, "holds the result of an earlier attack" in err) == (2, True)
    pulled = attack(command, pictures[:2], tmp_path, "--epsilon", "3/255", "--pull")
    assert pulled["distances"][0]["after"] < row["before"]


@pytest.mark.slow
def test_the_order_of_two_pictures_and_one_alone(command: Command, pictures: list[Path], tmp_path: Path) -> None:
    result = attack(command, pictures, tmp_path, "--attacked", "farther")
    distances = result["distances"]
    farther = max(distances, key=lambda row: row["before"])
    assert result["moved"].endswith(farther["pair"].removeprefix("REF to "))
    assert sum(row["before"] != row["after"] for row in distances) == 1
    alone = attack(command, pictures[:1], tmp_path)
    assert alone["distances"][0]["after"] > 0
    assert alone["linf"] <= 2


@pytest.mark.parametrize("bound", [pytest.param(0.1, marks=pytest.mark.slow), 0.05])
def test_an_impostor_is_within_its_bound_as_it_is_written(
    command: Command, pictures: list[Path], tmp_path: Path, bound: float
) -> None:
    """Rounding to bytes took some of these pictures outside."""
    (row,) = attack(command, pictures[:1], tmp_path, "--attack", "impostor", "--bound", bound)["distances"]
    assert 0.9 * bound < row["after"] <= bound


@pytest.mark.parametrize(
    ("count", "arguments", "says"),
    [
        (1, ("--attack", "pgd"), "pgd takes REF and one or two images"),
        (2, ("--attack", "impostor"), "impostor takes REF alone"),
        (3, ("--pull",), "--pull is for REF IMAGE"),
        (2, ("--epsilon", "-1"), "from 0 to 1"),
        (2, ("--attacked", "farther"), "--attacked is for REF IMAGE IMAGE"),
        (1, ("--attack", "impostor", "--epsilon", "1/255"), "stays under --bound"),
        (2, ("--attack", "spatial", "--norm", "l2"), "--epsilon is in pixels"),
    ],
)
def test_pictures_that_make_no_sense(
    command: Command, pictures: list[Path], tmp_path: Path, count: int, arguments: tuple[object, ...], says: str
) -> None:
    status, _, err = command("attack", *pictures[:count], "--metric", "lpips-tiny", "--out", tmp_path, *arguments)
    assert status == 2
    assert says in err
