"""Judged pairs: small folders in the layout of each data set, correlations, attacks, and the command line."""

import functools
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
import scipy.io
import scipy.stats
from PIL import Image

import rlpips_jax as rl
from rlpips_jax import attacks
from rlpips_jax.evaluation import correlations, evaluate_pairs, jnd_average_precision, read_pairs
from rlpips_jax.evaluation.judged_pairs import JudgedPairs
from rlpips_jax.evaluation.pair_measurement import assess_pairs, attacked_pair_distances, natural_pair_distances
from rlpips_jax.evaluation.pair_sources import PAIR_SOURCES, pair_source_of
from rlpips_jax.evaluation.sources import source_of
from rlpips_jax.evaluation.triplet_files import write_bapps
from rlpips_jax.evaluation.triplets import Triplets

Command = Callable[..., tuple[int, str, str]]
Expected = list[tuple[str, str, float, str]]
"""Reference, image, judgment and kind, as a reader should give them."""

SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def picture(path: Path, seed: int = 0, shape: tuple[int, int] = (40, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(values).save(path, {".bmp": "BMP", ".png": "PNG"}[path.suffix.lower()])


def tid2013(folder: Path) -> Expected:
    lines = ["5.51429 I01_01_1.bmp", "5.91429 I01_11_1.BMP", "4.44444 i25_01_2.bmp"]
    folder.mkdir()
    (folder / "mos_with_names.txt").write_bytes("\r\n".join([*lines, ""]).encode())
    # The case of names differs between the list and the files, and among the references.
    for name in ("I01.BMP", "i25.bmp"):
        picture(folder / "reference_images" / name)
    for name in ("i01_01_1.bmp", "i01_11_1.bmp", "i25_01_2.bmp"):
        picture(folder / "distorted_images" / name)
    return [
        ("reference_images/I01.BMP", "distorted_images/i01_01_1.bmp", 5.51429, "01"),
        ("reference_images/I01.BMP", "distorted_images/i01_11_1.bmp", 5.91429, "11"),
        ("reference_images/i25.bmp", "distorted_images/i25_01_2.bmp", 4.44444, "01"),
    ]


def kadid10k(folder: Path) -> Expected:
    folder.mkdir()
    rows = ("dist_img,ref_img,dmos,var", "I01_01_01.png,I01.png,4.57,0.496", "I02_25_05.png,I02.png,1,0")
    (folder / "dmos.csv").write_text("\n".join(rows) + "\n")
    for name in ("I01", "I02", "I01_01_01", "I02_25_05"):
        picture(folder / "images" / f"{name}.png")
    return [("images/I01.png", "images/I01_01_01.png", 4.57, "01"), ("images/I02.png", "images/I02_25_05.png", 1, "25")]


CSIQ = (("1600", 1, "noise", 1, 0.061, 0.062), ("boston", 3, "jpeg 2000", 5, 0.1, 0.904))


def csiq_images(folder: Path) -> Expected:
    for name in ("1600", "boston"):
        picture(folder / "src_imgs" / f"{name}.png")
    picture(folder / "dst_imgs/awgn/1600.AWGN.1.png")
    picture(folder / "dst_imgs/jpeg2000/boston.jpeg2000.5.png")
    return [
        ("src_imgs/1600.png", "dst_imgs/awgn/1600.AWGN.1.png", -0.062, "awgn"),
        ("src_imgs/boston.png", "dst_imgs/jpeg2000/boston.jpeg2000.5.png", -0.904, "jpeg2000"),
    ]


def csiq(folder: Path) -> Expected:
    """The table begins at D4 of the second worksheet, below a title, and has notes on its right."""
    strings = ["all distorted images", "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos", "noise", "boston"]
    strings += ["jpeg 2000", "a note"]

    def cell(place: str, value: object) -> str:
        if isinstance(value, str) and not value.isdigit():
            return f'<c r="{place}" t="s"><v>{strings.index(value)}</v></c>'
        return f'<c r="{place}"><v>{value}</v></c>'

    rows = {2: {"B": strings[0]}, 4: dict(zip("DEFGHI", strings[1:7], strict=True))}
    rows |= {5 + at: dict(zip("DEFGHI", row, strict=True)) | {"K": "a note"} for at, row in enumerate(CSIQ)}
    cells = "".join(
        f'<row r="{row}">{"".join(cell(f"{column}{row}", value) for column, value in found.items())}</row>'
        for row, found in rows.items()
    )
    members = {
        "xl/workbook.xml": f'<workbook xmlns="{SHEET}" xmlns:r="{RELATION}"><sheets><sheet name="all" sheetId="1" '
        'r:id="rId1"/><sheet name="all_by_image" sheetId="2" r:id="rId7"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}"><Relationship Id="rId7" Type="x" '
        'Target="worksheets/sheet2.xml"/></Relationships>',
        "xl/sharedStrings.xml": f'<sst xmlns="{SHEET}">{"".join(f"<si><t>{text}</t></si>" for text in strings)}</sst>',
        "xl/worksheets/sheet2.xml": f'<worksheet xmlns="{SHEET}"><sheetData>{cells}</sheetData></worksheet>',
    }
    folder.mkdir()
    with zipfile.ZipFile(folder / "csiq.DMOS.xlsx", "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return csiq_images(folder)


def csiq_text(folder: Path) -> Expected:
    """What people export: the columns alone, separated by tabs."""
    folder.mkdir()
    (folder / "csiq_dmos.txt").write_text("".join("\t".join(map(str, row)) + "\n" for row in CSIQ))
    return csiq_images(folder)


def csiq_csv(folder: Path) -> Expected:
    folder.mkdir()
    lines = ["image,dst_idx,dst_type,dst_lev,dmos_std,dmos", *(",".join(map(str, row)) for row in CSIQ)]
    (folder / "csiq.DMOS.csv").write_text("\n".join(lines) + "\n")
    return csiq_images(folder)


def live(folder: Path) -> Expected:
    counts = {"jp2k": 2, "jpeg": 1, "wn": 1, "gblur": 1, "fastfading": 1}
    for name, count in counts.items():
        for number in range(1, count + 1):
            picture(folder / name / f"img{number}.bmp")
    names = ["ocean.bmp", "bikes.bmp", "ocean.bmp", "bikes.bmp", "ocean.bmp", "bikes.bmp"]
    for name in set(names):
        picture(folder / "refimgs" / name)
    cells = np.empty((1, 6), object)
    cells[0] = names
    scipy.io.savemat(folder / "refnames_all.mat", {"refnames_all": cells})
    # The second image is an original among the others.
    orgs = np.array([[0, 1, 0, 0, 0, 0]], np.uint8)
    scores = np.array([[30.5, 0, 40, 50, 60, 70]])
    scipy.io.savemat(folder / "dmos.mat", {"dmos": scores + 100, "orgs": orgs})
    scipy.io.savemat(folder / "dmos_realigned.mat", {"dmos_new": scores, "dmos_std": scores, "orgs": orgs})
    return [
        ("refimgs/ocean.bmp", "jp2k/img1.bmp", -30.5, "jp2k"),
        ("refimgs/ocean.bmp", "jpeg/img1.bmp", -40, "jpeg"),
        ("refimgs/bikes.bmp", "wn/img1.bmp", -50, "wn"),
        ("refimgs/ocean.bmp", "gblur/img1.bmp", -60, "gblur"),
        ("refimgs/bikes.bmp", "fastfading/img1.bmp", -70, "fastfading"),
    ]


def pipal(folder: Path) -> Expected:
    for name in ("A0001", "A0002"):
        picture(folder / "Train_Ref" / f"{name}.bmp")
    picture(folder / "Train_Dist/A0001_00_00.bmp")
    picture(folder / "Train_Dist/A0002_06_13.bmp")
    (folder / "Train_Label").mkdir()
    (folder / "Train_Label/A0001.txt").write_text("A0001_00_00.bmp,1520.0648\n")
    (folder / "Train_Label/A0002.txt").write_text("A0002_06_13.bmp,1223.7601\n")
    return [
        ("Train_Ref/A0001.bmp", "Train_Dist/A0001_00_00.bmp", 1520.0648, "00"),
        ("Train_Ref/A0002.bmp", "Train_Dist/A0002_06_13.bmp", 1223.7601, "06"),
    ]


def jnd(folder: Path) -> Expected:
    expected = []
    for category, same in (("cnn", 0.0), ("traditional", 2 / 3)):
        for part in ("p0", "p1"):
            picture(folder / "val" / category / part / "000000.png", shape=(128, 128))
        (folder / "val" / category / "same").mkdir()
        np.save(folder / "val" / category / "same/000000.npy", np.array([same]))
        files = [f"val/{category}/{part}/000000.png" for part in ("p0", "p1")]
        expected.append((files[0], files[1], same, category))
    return expected


LAYOUTS: dict[str, tuple[str, Callable[[Path], Expected]]] = {
    "tid2013": ("tid2013", tid2013),
    "kadid10k": ("kadid10k", kadid10k),
    "csiq": ("csiq", csiq),
    "csiq as text": ("csiq", csiq_text),
    "csiq as csv": ("csiq", csiq_csv),
    "live": ("live", live),
    "pipal": ("pipal", pipal),
    "jnd": ("jnd", jnd),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_data_set_is_read_as_it_is_unpacked(layout: str, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    folder = tmp_path / "set"
    expected = write(folder)
    assert pair_source_of(folder) == name
    pairs = read_pairs(folder)
    found = zip(pairs.references, pairs.images, pairs.judgment, pairs.kinds, strict=True)
    assert [(str(r.relative_to(folder)), str(i.relative_to(folder)), j, k) for r, i, j, k in found] == expected
    assert (pairs.name, pairs.asked, pairs.size) == (("set", "same", 64) if name == "jnd" else ("set", "opinion", None))
    (batch,) = pairs.batches(most=10)
    assert batch.image.shape == (len(pairs), *((64, 64) if name == "jnd" else (40, 48)), 3)
    with pytest.raises(rl.TripletsError, match="holds judged pairs, not triplets"):
        source_of(folder)


def test_every_layout_has_a_test() -> None:
    assert {name for name, _ in LAYOUTS.values()} == PAIR_SOURCES.keys() - {"csv"}


@pytest.mark.parametrize(("column", "sign"), [("opinion", 1), ("mos", 1), ("dmos", -1)])
def test_a_table_of_ones_own(column: str, sign: int, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(f"reference,distorted,{column},kind\na.png,b/c.png,3.5,blur\na.png,d.png,2,\n")
    for name, shape in (("a.png", (32, 32)), ("b/c.png", (32, 32)), ("d.png", (32, 32))):
        picture(tmp_path / name, shape=shape)
    pairs = read_pairs(path)
    assert pairs.images == (tmp_path / "b/c.png", tmp_path / "d.png")
    assert list(pairs.judgment) == [3.5 * sign, 2 * sign]
    assert pairs.kinds == ("blur", "all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reference,distorted\na.png,b.png\n", "no column of opinions; call it opinion or mos"),
        ("reference,opinion\na.png,1\n", "no column distorted, only reference, opinion"),
        ("reference,distorted,mos\n\na.png,b.png,nan\n", "line 3: 'nan' is not a number"),
        ("reference,distorted,mos\n", "has no judged pair"),
        ("reference,distorted,mos\na.png,b.png,1\n", "line 2: .*a.png is missing, or not a file"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(rl.TripletsError, match=message):
        read_pairs(path)


def test_missing_and_ambiguous_images_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    tid2013(folder)
    picture(folder / "copies/i25_01_2.png")
    with pytest.raises(rl.TripletsError, match=r"lists i25_01_2[.]bmp, which is there more than once"):
        read_pairs(folder)
    for path in folder.rglob("i25_01_2*"):
        path.unlink()
    with pytest.raises(rl.TripletsError, match=r"lists i25_01_2[.]bmp, which is missing"):
        read_pairs(folder)


def test_a_damaged_workbook_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "csiq.DMOS.xlsx").write_bytes(b"PK and no archive")
    with pytest.raises(rl.TripletsError, match=r"cannot be read as an [.]xlsx file.*a [.]csv or [.]txt file with"):
        read_pairs(tmp_path)


def test_a_workbook_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    csiq(tmp_path / "set")
    path = tmp_path / "set" / "csiq.DMOS.xlsx"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # the name is there twice, and the last counts
        archive.writestr("xl/worksheets/sheet2.xml", b" " * ((1 << 23) + 1))
    with pytest.raises(rl.TripletsError, match=r"sheet2[.]xml unpacks to more than 8 MiB"):
        read_pairs(tmp_path / "set")


def test_batches_have_one_size_each(tmp_path: Path) -> None:
    shapes = [(40, 40), (32, 48), (40, 40), (32, 48), (40, 40)]
    lines = ["reference,distorted,opinion"]
    for number, shape in enumerate(shapes):
        for part in "rd":
            picture(tmp_path / f"{part}{number}.png", number, shape)
        lines.append(f"r{number}.png,d{number}.png,{number}")
    (tmp_path / "sizes.csv").write_text("\n".join(lines))
    pairs = read_pairs(tmp_path / "sizes.csv")
    parts = list(pairs.batches(most=2))
    assert [part.reference.shape[:3] for part in parts] == [(2, 40, 40), (1, 40, 40), (2, 32, 48)]
    assert [len(part.rows) for part in pairs.batches(2, most=2)] == [1, 2]
    picture(tmp_path / "d3.png", shape=(16, 16))
    with pytest.raises(rl.TripletsError, match=r"differs in size: .*r3.png 32x48 and .*d3.png 16x16"):
        list(pairs.batches(most=2))


def drawn(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Distances, and opinions that fall with them along a known curve, with noise."""
    rng = np.random.default_rng(0)
    distance = rng.uniform(0, 1, count)
    return distance, 1 + 4 / (1 + np.exp((distance - 0.4) / 0.1)) + rng.normal(0, 0.2, count)


def test_the_logistic_curve_is_found() -> None:
    distance, opinion = drawn(1000)
    curve = correlations.logistic_curve(distance, opinion)
    truth = 1 + 4 / (1 + np.exp((distance - 0.4) / 0.1))
    np.testing.assert_allclose(curve(distance), truth, atol=0.08)
    # In other units, the same.
    np.testing.assert_allclose(
        correlations.logistic_curve(1e-4 * distance, opinion)(1e-4 * distance), curve(distance), rtol=1e-5
    )
    expected = np.corrcoef(truth, opinion)[0, 1]
    assert correlations.pearson(curve(distance), opinion) == pytest.approx(expected, abs=2e-3)
    assert correlations.pearson(curve(1 - distance), opinion) < 0  # One curve, natural or not.


def test_ranks_agree_with_scipy_and_have_the_sign_of_agreement() -> None:
    distance, opinion = drawn()
    assert correlations.spearman(distance, opinion) == pytest.approx(scipy.stats.spearmanr(-distance, opinion)[0])
    assert correlations.kendall(distance, opinion) == pytest.approx(scipy.stats.kendalltau(-distance, opinion)[0])
    assert correlations.spearman(np.arange(4.0), -np.arange(4.0)) == 1
    assert np.isnan(correlations.kendall(np.zeros(4), np.arange(4.0)))


def test_intervals_are_those_of_the_resamples_themselves() -> None:
    """Ties included, in groups of different sizes, all at once and one by one."""
    distance, opinion = (np.round(column, 1) for column in drawn(40))
    groups = np.random.default_rng(1).integers(0, 9, 40)
    curve = correlations.logistic_curve(distance, opinion)
    found = correlations.correlation_intervals(curve(distance), distance, opinion, groups)
    one_by_one: dict[str, Callable[[np.ndarray], float]] = {
        "pearson": lambda rows: correlations.pearson(curve(distance)[rows], opinion[rows]),
        "spearman": lambda rows: correlations.spearman(distance[rows], opinion[rows]),
        "kendall": lambda rows: correlations.kendall(distance[rows], opinion[rows]),
    }
    for name, statistic in one_by_one.items():
        np.testing.assert_allclose(found[name], correlations.grouped_interval(statistic, groups), rtol=1e-9)


def test_intervals_draw_references_with_their_pairs() -> None:
    """Copies of pairs under the same reference add nothing; under references of their own they would."""
    distance, opinion = drawn(30)

    def interval(copies: int, groups: np.ndarray) -> tuple[float, float]:
        d, o = np.repeat(distance, copies), np.repeat(opinion, copies)
        return correlations.correlation_intervals(-d, d, o, groups)["spearman"]

    single, copied = interval(1, np.arange(30)), interval(4, np.repeat(np.arange(30), 4))
    np.testing.assert_allclose(single, copied, atol=1e-12)
    low, high = interval(4, np.arange(120))
    assert high - low < 0.7 * (single[1] - single[0])
    assert np.all(np.isnan(correlations.grouped_interval(lambda rows: np.nan, np.arange(3))))


def pairs_of(opinion: np.ndarray, **options: Any) -> JudgedPairs:
    names = tuple(Path(str(number)) for number in range(len(opinion)))
    return JudgedPairs(names, names, opinion, ("a", "b") * (len(opinion) // 2), **options)


def test_scores_in_all_and_by_kind() -> None:
    distance, opinion = drawn(20)
    pairs = pairs_of(opinion)
    found = assess_pairs(pairs, distance)
    assert set(found.scores) == {"pearson", "spearman", "kendall"}
    assert found.scores["spearman"].mean == pytest.approx(correlations.spearman(distance, opinion))
    assert found.scores["spearman"].low <= found.scores["spearman"].mean <= found.scores["spearman"].high
    assert found.by_kind["b"]["kendall"].mean == pytest.approx(correlations.kendall(distance[1::2], opinion[1::2]))
    assert found.by_kind["b"]["kendall"].count == 10
    few = assess_pairs(pairs.select(np.arange(4)), distance[:4]).scores
    assert (few["pearson"].count, few["spearman"].count) == (0, 4)
    with pytest.raises(rl.TripletsError, match="1 of 20 distances are NaN"):
        assess_pairs(pairs, np.where(distance == distance[0], np.nan, distance))


def test_same_or_not_is_scored_as_jnd() -> None:
    rng = np.random.default_rng(1)
    distance, same = rng.uniform(0, 1, 20), rng.integers(0, 4, 20) / 3
    found = assess_pairs(pairs_of(same, asked="same"), distance)
    assert found.scores["jnd_map"].mean == pytest.approx(float(jnd_average_precision(distance, same)))
    with pytest.raises(rl.TripletsError, match="fractions of people"):
        pairs_of(same + 1, asked="same")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose noise grows as opinions fall."""
    folder = tmp_path_factory.mktemp("noisy")
    rng = np.random.default_rng(0)
    lines = ["reference,distorted,opinion,kind"]
    for number in range(8):
        reference = rng.uniform(64, 192, (32, 32, 3))
        level = 4 * number + 4
        for name, values in (("r", reference), ("d", reference + rng.normal(0, level, reference.shape))):
            rl.save_image(folder / f"{name}{number}.png", np.clip(values, 0, 255).astype(np.uint8))
        lines.append(f"r{number}.png,d{number}.png,{-level},noise")
    path = folder / "noisy.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_attacks_move_images_against_opinions_or_away(noisy: Path) -> None:
    metric, pairs = rl.load("lpips-tiny"), read_pairs(noisy, size=32)
    attack = functools.partial(attacks.pgd, steps=2)
    natural, attacked = evaluate_pairs(metric, pairs, attack, [4 / 255], batch=2)
    _, away = evaluate_pairs(metric, pairs, attack, [4 / 255], direction="away", batch=2)
    better = pairs.judgment > np.median(pairs.judgment)
    np.testing.assert_array_equal(attacked.distances > natural.distances, better)
    assert np.all(away.distances > natural.distances)
    assert natural.scores["spearman"].mean > 0.9
    assert attacked.scores["spearman"].mean < natural.scores["spearman"].mean
    as_stored = np.concatenate(list(natural_pair_distances(metric, read_pairs(noisy))))
    np.testing.assert_allclose(natural.distances, as_stored, rtol=1e-5)


@pytest.mark.usefixtures("wrong_types")
def test_there_are_two_directions(noisy: Path) -> None:
    parts = attacked_pair_distances(
        rl.load("lpips-tiny"), read_pairs(noisy), attacks.pgd, direction=cast(Any, "towards"), key=jax.random.key(0)
    )
    with pytest.raises(rl.TripletsError, match="direction must be 'against' or 'away', got 'towards'"):
        next(parts)


@pytest.mark.slow
def test_from_the_command_line(command: Command, noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlations, "RESAMPLES", 20)
    jnd(tmp_path / "jnd")
    out = tmp_path / "out"
    arguments = ("evaluate", "--data", noisy, "--data", tmp_path / "jnd", "--metric", "lpips-tiny", "--size", 32)
    arguments += ("--attack", "pgd", "--attack", "distort", "--steps", 2, "--epsilon", "4/255", "--out", out)
    arguments += ("--batch", 2)
    status, text, _ = command(*arguments)
    assert status == 0
    rows = [re.split(r"  +", line) for line in text.splitlines() if "lpips-tiny" in line]
    moves = [["noisy.csv at 32", "-"], ["noisy.csv at 32", "against"], ["noisy.csv at 32", "away"]]
    assert [[row[0], row[4]] for row in rows] == [*moves, *(["jnd at 32", move] for _, move in moves)]
    table = (out / "table.txt").read_text()
    assert all(word in table for word in ("Pearson", "Spearman", "Kendall", "JND mAP", "noisy.csv at 32: noise"))
    found = [json.loads(path.read_text()) for path in out.glob("*.json")]
    assert len(found) == 6
    documents = {(d["data"], d["threat"] and d["threat"]["name"]): d for d in found}
    opinions = documents["noisy.csv at 32", None]
    assert opinions["agreement"]["scores"]["kendall"]["mean"] > 0.9
    assert len((out / opinions["columns"]).read_text().splitlines()) >= 2
    # Once more, from what is there.
    monkeypatch.setattr("rlpips_jax.evaluation.pair_measurement.run", None)
    assert command(*arguments)[:2] == (0, text)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--attack", "impostor"), "impostor works on triplets; judged pairs are attacked by distort, pgd"),
        (("--shift", 1), "--shift needs triplets"),
    ],
)
def test_what_only_triplets_have(command: Command, noisy: Path, tmp_path: Path, more: Any, message: str) -> None:
    status, _, err = command("evaluate", "--data", noisy, "--metric", "lpips-tiny", "--out", tmp_path, *more)
    assert status == 2
    assert message in err


@pytest.mark.slow
def test_a_folder_may_hold_triplets_and_pairs(command: Command, tmp_path: Path) -> None:
    """As that of BAPPS does."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 2, 32, 32, 3), np.uint8)
    triplets = Triplets(images[0], images[1], images[2], np.array([0, 1], np.float32), ("cnn", "cnn"))
    jnd(tmp_path / "bapps/jnd")
    write_bapps(triplets, tmp_path / "bapps/2afc")
    arguments = ("--data", tmp_path / "bapps", "--metric", "lpips-tiny", "--size", 32, "--out", tmp_path / "out")
    status, text, _ = command("evaluate", *arguments)
    assert status == 0
    assert "2AFC" in text
    assert "JND mAP" in text


def test_pairs_are_not_certified(command: Command, noisy: Path, tmp_path: Path) -> None:
    status, _, err = command("certify", "--data", noisy, "--metric", "lpips-tiny", "--out", tmp_path)
    assert status == 2
    assert "holds judged pairs, not triplets" in err
