"""`rlpips distance` of lists and folders of any size: what it prints, records, survives and says of mistakes."""

import contextlib
import csv
import io
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

import rlpips_jax as rl
from rlpips_jax.cli.distance import PlainRows
from rlpips_jax.scoring import AllPairs, Result, all_pairs, pairs_in_list

Draw = Callable[..., Path]
Files = list[tuple[Path, Path]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, draw: Draw) -> Files:
    """Pairs of pictures of three sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(32, 40), (40, 32), (36, 36)]
    return [
        (
            draw(folder / f"{number}r.png", 2 * number, sizes[number % 3]),
            draw(folder / f"{number}i.png", 2 * number + 1, sizes[number % 3]),
        )
        for number in range(24)
    ]


def write_list(path: Path, rows: Sequence[tuple[object, object]], header: bool = True) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([*[("reference", "image")] * header, *rows])
    return path


@pytest.fixture
def pair_list(tmp_path: Path, files: Files) -> Path:
    return write_list(tmp_path / "pairs.csv", files)


@pytest.fixture(scope="module")
def expected(files: Files, tiny: rl.Lpips, one_by_one) -> list[float]:
    return one_by_one(files, tiny)


def lines_of(text: str) -> tuple[dict, list[dict]]:
    """Header and results of JSON lines."""
    header, *results = map(json.loads, text.splitlines())
    return header, results


def check(results: list[dict], files: Files, expected: list[float], within: float = 1e-6) -> None:
    """Every pair once, in order, with its distance."""
    assert [(result["reference"], result["image"]) for result in results] == [(str(a), str(b)) for a, b in files]
    np.testing.assert_allclose([float(result["distance"]) for result in results], expected, rtol=0, atol=within)


# Lists


@pytest.mark.slow
def test_a_list_as_json_lines(rlpips, pair_list: Path, files: Files, expected: list[float], tiny: rl.Lpips) -> None:
    run = rlpips("--pairs", pair_list, "--jsonl")
    assert (run.status, run.err) == (0, "")
    header, results = lines_of(run.out)
    assert header == {"signature": tiny.signature, "metric": "lpips-tiny"}
    check(results, files, expected)


@pytest.mark.slow
def test_a_list_in_the_other_forms(rlpips, pair_list: Path, files: Files, expected: list[float]) -> None:
    rows = list(csv.DictReader(io.StringIO(rlpips("--pairs", pair_list, "--csv").out)))
    check(rows, files, expected)
    document = json.loads(rlpips("--pairs", pair_list, "--json").out)
    assert (document["pairs"], document["errors"]) == (str(pair_list), [])
    check(document["results"], files, expected)
    plain = [line.split() for line in rlpips("--pairs", pair_list).out.splitlines()[1:]]
    assert plain[0] == ["distance", "reference", "image"]
    check([dict(zip(plain[0], line, strict=True)) for line in plain[1:]], files, expected, within=2e-6)


def test_rows_that_are_no_pairs(rlpips, tmp_path: Path, files: Files) -> None:
    good = f"{files[0][0]},{files[0][1]}"
    path = tmp_path / "list.csv"
    path.write_text(f'\ufeffReference, IMAGE\r\n{good}\n\none.png\n"a,b\na,b,c\n{good}\na,\n{"x" * 70000}\n{good}')
    run = rlpips("--pairs", path, "--jsonl")
    assert run.status == 1
    results = lines_of(run.out)[1]
    assert ["distance" in result for result in results] == [True, False, False, False, True, False, False, True]
    for result, number, word in zip(
        (result for result in results if "error" in result),
        (4, 5, 6, 8, 9),
        ("1 columns", "unexpected end", "3 columns", "empty cell", "longer than"),
        strict=True,
    ):
        assert result["error"].startswith(f"{path} line {number}: ")
        assert word in result["error"]
        assert (result["reference"], result["image"]) == ("", "")
    assert run.err.count("\n") == 5


def test_relative_paths_start_here(rlpips, tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files[0][0].parent)
    path = write_list(tmp_path / "list.csv", [(a.name, b.name) for a, b in files[:2]], header=False)
    run = rlpips("--pairs", path, "--jsonl")
    assert run.status == 0
    assert [result["image"] for result in lines_of(run.out)[1]] == [b.name for _, b in files[:2]]


def test_names_that_are_no_text(rlpips, tmp_path: Path, files: Files) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff,.png")
    Path(strange).write_bytes(files[0][0].read_bytes())
    path = tmp_path / "list.csv"
    path.write_bytes(b'"' + os.fsencode(strange) + b'","' + os.fsencode(strange) + b'"\n')
    out = tmp_path / "out.jsonl"
    for _ in range(2):
        assert rlpips("--pairs", path, "--out", out).status == 0
    name = strange.replace("\udcff", "\\xff")
    assert lines_of(out.read_text("utf-8"))[1][0]["image"] == name
    rows = csv.DictReader(io.StringIO(rlpips("--pairs", path, "--csv").out, newline=""))
    assert [row["image"] for row in rows] == [name]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "lists no pair"), (b"reference,image\n", "lists no pair"), (None, "cannot be read")],
)
def test_lists_of_nothing(rlpips, tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "list.csv"
    if content is not None:
        path.write_bytes(content)
    run = rlpips("--pairs", path)
    assert (run.status, run.out) == (2, "")
    assert words in run.err
    assert str(path) in run.err


def test_a_list_is_read_as_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "endless"
    os.mkfifo(path)
    written = threading.Event()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(path, "w") as file:
            file.write("a,b\nc,d\n")
            file.flush()
            written.wait(60)
            for _ in itertools.count():
                file.write("e,f\n")

    writer = threading.Thread(target=write)
    writer.start()
    pairs = pairs_in_list(path)
    try:
        # The writer has written two rows and holds the rest back.
        assert [next(pairs).image for _ in range(2)] == ["b", "d"]
        written.set()
        assert {next(pairs).image for _ in range(1000)} == {"f"}
    finally:
        written.set()
        pairs.close()  # pyright: ignore[reportAttributeAccessIssue]
        writer.join()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--pairs", "x.csv", "a.png"), "--pairs takes no further image"),
        (("--pairs", "x.csv", "--all-pairs", "a"), "--pairs and --all-pairs exclude each other"),
        (("--pairs", "x.csv", "--jsonl", "--csv"), "--jsonl and --csv exclude each other"),
        (("--pairs", "x.csv", "--out", "x.txt"), ".jsonl or .csv"),
        (("--pairs", "x.csv", "--out", "x.csv", "--json"), "excludes --json"),
        (("--pairs", "x.csv", "--workers", "-1"), "--workers must be a whole number, 0 or more"),
    ],
)
def test_arguments_that_make_no_sense(rlpips, arguments: tuple[str, ...], words: str) -> None:
    run = rlpips(*arguments)
    assert (run.status, run.out) == (2, "")
    assert words in run.err


def test_rows_for_people_begin_with_the_distance(tiny: rl.Lpips) -> None:
    form = PlainRows(tiny)
    assert form.line(Result("a", "b", np.float32(0))) == "       0  a  b\n"
    assert form.line(Result("a", "b", np.float32(0.25))) == "0.250000  a  b\n"
    assert form.line(Result("a", "b", error="a does not exist")) == ""


# Files that a run goes on with


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_finished_run_is_left_alone(rlpips, pair_list: Path, files: Files, expected, tmp_path: Path, suffix) -> None:
    out = tmp_path / "new" / f"out{suffix}"
    run = rlpips("--pairs", pair_list, "--out", out)
    assert run == (0, "", "")
    content = out.read_text()
    check(lines_of(content)[1] if suffix == ".jsonl" else list(csv.DictReader(io.StringIO(content))), files, expected)
    again = rlpips("--pairs", pair_list, "--out", out)
    assert (again.status, again.out) == (0, "")
    assert f"{out} is complete: {len(files)} pairs" in again.err
    assert out.read_text() == content


def test_a_torn_run_goes_on(rlpips, pair_list: Path, files: Files, expected: list[float], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rlpips("--pairs", pair_list, "--out", out)
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole[:9]) + whole[9][:-7])
    run = rlpips("--pairs", pair_list, "--out", out)
    assert (run.status, run.out) == (0, "")
    assert "holds 8 pairs already" in run.err
    assert out.read_bytes().splitlines(keepends=True)[:9] == whole[:9]
    check(lines_of(out.read_text())[1], files, expected)


def test_failures_are_recorded_and_count_again(rlpips, files: Files, tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [files[0], ("absent.png", files[0][1])])
    out = tmp_path / "out.csv"
    assert rlpips("--pairs", path, "--out", out).status == 1
    run = rlpips("--pairs", path, "--out", out)
    assert run.status == 1
    assert "is complete: 2 pairs, 1 of them failed" in run.err
    assert [row["error"] for row in csv.DictReader(io.StringIO(out.read_text()))] == ["", "absent.png does not exist"]


@pytest.mark.slow
def test_a_file_of_another_list_is_refused(rlpips, pair_list: Path, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rlpips("--pairs", pair_list, "--out", out)
    content = out.read_bytes()
    other = write_list(tmp_path / "other.csv", [*files[:5], files[7], *files[6:]])
    run = rlpips("--pairs", other, "--out", out)
    assert (run.status, run.out) == (2, "")
    assert str(files[5][1]) in run.err
    assert str(files[7][1]) in run.err
    assert out.read_bytes() == content
    assert rlpips("--pairs", other, "--out", pair_list).status == 2
    assert pair_list.read_text().startswith("reference,image")


def records(path: Path) -> int:
    """Whole lines of a file after the header."""
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Waits until something is so; fails if the process ends before, or after a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


@contextlib.contextmanager
def started(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Nothing of a process is left, whatever a test comes to."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_killed_at_any_time_no_pair_is_lost_or_doubled(
    start, pair_list: Path, files: Files, expected: list[float], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    recorded = []
    for least in (0, 3, 9):
        with started(start("--pairs", pair_list, "--out", out, "--workers", 1)) as process:
            before = records(out)
            wait_for(lambda before=before, least=least: out.exists() and records(out) >= before + least, process)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait()
            # Nobody ends them, but they see that they are alone.
            assert psutil.wait_procs(workers, timeout=60)[1] == []
        content = out.read_bytes()
        recorded.append(content[: content.rfind(b"\n") + 1])
    assert recorded[0] != recorded[-1]
    with started(start("--pairs", pair_list, "--out", out, "--workers", 1)) as process:
        assert process.wait(120) == 0
    for content in recorded:
        assert out.read_bytes().startswith(content)
    check(lines_of(out.read_text())[1], files, expected)


@pytest.mark.slow
def test_interruption_ends_cleanly(start, pair_list: Path, files: Files, expected: list[float], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with started(start("--pairs", pair_list, "--out", out, "--workers", 2)) as process:
        wait_for(lambda: records(out) >= 4 and len(psutil.Process(process.pid).children()) >= 2, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        # As a terminal does: to every process in the foreground.
        os.killpg(process.pid, signal.SIGINT)
        out_text, err_text = process.communicate(timeout=60)
        assert (process.returncode, out_text, err_text) == (130, "", "")
        assert psutil.wait_procs(workers, timeout=60)[1] == []
    with started(start("--pairs", pair_list, "--out", out, "--workers", 0)) as process:
        assert process.wait(120) == 0
    check(lines_of(out.read_text())[1], files, expected)


@pytest.mark.slow
def test_a_list_from_a_pipe_is_nobody_elses(start, pair_list: Path, files: Files, expected: list[float]) -> None:
    with started(start("--pairs", "/dev/stdin", "--jsonl", "--workers", 2, stdin=subprocess.PIPE)) as process:
        out, err = process.communicate(pair_list.read_text(), timeout=120)
    assert (process.returncode, err) == (0, "")
    check(lines_of(out)[1], files, expected)


# All pairs


@pytest.fixture
def folder(tmp_path: Path, draw: Draw) -> Path:
    """Ten pictures of one size, one of them of 16 bits, three of another, and a lone one."""
    for number in range(10):
        draw(tmp_path / "set" / f"{number}.png", number, deep=number == 4)
    for number in range(3):
        draw(tmp_path / "set" / "inner" / f"{number}.png", 20 + number, (40, 40))
    draw(tmp_path / "set" / "lone.png", size=(50, 32))
    return tmp_path / "set"


def pairs_of(folder: Path) -> Files:
    """Every two pictures of one size, the larger group first."""
    groups = [[folder / f"{number}.png" for number in range(10)], [folder / f"inner/{n}.png" for n in range(3)]]
    return [pair for group in groups for pair in itertools.combinations(group, 2)]


WARNING = "rlpips: warning: 43 of 91 pairs are left out: their images differ in size (3 sizes)\n"


@pytest.mark.parametrize(
    ("side", "kept"),
    [
        (32, 1 << 30),
        pytest.param(4, 1 << 30, marks=pytest.mark.slow),
        pytest.param(4, 0, marks=pytest.mark.slow),
        (3, 600_000),
    ],
)
def test_all_pairs_equal_those_one_by_one(
    rlpips, folder: Path, tiny: rl.Lpips, one_by_one, monkeypatch: pytest.MonkeyPatch, side: int, kept: int
) -> None:
    monkeypatch.setattr(all_pairs, "LARGEST_TILE", side)
    monkeypatch.setattr(all_pairs, "FEATURE_BYTES", kept)
    run = rlpips("--all-pairs", folder, "--jsonl")
    assert (run.status, run.err) == (0, WARNING)
    check(lines_of(run.out)[1], pairs_of(folder), one_by_one(pairs_of(folder), tiny))


def test_features_are_computed_once_an_image(rlpips, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_pairs, "LARGEST_TILE", 2)
    computed = []
    features = rl.Lpips.features
    monkeypatch.setattr(rl.Lpips, "features", lambda self, x, **k: computed.append(len(x)) or features(self, x, **k))
    assert rlpips("--all-pairs", folder).status == 0
    assert sum(computed) == 10


@pytest.mark.slow
def test_all_pairs_go_on_where_they_stood(rlpips, folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(all_pairs, "LARGEST_TILE", 4)
    out = tmp_path / "out.jsonl"
    rlpips("--all-pairs", folder, "--out", out)
    whole = out.read_bytes().splitlines(keepends=True)
    names = [(line["reference"], line["image"]) for line in map(json.loads, whole[1:])]
    for kept in (3, 12, 34, 35, 45, 46, 47):
        out.write_bytes(b"".join(whole[: kept + 1]) + b'{"refe')
        assert rlpips("--all-pairs", folder, "--out", out).status == 0
        again = out.read_bytes().splitlines(keepends=True)
        assert again[: kept + 1] == whole[: kept + 1]
        lines = [json.loads(line) for line in again[1:]]
        assert [(line["reference"], line["image"]) for line in lines] == names
        np.testing.assert_allclose(
            [line["distance"] for line in lines],
            [json.loads(line)["distance"] for line in whole[1:]],
            rtol=0,
            atol=1e-6,
        )


def test_a_bad_file_among_all_pairs_is_named_once(rlpips, folder: Path, tiny: rl.Lpips, draw: Draw) -> None:
    torn = folder / "5.png"
    torn.write_bytes(torn.read_bytes()[:-40])
    draw(folder / "small.png", size=(tiny.minimum_size - 1, 40))
    run = rlpips("--all-pairs", folder, "--jsonl")
    assert run.status == 1
    results = lines_of(run.out)[1]
    assert [result["image"] for result in results if "error" in result] == [str(torn), str(folder / "small.png")]
    assert len(results) == 2 + 9 * 8 // 2 + 3
    assert [line for line in run.err.splitlines() if str(torn) in line] == [f"rlpips: {results[0]['error']}"]


def test_a_file_that_changes_on_the_way_spoils_its_own_pairs(
    rlpips, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = AllPairs.of

    def look_and_remove(*arguments, **options):
        found = look(*arguments, **options)
        (folder / "5.png").unlink()
        return found

    monkeypatch.setattr(AllPairs, "of", look_and_remove)
    run = rlpips("--all-pairs", folder, "--jsonl")
    assert run.status == 1
    failed = [result for result in lines_of(run.out)[1] if "error" in result]
    assert len(failed) == 9
    assert all(str(folder / "5.png") in (result["reference"], result["image"]) for result in failed)


def test_a_folder_without_a_pair(rlpips, tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "set" / "a.png", size=(32, 40))
    draw(tmp_path / "set" / "b.png", size=(40, 32))
    run = rlpips("--all-pairs", tmp_path / "set")
    assert (run.status, run.out) == (2, "")
    assert "no two images of one size" in run.err
    assert "give a folder of images" in rlpips("--all-pairs", tmp_path / "absent").err
