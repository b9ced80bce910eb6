"""The archives of BAPPS: their list, download and extraction.

The authors publish no hashes. So the first complete download (as gzip's own checksums tell) of an archive records its
sha256 in `bapps.sha256` beside it, one line `HASH  NAME` as `sha256sum` writes it. From then on an archive with another
hash is refused, whether the file on the server or the one on this disk has changed.
"""

import contextlib
import gzip
import logging
import os
import re
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urljoin

from rlpips_jax.errors import TripletsError
from rlpips_jax.files.atomic import replacing
from rlpips_jax.weights.download import sha256_of

BASE_URL = "https://people.eecs.berkeley.edu/~rich.zhang/projects/2018_perceptual/dataset/"
URL_VARIABLE = "RLPIPS_BAPPS_URL"
"""Environment variable with the URL of a mirror, used instead of `BASE_URL`."""

RECORD = "bapps.sha256"
TIMEOUTS = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes on it."""
CHUNK = 1 << 20
DEPTH = 3
"""How deep below `manual_dir` extracted files are searched for: `dataset/2afc/val`."""


@dataclass(frozen=True)
class Archive:
    """One archive; its files are `portion/category/part/NAME`, possibly below further folders.

    Attributes:
        name: "twoafc_train"; the file has the suffix .tar.gz.
        portion: "train" or "val".
        categories: the folders of the portion; each becomes a split.
        images: folders of images in a category.
        judgments: the folder of judgments in a category.
    """

    name: str
    portion: str
    categories: tuple[str, ...]
    images: tuple[str, ...]
    judgments: str

    @property
    def file(self) -> str:
        return f"{self.name}.tar.gz"

    @property
    def splits(self) -> dict[str, str]:
        """Maps the name of each split, such as "train_cnn", to its category."""
        return {f"{self.portion}_{category}": category for category in self.categories}


REAL_ALGORITHMS = ("superres", "deblur", "color", "frameinterp")
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "twoafc": (
        Archive("twoafc_train", "train", ("traditional", "cnn", "mix"), ("ref", "p0", "p1"), "judge"),
        Archive("twoafc_val", "val", ("traditional", "cnn", *REAL_ALGORITHMS), ("ref", "p0", "p1"), "judge"),
    ),
    "jnd": (Archive("jnd", "val", ("traditional", "cnn"), ("p0", "p1"), "same"),),
}
"""The archives of each configuration."""

LARGEST = 1 << 22
"""Largest accepted size of a file, in bytes; a 256x256 PNG has at most 200,000."""


def find(archive: Archive, folder: Path) -> Path | None:
    """Returns the archive in a folder, or else the extracted folder of its portion, or else None."""
    folder = folder.resolve()  # The folder may itself be the portion, also if it is given as "." or by a link.
    file = folder / archive.file
    if file.is_file():
        return file
    for place, inner, _ in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        inner[:] = [] if depth > DEPTH else sorted(name for name in inner if not name.startswith("."))
        found = Path(place)
        # Triplets and pairs both have val/traditional; the judgments tell them apart.
        if found.name == archive.portion and any((found / c / archive.judgments).is_dir() for c in archive.categories):
            return found
    return None


def fetch(archive: Archive, folder: Path, base_url: str | None = None) -> Path:
    """Downloads an archive into a folder unless it is there, and checks its hash if one is recorded.

    Args:
        archive: the archive.
        folder: the folder of downloads; made if missing.
        base_url: URL of the folder of the archives; by default `$RLPIPS_BAPPS_URL` or `BASE_URL`.

    Raises:
        TripletsError: the download failed, or the hash is not the recorded one.
    """
    import pooch
    import requests

    base = base_url or os.environ.get(URL_VARIABLE) or BASE_URL
    url = urljoin(base if base.endswith("/") else f"{base}/", archive.file)
    by_hand = f"you can download {archive.file} yourself and pass its folder as manual_dir"
    known = recorded(folder).get(archive.file)
    path = folder / archive.file
    if not path.is_file():
        print(f"downloading {url} to {path}", file=sys.stderr, flush=True)
    try:
        with _quietly(pooch.get_logger()):
            pooch.retrieve(
                url,
                known_hash=None if known is None else f"sha256:{known}",
                fname=archive.file,
                path=folder,
                # The parameters of the protocol have other names.
                downloader=cast(Any, pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUTS)),
            )
    except requests.RequestException as error:
        raise TripletsError(f"{url} could not be downloaded: {error}; {by_hand}") from error
    except ValueError as error:
        raise TripletsError(
            f"{url} is not the {archive.file} recorded in {folder / RECORD} (sha256 {known}): it has changed. To "
            f"accept the new one, remove that line; {by_hand}"
        ) from error
    return path


def recorded(folder: Path) -> dict[str, str]:
    """Returns the hashes recorded in a folder of downloads, by file name."""
    record = folder / RECORD
    if not record.is_file():
        return {}
    lines = [line for line in record.read_text("utf-8").splitlines() if line.strip()]
    for line in lines:
        if not re.fullmatch(r"[0-9a-f]{64}  \S+", line):
            raise TripletsError(f"{record} has the line {line!r}; a line is a sha256, two spaces and a file name")
    return {line[66:]: line[:64] for line in lines}


def record(path: Path) -> None:
    """Records the hash of a downloaded archive, unless one is recorded for its name."""
    hashes = recorded(path.parent)
    if path.name in hashes:
        return
    hashes[path.name] = sha256_of(path)
    with replacing(path.parent / RECORD) as file:
        file.write("".join(f"{value}  {name}\n" for name, value in sorted(hashes.items())).encode())


def unpack(path: Path, archive: Archive, folder: Path) -> Path:
    """Extracts the files that an archive should contain, and no others, without its leading folders.

    Args:
        path: the .tar.gz file.
        archive: its description.
        folder: the folder in which to create the portion.

    Returns:
        `folder / archive.portion`, which has every category.

    Raises:
        TripletsError: the file is damaged or cut off, lacks a category, or has a member that is a link or lies outside
            the folder.
    """
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as members:
                while (member := members.next()) is not None:
                    cast(Any, members).members.clear()  # `tarfile` would keep all of them, hundreds of thousands.
                    _write(path, members, member, archive, folder)
            # gzip's checksum comes after the last member.
            while stream.read(CHUNK):
                pass
    except (gzip.BadGzipFile, EOFError, tarfile.TarError, zlib.error) as error:
        raise TripletsError(
            f"{path} is damaged, cut off or not a .tar.gz file: {error}; remove it and download it again"
        ) from error
    for category in archive.categories:
        if not (folder / archive.portion / category).is_dir():
            raise TripletsError(f"{path} has no folder {archive.portion}/{category}; it is not BAPPS's {archive.file}")
    return folder / archive.portion


def _write(path: Path, members: tarfile.TarFile, member: tarfile.TarInfo, archive: Archive, folder: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name:
        raise TripletsError(f"{path} has a member {member.name!r}, which lies outside the folder; it is not BAPPS")
    if not (member.isfile() or member.isdir()):
        raise TripletsError(f"{path} has a member {member.name!r}, which is a link or a device; it is not BAPPS")
    place = name.parts[-4:]
    if not member.isfile() or len(place) < 4 or place[3].startswith("."):
        return
    portion, category, part, _ = place
    if portion != archive.portion or category not in archive.categories:
        return
    if part not in (*archive.images, archive.judgments):
        return
    if member.size > LARGEST or member.issparse():
        raise TripletsError(
            f"{path} has a member {member.name!r} of {member.size:,} bytes; BAPPS's files have at most {LARGEST:,}"
        )
    content = members.extractfile(member)
    assert content is not None  # It is a file.
    target = folder.joinpath(*place)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(target, "xb") as file:
            shutil.copyfileobj(content, file)
    except FileExistsError:
        raise TripletsError(f"{path} has {'/'.join(place)} twice, then as {member.name!r}") from None
    except OSError as error:  # A full disk is reported without a name.
        error.filename = error.filename or os.fspath(target)
        raise


@contextlib.contextmanager
def _quietly(logger: logging.Logger) -> Iterator[None]:
    """Suppresses pooch's advice on hashes."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
