"""Options: defaults of the two protocols, refusals that name the option, and what the program says of itself."""

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from rlpips_jax import attacks
from rlpips_jax.errors import TrainingError
from training.config import NOT_DECISIVE, RECIPES, TUNED, Lin, Natural, Training, Tune, radius
from training.program import main


def test_the_published_recipe_is_the_papers() -> None:
    config = Lin(protocol="published")
    assert vars(config.recipe) == {
        "initial_heads": "drawn",
        "loss": "head",
        "epsilon": "8/255",
        "attack_steps": 50,
        "natural_weight": 0,
        "dropout": 0.5,
        "epochs": 5,
        "decay_epochs": 5,
        "rate": 1e-4,
        "b1": 0.5,
        "batch": 50,
        "backbone_rate": 0,
    }
    assert (config.attack, config.recipe.radius) == ("pgd", pytest.approx(8 / 255))
    assert Lin(protocol="published", norm="l2").recipe.radius == 3


def test_radii_are_those_of_the_norm() -> None:
    assert (Lin(norm="l2").recipe.radius, Lin(norm="l2").evaluation_radii) == (1, ("0.5", "1"))
    assert (Lin(attack="spatial").recipe.radius, Lin().evaluation_radii) == (0.5, ("2/255", "4/255"))


def test_natural_training_has_no_attack() -> None:
    with pytest.raises(TrainingError, match="--attack pgd"):
        Natural(attack="pgd")


def test_options_of_the_recipe_are_left_to_the_protocol() -> None:
    undecided = {field.name for field in dataclasses.fields(Training) if field.default is None}
    assert vars(Lin().recipe).keys() <= undecided
    assert Lin().recipe == RECIPES["corrected"]


def test_what_is_given_prevails_over_the_protocol() -> None:
    recipe = Lin(protocol="published", epochs=0, dropout=0.0, epsilon="1/255", norm="l2").recipe
    assert (recipe.epochs, recipe.dropout, recipe.epsilon, recipe.decay_epochs) == (0, 0.0, "1/255", 5)


def test_the_modes_are_what_they_are_called() -> None:
    assert (Lin().recipe.backbone_rate, Lin().attack) == (0, "pgd")
    assert (Tune().recipe.backbone_rate, Tune().attack) == (TUNED["corrected"]["backbone_rate"], "pgd")
    assert Tune(protocol="published").recipe == dataclasses.replace(RECIPES["published"], backbone_rate=1e-4)
    assert Tune(backbone_rate=1e-5, epsilon="2/255").recipe == dataclasses.replace(
        Tune().recipe, backbone_rate=1e-5, epsilon="2/255"
    )
    assert (Natural().recipe.backbone_rate, Natural().attack, Natural().recipe.natural_weight) == (0, "none", 1)
    # Also where the protocol would weigh it by nothing.
    assert Natural(protocol="published").recipe.natural_weight == 1


def test_every_attack_exists() -> None:
    for name in typing.get_args(typing.get_type_hints(Training)["attack"]):
        if name == "none":
            continue
        assert callable(getattr(attacks, name))
        assert Lin(attack=name).attack == name  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--batch", {"batch": 0}),
        ("--accumulate", {"accumulate": 0}),
        ("--triplets", {"triplets": 0}),
        ("--validation-triplets", {"validation_triplets": 0}),
        ("--checkpoint-every", {"checkpoint_every": 0}),
        ("--evaluate-every", {"evaluate_every": 0}),
        ("--keep", {"keep": 0}),
        ("--size", {"size": -1}),
        ("--steps", {"steps": 0}),
        ("--epochs", {"epochs": 0, "decay_epochs": 0}),
        ("--decay-epochs", {"epochs": 3, "decay_epochs": -1}),
        ("--epsilon", {"epsilon": "8/0"}),
        ("--epsilon", {"epsilon": "-1"}),
        ("--epsilon", {"epsilon": "small"}),
        ("--epsilon", {"epsilon": "nan"}),
        ("--epsilon", {"epsilon": "inf"}),
        ("--evaluation-epsilons", {"evaluation_epsilons": ("2/255", "x")}),
        ("--dropout", {"dropout": 1.0}),
        ("--dropout", {"dropout": float("nan")}),
        ("--average", {"average": -0.1}),
        ("--attack-steps", {"attack_steps": 0}),
        ("--evaluation-steps", {"evaluation_steps": 0}),
        ("--protocol", {"protocol": "published", "attack": "apgd"}),
        ("--natural-weight", {"natural_weight": -1.0}),
        ("--natural-weight", {"natural_weight": float("nan")}),
        ("--natural-weight", {"natural_weight": 0.0, "attack": "none"}),
        ("--ordinal-share", {"ordinal_share": 1.0}),
        ("--rate", {"rate": -1.0}),
        ("--rate", {"rate": float("nan")}),
        ("--backbone-rate", {"backbone_rate": -1e-4}),
        ("--floor-rate", {"floor_rate": float("inf")}),
        ("--floor", {"floor": -0.1}),
        ("--b1", {"b1": 1.0}),
        ("--head-range", {"head_range": 1.0}),
        ("--first-layer", {"first_layer": -0.5}),
        ("--head-range", {"head_range": float("inf")}),
        ("--head-range", {"head_range": 2.0, "protocol": "published"}),
        ("--seed", {"seed": -1}),
        ("--backbone-rate", {"backbone_rate": 1e-4}),
        ("--photographs", {"photographs": "somewhere", "data": "bapps"}),
        ("--split", {"photographs": "somewhere", "split": ("train",)}),
        ("--epsilon", {"epsilon": "1e999"}),
        ("--workers", {"workers": -1}),
        ("--prefetch", {"prefetch": -1}),
    ],
)
def test_a_refusal_names_the_option(option, given) -> None:
    with pytest.raises(TrainingError, match=rf"(^|[^-\w]){option}([^-\w]|$)"):
        Lin(**given)


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("2.5/255", 2.5 / 255), ("3", 3.0), ("0.5", 0.5), ("0", 0.0)]
)
def test_radii_are_numbers_or_fractions(text, value) -> None:
    assert radius(text, "--epsilon") == value


def test_the_document_holds_what_decides_and_nothing_else() -> None:
    document = Lin(photographs=None, epsilon="2/255").document()
    fields = {field.name for field in dataclasses.fields(Lin)}
    assert document.keys() == fields - set(NOT_DECISIVE) | {"mode"}
    assert document["mode"] == "lin"
    assert json.loads(json.dumps(document)) == document
    where: dict[str, Any] = {"out": "elsewhere", "workers": 3, "keep": 9, "checkpoint_every": 7, "processes": 2}
    assert Lin(**where).document() == Lin().document()
    assert Lin(seed=1).document() != Lin().document()
    # It decides between which checkpoints the best is.
    assert Lin(evaluate_every=7).document() != Lin().document()
    assert Tune().document()["mode"] == "tune"


def test_a_card_names_files_without_their_paths() -> None:
    config = Lin(data="/of/one/machine/learn.npz", validation=Path("/of/one/machine/choose.npz"), epsilon="2/255")
    named = {"data": "learn.npz", "validation": "choose.npz"}
    assert config.card() == config.document() | named


@pytest.mark.parametrize("arguments", [["--help"], ["lin", "--help"]])
def test_help_says_what_there_is_and_what_is_meant_without_it(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    if arguments == ["--help"]:
        assert all(mode in shown for mode in ("lin", "tune", "natural", "distill"))
        return
    for option in ("--photographs", "--epsilon", "--protocol", "--coordinator", "--accumulate"):
        assert option in shown
    assert "by default 80, of tune 50; published 50" in shown
    assert "by default 3/255, in l2 1; published 8/255, in l2 3" in shown
    assert "default: corrected" in shown


def test_the_program_refuses_without_a_traceback(capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["lin", "--batch", "0"])
    assert exit_.value.code == 2
    shown = capsys.readouterr()
    assert "--batch must be 1 or more, got 0" in shown.err
    assert "Traceback" not in shown.out + shown.err
