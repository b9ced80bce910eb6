"""The published recipe from the archives of BAPPS to the table of its validation splits."""

import json

import pytest

import rlpips_jax as rl
from rlpips_jax.weights import native
from training.logs import read
from training.program import main

SPLITS = ("traditional", "cnn", "superres", "deblur", "color", "frameinterp")


@pytest.mark.slow
def test_from_the_archives_to_the_table(server, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RLPIPS_BAPPS_URL", server.url)
    options = {
        "data": "bapps",
        "data-dir": tmp_path / "data",
        "protocol": "published",
        "metric": "lpips-tiny",
        "out": tmp_path / "run",
        "size": 32,
        "batch": 8,
        "epochs": 1,  # of one step: there are 12 triplets
        "decay-epochs": 1,
        "attack-steps": 2,
        "evaluation-epsilons": "8/255",
        "evaluation-steps": 2,
        "evaluate-every": 2,
    }
    assert main(["lin", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]) == 0

    heading, *lines = capsys.readouterr().out.strip().splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines[: len(SPLITS)]}
    assert list(table) == list(SPLITS)
    assert all(name in heading for name in ("lpips-tiny natural", "rlpips-tiny 8/255"))
    # 2AFC as it is, of clear judgments and attacked, and agreement with the majority, of the metric before and after.
    assert all(len(cells) == 10 for cells in table.values())
    assert all(name in heading for name in ("rlpips-tiny majority", "rlpips-tiny majority 8/255"))
    records = read(tmp_path / "run" / "metrics.jsonl")
    (reference,) = (record for record in records if record["kind"] == "reference")
    (evaluation,) = (record for record in records if record["kind"] == "evaluation")
    assert {f"{100 * reference[f'{split}/8/255']:.2f}" for split in SPLITS} <= {cells[4] for cells in table.values()}
    assert [record["step"] for record in records if record["kind"] == "step"] == [1, 2]
    metric = tmp_path / "run" / "rlpips-tiny.safetensors"
    card = json.loads(native.read_metadata(metric)["card"])
    assert card["scores"]["trained"]["cnn"]["natural"] == round(evaluation["cnn/natural"], 6)
    assert card["scores"]["start"]["cnn"]["majority 8/255"] == round(reference["cnn/majority 8/255"], 6)
    assert card["trained"]["rate"] == 1e-4
    assert [one["triplets"] for one in card["data"]] == [
        f"{count} of BAPPS train_{name}" for name, count in (("traditional", 5), ("cnn", 4), ("mix", 3))
    ]
    assert rl.load(metric).name == "rlpips-tiny"
