"""Results on disk: after any interruption the next run goes on, and ends with the very file of one run."""

import csv
import io
import itertools
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import TINY
from rlpips_jax.errors import MetricError, RlpipsError
from rlpips_jax.files.journal import Journal
from rlpips_jax.scoring.pairs import Pair, Result
from rlpips_jax.scoring.records import FORMS, CsvRows, JsonLines, form_of, printable, recorded_results

NAMES = (
    "a.png",
    'quo"te.png',
    "comma,.png",
    "line\nbreak.png",
    "carriage\rreturn.png",
    "Größe.png",
    "byte\udcff.png",
    "back\\slash.png",
)
RESULTS = [
    *[Result(f"ref {name}", name, np.float32(number / 7)) for number, name in enumerate(NAMES)],
    Result("r.png", "gone.png", None, "gone.png does not exist"),
    Result("", "", None, 'list.csv line 3: 1 columns; say "a, b"'),
]


@pytest.fixture(params=[".jsonl", ".csv"])
def suffix(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def metric(drawn: Callable[..., rl.Lpips]) -> rl.Lpips:
    return drawn(TINY)


def record(path: Path, metric: rl.Lpips, results: list[Result] = RESULTS) -> list[Result]:
    """A run from beginning to end; the results that it found recorded already."""
    form = FORMS[path.suffix](metric)
    pairs = iter([Pair(result.reference, result.image) for result in results])
    with Journal(path, form.header) as journal:
        found = list(recorded_results(journal, form, pairs))
        journal.append("".join(map(form.line, results[len(found) :])))
    return found


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_any_cut_is_mended(
    tmp_path: Path, metric: rl.Lpips, suffix: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    whole = tmp_path / f"whole{suffix}"
    assert record(whole, metric) == []
    content = whole.read_bytes()
    form = FORMS[suffix](metric)
    lines = [form.header, *map(form.line, RESULTS)]
    ends = list(itertools.accumulate(len(line.encode("utf-8", "surrogateescape")) for line in lines))
    assert ends[-1] == len(content)
    torn = tmp_path / f"torn{suffix}"
    around_ends = {end + shift for end in ends for shift in (-2, -1, 0, 1) if end + shift <= len(content)}
    for cut in sorted({*range(0, len(content), step), *around_ends}):
        torn.write_bytes(content[:cut])
        count = sum(end <= cut for end in ends[1:])
        assert record(torn, metric) == [replace(result, recorded=True) for result in RESULTS[:count]]
        assert torn.read_bytes() == content


def test_json_lines_are_json(metric: rl.Lpips) -> None:
    form = JsonLines(metric)
    assert json.loads(form.header) == {"signature": metric.signature, "metric": metric.name}
    for result in RESULTS:
        line = form.line(result)
        assert line.count("\n") == 1
        entry = json.loads(line)
        assert (entry["reference"], entry["image"]) == (printable(result.reference), printable(result.image))
        line.encode()
        assert np.float32(entry["distance"]) == result.distance if result.distance is not None else "error" in entry


def test_no_cell_of_safe_csv_is_a_formula(tmp_path: Path, metric: rl.Lpips) -> None:
    names = ("=1+1.png", "+a", "-a", "@a", "\ta", "'a", "'=a", "a=1", *NAMES)
    results = [Result(name, name, np.float32(0.5)) for name in names]
    results.append(Result("=r", "=i", None, "=r does not exist"))
    form = form_of(tmp_path / "a.csv", csv_safe=True)(metric)
    lines = [form.line(result) for result in results]
    for (cells,) in (csv.reader(io.StringIO(line, newline="")) for line in lines):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    found = [form.parse(line.encode("utf-8", "surrogateescape")) for line in lines]
    assert [one.image for one in found] == [printable(one.image) for one in results]
    assert [one.error for one in found] == [one.error for one in results]
    with pytest.raises(MetricError, match=r"\.csv"):
        form_of(tmp_path / "a.jsonl", csv_safe=True)


def test_csv_is_csv(metric: rl.Lpips) -> None:
    form = CsvRows(metric)
    rows = list(csv.DictReader(io.StringIO(form.header + "".join(map(form.line, RESULTS)), newline="")))
    assert [(row["reference"], row["image"], row["error"]) for row in rows] == [
        (printable(result.reference), printable(result.image), result.error or "") for result in RESULTS
    ]
    assert {row["signature"] for row in rows} == {metric.signature}
    assert [row["distance"] == "" for row in rows] == [result.distance is None for result in RESULTS]


def refused(path: Path, metric: rl.Lpips, results: list[Result] = RESULTS) -> str:
    """The message of a run that must not touch the file."""
    before = path.read_bytes()
    with pytest.raises(RlpipsError) as caught:
        record(path, metric, results)
    assert path.read_bytes() == before
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_another_metric_is_refused(tmp_path: Path, metric: rl.Lpips, drawn: Callable[..., rl.Lpips], suffix) -> None:
    path = tmp_path / f"out{suffix}"
    record(path, metric)
    message = refused(path, drawn(TINY, version="0.0"))
    assert "v0.1" in message
    assert "v0.0" in message
    assert "record 1 is" in message if suffix == ".jsonl" else "record 2 is" in message


def test_another_list_is_refused(tmp_path: Path, metric: rl.Lpips, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    record(path, metric)
    other = [*RESULTS[:4], Result("r", "other.png", np.float32(1)), *RESULTS[5:]]
    message = refused(path, metric, other)
    assert "record 6 is a result of" in message
    assert NAMES[4] in message
    assert "other.png" in message
    assert "after 5 pairs" in refused(path, metric, RESULTS[:5])


def test_a_longer_list_goes_on(tmp_path: Path, metric: rl.Lpips, suffix: str) -> None:
    path, whole = tmp_path / f"out{suffix}", tmp_path / f"whole{suffix}"
    record(path, metric, RESULTS[:5])
    assert len(record(path, metric)) == 5
    record(whole, metric)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("content", [b"notes of mine\n", b"notes of mine", b"\x89PNG\r\n\x1a\n\0\0"])
def test_other_files_are_refused(tmp_path: Path, metric: rl.Lpips, suffix: str, content: bytes) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(content)
    assert "record 1" in refused(path, metric)


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[1]\n", b'{"reference": 1, "image": "a", "distance": 1}\n', b"a,b\n"]
)
def test_damage_is_refused(tmp_path: Path, metric: rl.Lpips, suffix: str, line: bytes) -> None:
    path = tmp_path / f"out{suffix}"
    record(path, metric, RESULTS[:1])
    path.write_bytes(path.read_bytes() + line)
    assert "record 3 is damaged" in refused(path, metric)


@pytest.mark.parametrize("value", ["0.14285716", '"0.14285715"', "true", "1", ""])
def test_a_changed_distance_is_refused(tmp_path: Path, metric: rl.Lpips, suffix: str, value: str) -> None:
    path = tmp_path / f"out{suffix}"
    record(path, metric)
    content = path.read_text(errors="surrogateescape")
    assert content.count("0.14285715") == 1
    path.write_text(content.replace("0.14285715", value), errors="surrogateescape")
    message = refused(path, metric)
    assert "record 3 is damaged" in message
    assert "checksum" in message


@pytest.mark.parametrize("outcome", ['"distance": null', '"distance": NaN', '"distance": "0.5"', "{" * 9999])
def test_what_is_not_a_result_is_refused_even_with_its_checksum(tmp_path: Path, metric: rl.Lpips, outcome: str) -> None:
    path = tmp_path / "out.jsonl"
    record(path, metric, RESULTS[:1])
    body = f'{{"reference": "ref a.png", "image": "a.png", {outcome}'
    path.write_text(f'{JsonLines(metric).header}{body}, "check": "{zlib.crc32(body.encode()):08x}"}}\n')
    assert "record 2 is damaged" in refused(path, metric, RESULTS[:1])


def test_numbers_come_back_in_their_precision(tmp_path: Path, metric: rl.Lpips, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    results = [Result("a", str(kind), kind(1) / kind(3)) for kind in (np.float32, np.float64)]
    record(path, metric, results)
    found = record(path, metric, results)
    assert [result.distance for result in found] == [result.distance for result in results]
    assert [type(result.distance) for result in found] == [np.float32, np.float64]


def test_two_runs_do_not_write_to_one_file(tmp_path: Path, metric: rl.Lpips, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    with Journal(path, FORMS[suffix](metric).header):
        assert "another run" in refused(path, metric)
    record(path, metric)


def test_results_of_another_metric_are_told_from_damage(tmp_path: Path, metric: rl.Lpips, suffix: str) -> None:
    path = tmp_path / f"results{suffix}"
    record(path, metric)
    other = replace(metric, dtype="bfloat16")
    with pytest.raises(RlpipsError, match="bfloat16") as caught:
        record(path, other)
    assert "damaged" not in str(caught.value)
    assert metric.signature in str(caught.value)
