"""An exported metric gives the library's numbers where the library is not."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import rlpips_jax as rl

DOCS = Path(__file__).parent.parent / "docs" / "export.md"


def documented() -> str:
    """The program that runs an exported metric without this library."""
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return block


@pytest.fixture(scope="module")
def tiny() -> rl.Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def file(tiny: rl.Lpips, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "tiny.program"
    rl.exported.save(tiny, path)
    return path


def pairs(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.random.default_rng(0).random((2, *shape, 3), np.float32)
    return x, y


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 64, 64), (7, 45, 61)])
def test_the_documented_lines_run_it_without_this_library(
    shape: tuple[int, ...], tiny: rl.Lpips, file: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "pairs.npy", np.stack(pairs(*shape)))
    program = documented().replace("lpips-vgg.program", str(file))
    absent = "import sys; sys.modules['rlpips_jax'] = None\n"
    run = subprocess.run(
        [sys.executable, "-c", absent + program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    signature, numbers = run.stdout.split("\n", 1)
    assert signature == tiny.signature
    found = np.array(numbers.strip(" []\n").split(), np.float32)
    np.testing.assert_allclose(found, rl.distance(*pairs(*shape), tiny), rtol=0, atol=1e-6)


def test_batches_of_every_size_give_the_distances(tiny: rl.Lpips, file: Path) -> None:
    program = rl.exported.load(file)
    assert (program.signature, program.value_range) == (tiny.signature, (0, 1))
    x, y = pairs(7, 31, 40)
    np.testing.assert_allclose(program(x, y), rl.distance(x, y, tiny), rtol=0, atol=1e-6)


def test_another_shape_or_type_is_an_error_by_jax(file: Path) -> None:
    program = rl.exported.load(file)
    x, y = pairs(2, 40, 40)
    for wrong in (x[:, :35], x[:1], x[..., :2], x[0]):
        with pytest.raises(ValueError, match=r"Found inconsistency|Rank mismatch|Shape mismatch|polymorphic"):
            program.exported.call(program.parameters, wrong, y)
    with pytest.raises(ValueError, match="Dtype mismatch"):
        program.exported.call(program.parameters, np.zeros(x.shape, np.uint8), y)


@pytest.mark.slow
def test_windows_over_the_edge_of_images_of_any_size(drawn: Callable[..., rl.Lpips], tmp_path: Path) -> None:
    metric = drawn(rl.backbones.SQUEEZE)
    rl.exported.save(metric, tmp_path / "program")
    x, y = pairs(2, 38, 45)
    found = rl.exported.load(tmp_path / "program")(x, y)
    np.testing.assert_allclose(found, rl.distance(x, y, metric), rtol=1e-6)


@pytest.mark.slow
def test_gradients_come_along(drawn: Callable[..., rl.Lpips], tmp_path: Path) -> None:
    metric = drawn(rl.backbones.TINY)
    rl.exported.save(metric, tmp_path / "program", with_gradient=True, value_range=(-1, 1))
    x, y = (2 * images - 1 for images in pairs(3, 37, 52))
    distances, gradients = rl.exported.load(tmp_path / "program")(x, y)

    def total(y: jax.Array) -> jax.Array:
        return rl.distance(x, y, metric, value_range=(-1, 1)).sum()

    expected, slope = jax.value_and_grad(total)(y)
    np.testing.assert_allclose(distances.sum(), expected, rtol=1e-6)
    np.testing.assert_allclose(gradients, slope, rtol=0, atol=1e-6 * np.abs(slope).max())


def test_a_program_for_one_platform_is_a_plain_module(tiny: rl.Lpips, tmp_path: Path) -> None:
    """As docs/export.md says of programs without Python: no further argument, no length that is unknown."""
    rl.exported.save(tiny, tmp_path / "one", batch=1, height=32, width=32, platforms=["cpu"])
    program = rl.exported.load(tmp_path / "one")
    text = program.exported.mlir_module()
    arguments = re.search(r"func\.func public @main\((.*?)\) ->", text, re.DOTALL)
    assert arguments is not None
    assert arguments[1].count("%arg") == len(program.parameters) + 2
    assert "?" not in arguments[1]


@pytest.mark.usefixtures("wrong_types")
def test_what_cannot_be_exported_says_why(tiny: rl.Lpips, tmp_path: Path, command) -> None:
    out = tmp_path / "program"
    with pytest.raises(rl.ImageError, match="at least 31x31"):
        rl.exported.save(tiny, out, height=16)
    with pytest.raises(rl.MetricError, match=r"some of cpu, cuda, tpu, got \['abacus'\]"):
        rl.exported.save(tiny, out, platforms=["abacus"])  # pyright: ignore[reportArgumentType]
    assert "elpips-tiny is random" in command("export", "--metric", "elpips-tiny", "--out", out)[2]
    weights = tmp_path / "weights.safetensors"
    rl.save(tiny, weights)
    for other in (weights, Path(__file__)):
        with pytest.raises(rl.WeightsCorrupt, match="holds no exported program"):
            rl.exported.load(other)


def test_a_network_that_needs_a_size_says_so(drawn: Callable[..., rl.Lpips], tmp_path: Path) -> None:
    with pytest.raises(rl.MetricError, match="drawn-stalex can only be exported for images of one size: give height"):
        rl.exported.save(drawn(rl.backbones.STALEX), tmp_path / "program")


@pytest.mark.slow
def test_the_command_writes_a_program(tiny: rl.Lpips, tmp_path: Path, command) -> None:
    out = tmp_path / "program"
    sizes = ("--height", "32", "--width", "40", "--batch", "2", "--platforms", "cpu")
    status, printed, _ = command("export", "--metric", "lpips-tiny", *sizes, "--value-range", "-1", "1", "--out", out)
    assert status == 0
    assert printed.startswith(f"{out}: Program('{tiny.signature}', value_range=(-1.0, 1.0), images=float32[2,32,40,3]")
