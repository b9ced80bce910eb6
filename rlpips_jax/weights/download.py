"""Downloads one official file: the whole file, verified, or nothing.

The bytes gather in `NAME.HASH.RANDOM.part` beside their final name, never through a link. A transfer that was cut off,
even by the death of its process, is continued: the next request asks for the missing bytes alone. Only a complete file
of the right sha256 gets its final name, in one step.

Of several processes or threads that want one file, one downloads and the others wait for it, because one transfer
instead of many matters at half a gigabyte. They agree by a lock on `NAME.HASH.lock`, so that different files do not
wait for each other. Where no lock can be made, or its holder has received nothing for minutes, each downloads under a
name of its own: more traffic, the same result.
"""

import contextlib
import functools
import glob
import hashlib
import logging
import os
import queue
import re
import secrets
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from rlpips_jax.errors import Locked, WeightsCorrupt, WeightsNotFound
from rlpips_jax.files.locks import locked
from rlpips_jax.files.regular import open_regular
from rlpips_jax.warning import warn_user

TIMEOUTS = (10.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes on it."""

PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each further attempt; an attempt that brought `STEADY` bytes starts the count anew."""

ANSWER = 60.0
"""Seconds for an answer to begin, redirections included: a server can send its first lines byte by byte."""

LEAST_RATE, PATIENCE = 1 << 12, 60.0
"""Bytes per second, on average over so many seconds; a slower transfer counts as interrupted."""

LONGEST = 6 * 3600.0
"""Seconds for a file, all attempts together: 600 MB at 28 kB/s."""

STEADY = 1 << 20
CHUNK = 1 << 14
LARGEST = 1 << 32
"""Most bytes accepted for a file of unknown size."""

STUCK = 300.0
"""Seconds without progress after which the holder of the lock is no longer waited for: longer than all its attempts
can take."""

TEMPORARY_FAILURES = {408, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """The transfer ended too early, or never began, for a reason that may pass."""


class _Unfit(Exception):
    """What arrived, or was announced, is not the file wanted."""


@dataclass(frozen=True)
class _Wanted:
    url: str
    sha256: str
    size: int | None
    final: Path

    def named(self, ending: str) -> Path:
        """A name beside the final one. The hash in it keeps two files of one name from continuing each other."""
        return self.final.with_name(f"{self.final.name}.{self.sha256[:8]}.{ending}")

    @property
    def partial(self) -> Path | None:
        """What an earlier transfer left: the longest such file; a link is not one."""
        found = self.final.parent.glob(glob.escape(self.named("").name) + "[0-9a-f]" * 16 + ".part")
        return max(filter(_length, found), key=_length, default=None)

    @property
    def identity(self) -> str:
        return f"sha256 {self.sha256}" + ("" if self.size is None else f", {self.size} bytes")

    @property
    def by_hand(self) -> str:
        return f"a copy fetched by hand ({self.identity}) goes to {self.final}"


@contextlib.contextmanager
def downloading(
    url: str, *, sha256: str, size: int | None, folder: Path, progress: bool = True
) -> Iterator[Callable[[], Path]]:
    """Holds the lock of a file, so that no other process downloads it or removes it until the end of the block.

    Args:
        url: http or https; the last part of its path names the file.
        sha256: of the file, 64 hexadecimal digits. A file of that name with another hash is replaced.
        size: in bytes, None if unknown; more bytes than that are never accepted.
        folder: where to put it; made if missing.
        progress: show a bar on stderr if that is a terminal, one line otherwise.

    Yields:
        A function that downloads the file, unless it is there already, and returns its path. It raises
        WeightsNotFound if there is no connection, no such file on the server, or no way to write it here (read-only
        folder, full disk), with the cause and where to put a file fetched by hand; WeightsCorrupt if the server
        delivers another file, of which nothing is kept. It warns if a wrong file of that name was there.

    Raises:
        ValueError: the arguments name no file or no sha256.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if not name:
        raise ValueError(f"url must end in a file name, got {url!r}")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    wanted = _Wanted(url, sha256.lower(), size, Path(folder).expanduser() / name)
    with _alone(wanted, progress) as gathered:
        yield functools.partial(_download, wanted, gathered, progress)


def _download(wanted: _Wanted, gathered: Path, progress: bool) -> Path:
    """What `downloading` yields; `gathered` is the file where the bytes gather."""
    try:
        if os.path.lexists(wanted.final):
            found = sha256_of(wanted.final)  # Of nothing but a regular file.
            if found == wanted.sha256:
                return wanted.final
            warn_user(
                f"{wanted.final} has sha256 {found} instead of {wanted.sha256}: downloading it again", UserWarning
            )
        wanted.final.parent.mkdir(parents=True, exist_ok=True)
        _retrieve(wanted, gathered, progress)
    except WeightsCorrupt:
        raise
    except OSError as error:
        raise WeightsNotFound(
            f"{wanted.url} could not be saved as {wanted.final}: {error}; make room there or name another folder, "
            f"or {wanted.by_hand}"
        ) from error
    return wanted.final


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hash of a file as 64 lower-case hexadecimal digits; reads it piece by piece."""
    with open_regular(path) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


@contextlib.contextmanager
def _alone(wanted: _Wanted, progress: bool) -> Iterator[Path]:
    """Yields the path under which to gather the file; until the end of the block nobody else writes to it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                locked(
                    wanted.named("lock"),
                    waiting=lambda holder: progress and _say(f"waiting for {holder}, which downloads {wanted.url}"),
                    give_up=_stuck(wanted),
                )
            )
            path = wanted.partial or wanted.named(f"{secrets.token_hex(8)}.part")
        except (Locked, OSError):
            path = wanted.named(f"own-{secrets.token_hex(8)}.part")
            stack.callback(_remove, path)
        yield path


def _stuck(wanted: _Wanted) -> Callable[[], bool]:
    """Tells whether a file has not grown for `STUCK` seconds; it must be asked more often than that."""

    def received() -> int:
        return _length(path) if (path := wanted.partial) else 0

    length, since = received(), time.monotonic()

    def stuck() -> bool:
        nonlocal length, since
        previous, length = length, received()
        if length != previous:
            since = time.monotonic()
        return time.monotonic() - since > STUCK

    return stuck


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _retrieve(wanted: _Wanted, partial: Path, progress: bool) -> None:
    """Lets pooch check what is there, have the rest fetched, verify the whole and give it its name."""
    import pooch

    def fetch(url: str, output: str, _: Any) -> None:
        # Pooch made an empty file of this name; a killed process would leave it behind.
        os.unlink(output)
        _complete(wanted, partial, progress)
        os.replace(partial, output)

    def about_others(record: logging.LogRecord) -> bool:
        return wanted.url not in record.getMessage()

    logger = pooch.get_logger()
    logger.addFilter(about_others)
    try:
        pooch.retrieve(
            wanted.url,
            known_hash=f"sha256:{wanted.sha256}",
            fname=wanted.final.name,
            path=wanted.final.parent,
            downloader=cast(Any, fetch),  # The protocol names its parameters otherwise.
        )
    except ValueError as error:
        raise WeightsCorrupt(f"{wanted.final} changed while it was verified: {error}") from error
    finally:
        logger.removeFilter(about_others)


def _complete(wanted: _Wanted, partial: Path, progress: bool) -> None:
    """Makes `partial` the whole, right file, with as many requests as that takes."""
    from tqdm import tqdm

    terminal = sys.stderr is not None and sys.stderr.isatty()
    if progress and not terminal:
        size = "" if wanted.size is None else f" ({megabytes(wanted.size)})"
        _say(f"downloading {wanted.url}{size} to {wanted.final}")
    # A transfer that begins here is trusted to be of one piece; what an earlier call left may be anything.
    inherited = _length(partial) > 0
    failures = 0
    deadline = time.monotonic() + LONGEST
    with tqdm(
        total=wanted.size,
        unit="B",
        unit_scale=True,
        desc=wanted.final.name,
        disable=not (progress and terminal),
    ) as bar:
        while True:
            before = _length(partial)
            try:
                if wanted.size is None or before < wanted.size:
                    _continue(wanted, partial, bar, deadline)
                found = sha256_of(partial)
                if found == wanted.sha256:
                    return
                raise _Unfit(f"sha256 {found}, {_length(partial)} bytes")
            except _Unfit as unfit:
                partial.unlink(missing_ok=True)
                if not inherited:
                    raise WeightsCorrupt(
                        f"{wanted.url} is not the expected file ({wanted.identity}): got {unfit}. "
                        "Nothing was kept. It was changed on the server or on the way; a proxy or a login "
                        f"page often answers in its place. Try again, or elsewhere; {wanted.by_hand}"
                    ) from None
                inherited = False
            except _Interrupted as interruption:
                now = _length(partial)
                failures = 1 if now - before >= STEADY else failures + 1
                if failures > len(PAUSES) or time.monotonic() > deadline:
                    kept = f"; {now} bytes are kept, and the next call continues there" if now else ""
                    raise _not_found(wanted, f"{interruption}{kept if partial == wanted.partial else ''}") from (
                        interruption.__cause__
                    )
                time.sleep(PAUSES[failures - 1])


def _continue(wanted: _Wanted, partial: Path, bar: Any, deadline: float) -> None:
    """One request for what is missing, appended to `partial`."""
    import requests
    from urllib3.exceptions import HTTPError

    there = _length(partial)
    # Encoded content would have other lengths, and no ranges worth asking for.
    headers = {"User-Agent": "rlpips-jax", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    try:
        with _answer(wanted.url, headers) as response:
            if response.status_code == 416 and there:
                return  # Nothing follows: it is complete, or not of this file; its hash will tell.
            start, total = _extent(wanted, response, there, partial)
            limit = (LARGEST if wanted.size is None else wanted.size) if total is None else total
            bar.n, bar.total = start, wanted.size if total is None else total
            bar.refresh()
            _receive(response, partial, bar, start=start, limit=limit, deadline=deadline)
            position, expected = _length(partial), bar.total
            if expected is not None and position < expected:
                raise _Interrupted(f"the connection ended after {position} of {expected} bytes")
    except (requests.RequestException, HTTPError, ConnectionError, TimeoutError) as error:
        if isinstance(error, ValueError):  # Not an address at all.
            raise _not_found(wanted, str(error)) from error
        # Where no connection was made, its reason is wrapped in several errors, which repeat the address.
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        raise _Interrupted(str(reason or error)) from error


def _extent(wanted: _Wanted, response: Any, there: int, partial: Path) -> tuple[int, int | None]:
    """Where the bytes of this answer begin, and how long it says the whole file is."""
    status = response.status_code
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    if status == 200:
        length = response.headers.get("Content-Length", "")
        start, total = 0, int(length) if length.isdecimal() and not encoded else None
    elif status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != there or encoded:
            partial.unlink(missing_ok=True)
            raise _Interrupted("the server sent another range than the one asked for")
        start, total = there, None if span[2] == "*" else int(span[2])
    elif status in TEMPORARY_FAILURES:
        raise _Interrupted(f"HTTP {status} {response.reason}")
    else:
        raise _not_found(wanted, f"HTTP {status} {response.reason}")
    if total is not None and (total > LARGEST if wanted.size is None else total != wanted.size):
        raise _Unfit(f"{total} bytes announced")
    return start, total


def _answer(url: str, headers: dict[str, str]) -> Any:
    """The beginning of the answer to a request. The time limit of each read alone would not end an endless one."""
    import requests

    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            arrived.put(requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS))
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = arrived.get(timeout=ANSWER)
    except queue.Empty:
        raise _Interrupted(f"no answer began within {ANSWER:.0f} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _receive(response: Any, partial: Path, bar: Any, *, start: int, limit: int, deadline: float) -> None:
    """Writes the bytes of an answer to `partial` from `start` on; what has arrived is there for the next attempt."""
    position = start
    begun, before = time.monotonic(), start
    flags = os.O_RDWR | (0 if start else os.O_CREAT | os.O_TRUNC) | getattr(os, "O_NOFOLLOW", 0)
    with _disk(partial), open_regular(partial, "r+b", flags=flags) as file:
        file.seek(start)
        # `read1` gives what has arrived; other functions would wait for a whole chunk, however slowly it comes.
        while chunk := response.raw.read1(CHUNK, decode_content=True):
            position += len(chunk)
            if position > limit:
                raise _Unfit(f"more than {limit} bytes")
            file.write(chunk)
            file.flush()
            bar.update(len(chunk))
            now = time.monotonic()
            if now > deadline:
                raise _Interrupted(f"it was not complete after {LONGEST / 3600:g} hours")
            if now - begun > PATIENCE:
                if position - before < LEAST_RATE * PATIENCE:
                    raise _Interrupted(f"the server sent only {position - before} bytes in {PATIENCE:g} seconds")
                begun, before = now, position
        os.fsync(file.fileno())


@contextlib.contextmanager
def _disk(partial: Path) -> Iterator[None]:
    """Where the disk refuses (it is full), gives back what the partial file took, and names it."""
    import requests
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (requests.RequestException, HTTPError, ConnectionError, TimeoutError):
        raise
    except OSError as error:
        _remove(partial)
        error.filename = error.filename or os.fspath(partial)
        raise


def _not_found(wanted: _Wanted, cause: str) -> WeightsNotFound:
    return WeightsNotFound(f"{wanted.url} could not be downloaded: {cause}; {wanted.by_hand}")


def _length(path: Path) -> int:
    """Bytes of a regular file; 0 if there is no such file."""
    try:
        state = path.lstat()
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0


def megabytes(size: int) -> str:
    """A size in bytes, in words."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"


def _say(line: str) -> None:
    if sys.stderr is not None:
        print(f"rlpips_jax: {line}", file=sys.stderr, flush=True)
