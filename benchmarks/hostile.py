"""`python -m benchmarks.hostile`: the memory and the computing time that hostile files of at most 1 MB cost.

Each file is built to expand as far as its format and this library's limits let it, and read in a fresh process, whose
peak memory above that of its imports and whose processor seconds are printed.
"""

import io
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from benchmarks.report import Table
from rlpips_jax.weights.pytorch import write_checkpoint

MOST = 1_000_000
"""Bytes of a file."""

SIDE = 9_459
"""The side of the largest square within `PIL.Image.MAX_IMAGE_PIXELS`."""


@dataclass(frozen=True)
class Hostile:
    """Measure what the worst files of 1 MB cost."""

    only: str = ""
    """Measure only what contains this."""


def deep_png(path: Path) -> None:
    """The most pixels, of four channels of 16 bits."""
    row, packed = bytes(1 + 8 * SIDE), zlib.compressobj(9)
    data = b"".join(packed.compress(row) for _ in range(SIDE)) + packed.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 6, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    body = (
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


def many_scans(path: Path) -> None:
    """A progressive JPEG file with as many pixels and as many scans as are read."""
    file = io.BytesIO()
    Image.new("L", (SIDE, SIDE), 128).save(file, "JPEG", progressive=True, quality=50)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    scan, scans = content[last:-2], content.count(b"\xff\xda")
    repeats = min(100 - scans, (MOST - len(content)) // len(scan))
    path.write_bytes(content[:-2] + scan * repeats + content[-2:])


def flat(kind: str, mode: str, **options: object) -> Callable[[Path], object]:
    """A picture of one colour, with the most pixels."""
    return lambda path: Image.new(mode, (SIDE, SIDE)).save(path, kind, **options)


def triplets(path: Path) -> None:
    """Zeros, whose compressed size is a thousandth."""
    images = np.zeros((int(MOST * 0.96 * 1000 / 3 / 64 / 64 / 3), 64, 64, 3), np.uint8)
    judge = np.zeros(len(images), np.float32)
    np.savez_compressed(path, **{f"a/{name}": images for name in ("ref", "p0", "p1")}, **{"a/judge": judge})  # pyright: ignore


def sheet(path: Path) -> None:
    """A worksheet of many cells and as many shared strings, compressed."""
    cells = b'<row r="1">' + b'<c r="A1"><v>1</v></c>' * 370_000 + b"</row>"
    space = b"http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(
            "xl/worksheets/sheet1.xml", b'<worksheet xmlns="%s"><sheetData>%s</sheetData></worksheet>' % (space, cells)
        )
        strings = b"<si><t>a</t></si>" * 490_000
        archive.writestr("xl/sharedStrings.xml", b'<sst xmlns="%s">%s</sst>' % (space, strings))
        relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{space.decode()}" xmlns:r="{relations}"><sheets><sheet name="a" r:id="r1"/></sheets>'
            "</workbook>",
        )
        package = "http://schemas.openxmlformats.org/package/2006/relationships"
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}"><Relationship Id="r1" Target="worksheets/sheet1.xml"/></Relationships>',
        )


IMAGE = "from rlpips_jax.files.decoding import load_image as read"
CHECKPOINT = "from rlpips_jax.weights.pytorch import read_checkpoint as read"
FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "PNG, 16 bits, RGBA": (".png", deep_png, IMAGE),
    "JPEG, 100 scans": (".jpg", many_scans, IMAGE),
    "TIFF, deflate": (".tif", flat("TIFF", "RGBA", compression="tiff_adobe_deflate"), IMAGE),
    "GIF": (".gif", flat("GIF", "P"), IMAGE),
    "WebP": (".webp", flat("WEBP", "RGB", lossless=True, method=0), IMAGE),
    "triplets, .npz": (".npz", triplets, "from rlpips_jax.evaluation import read"),
    "opinions, .xlsx": (
        ".xlsx",
        sheet,
        "from rlpips_jax.files.spreadsheet import read_sheet\nread = lambda path: read_sheet(path, 'a')",
    ),
    "weights, .pth": (
        ".pth",
        lambda path: write_checkpoint(path, {f"{n}": np.zeros(1, np.float32) for n in range(3_000)}),
        CHECKPOINT,
    ),
    "results, .json": (
        ".json",
        lambda path: path.write_text(json.dumps({str(n): [] for n in range(75_000)})),
        "from rlpips_jax.files.json_object import json_object\nread = lambda path: json_object(open(path).read())",
    ),
    "pairs, .csv": (
        ".csv",
        lambda path: path.write_text("a,b\n" * 250_000),
        "from rlpips_jax.scoring import pairs_in_list\nread = lambda path: sum(1 for _ in pairs_in_list(path))",
    ),
}
"""Suffix, how it is made, and what defines `read`."""

PROGRAM = """
import re, sys, time, warnings
warnings.simplefilter("ignore")
{read}
def peak():
    # Not ru_maxrss, which begins with that of the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before, begun = peak(), time.process_time()
try:
    read(sys.argv[1])
    said = "read"
except Exception as error:
    said = f"{{type(error).__name__}}: {{error}}"
taken = time.process_time() - begun
print((peak() - before) / 1024, taken, said.replace(sys.argv[1], "it"))
"""


def main(config: Hostile) -> None:
    """Measures, and prints the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, make, read) in FILES.items():
            if config.only not in name:
                continue
            path = Path(folder, f"hostile{suffix}")
            make(path)
            size = path.stat().st_size
            assert size <= MOST, f"{name}: {size} bytes"
            run = subprocess.run(
                [sys.executable, "-c", PROGRAM.format(read=read), str(path)], capture_output=True, text=True, check=True
            )
            memory, seconds, said = run.stdout.strip().split(" ", 2)
            rows.append(
                (name, f"{size / 1e3:.0f} kB", f"{float(memory):.0f} MiB", f"{float(seconds):.1f} s", said[:100])
            )
            print(*rows[-1], flush=True)
            path.unlink()
    print(Table("What files of 1 MB cost", ("file", "size", "memory", "processor time", "outcome"), rows))


if __name__ == "__main__":
    main(tyro.cli(Hostile, prog="python -m benchmarks.hostile"))
