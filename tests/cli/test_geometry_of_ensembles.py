"""`rlpips average` and `rlpips geodesic` by an ensemble."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl


@pytest.mark.slow
@pytest.mark.parametrize("name", ["average", pytest.param("geodesic", marks=pytest.mark.slow)])
def test_ensembles_are_metrics_too(command: Callable[..., tuple[int, str, str]], tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    pictures = [tmp_path / "0.png", tmp_path / "1.png"]
    for path in pictures:
        rl.save_image(path, rng.uniform(size=(32, 32, 3)).astype(np.float32))
    options = ["--metric", "elpips-tiny", "--steps", "2", "--samples", "2", "--seed", "3"]
    options += ["--images-per-step", "1"] if name == "average" else ["--frames", "3"]
    status, printed, _ = command(name, *pictures, "--out", tmp_path / "out", *options)
    assert status == 0
    assert "ensemble keep=" in printed
    document = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (document["metric"], document["samples"], document["seed"]) == ("elpips-tiny", 2, 3)
    assert document.get("images_per_step") == (1 if name == "average" else None)
    assert len(document["distances"]) == 2
    assert all(0 < entry[name] < 1 for entry in document["distances"])
