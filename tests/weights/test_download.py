"""Downloads from a real server on this machine that cuts off, lies, stalls and refuses."""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import http.server
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlpips_jax.errors import WeightsCorrupt, WeightsNotFound
from rlpips_jax.files.locks import locked
from rlpips_jax.weights import download as module
from rlpips_jax.weights.download import downloading, sha256_of

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)
NAME = "net-7be5be79.pth"
PIECE = module.CHUNK
"""What arrives of an interrupted transfer is kept in whole pieces of this size."""
PARTIAL = f"{NAME}.{SHA256[:8]}.{0:016x}.part"
LOCK = f"{NAME}.{SHA256[:8]}.lock"

# Runs the real module without the rest of the package, whose import takes seconds.
PROGRAM = f"""
import pathlib, sys, types
package = types.ModuleType("rlpips_jax")
package.__path__ = [{str(Path(module.__file__).parent.parent)!r}]
weights = types.ModuleType("rlpips_jax.weights")
weights.__path__ = [{str(Path(module.__file__).parent)!r}]
sys.modules.update({{"rlpips_jax": package, "rlpips_jax.weights": weights}})
from rlpips_jax.weights.download import downloading
print("ready", flush=True)
sys.stdin.readline()
with downloading(sys.argv[1], sha256={SHA256!r}, size={SIZE}, folder=pathlib.Path(sys.argv[2])) as download:
    print(download())
"""


class Handler(http.server.BaseHTTPRequestHandler):
    @property
    def home(self) -> "Server":
        assert isinstance(self.server, Server)
        return self.server

    def do_GET(self) -> None:
        with self.home.guard:
            self.home.ranges.append(self.headers.get("Range"))
            answer = self.home.answers[min(len(self.home.ranges), len(self.home.answers)) - 1]
        # The client hangs up on what it does not want.
        with contextlib.suppress(ConnectionError):
            answer(self)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


Answer = Callable[[Handler], None]


class Server(http.server.ThreadingHTTPServer):
    """Gives the first answer to the first request, and so on; the last one to all that follow."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = [sends()]
        self.ranges: list[str | None] = []
        self.sent = 0
        self.guard = threading.Lock()
        self.stopping = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/models/{NAME}"


def sends(
    body: bytes = CONTENT,
    *,
    ranges: bool = True,
    announce: bool = True,
    stop_after: int | None = None,
    then_hang: bool = False,
    pause: float = 0.0,
    headers: tuple[tuple[str, str], ...] = (),
) -> Answer:
    """The usual answer, possibly cut off after some bytes, and then silent."""

    def answer(handler: Handler) -> None:
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and ranges else 0
        if start >= len(body):
            handler.send_response(416)
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if announce:
            handler.send_header("Content-Length", str(len(body) - start))
        for header in headers:
            handler.send_header(*header)
        handler.end_headers()
        rest = body[start:] if stop_after is None else body[start : start + stop_after]
        for piece in range(0, len(rest), 10_000):
            handler.wfile.write(rest[piece : piece + 10_000])
            handler.home.sent += len(rest[piece : piece + 10_000])
            handler.home.stopping.wait(pause)
        if then_hang:
            handler.home.stopping.wait()

    return answer


def hangs(handler: Handler) -> None:
    handler.home.stopping.wait()


def fails(status: int) -> Answer:
    return lambda handler: handler.send_error(status)


def pours(handler: Handler) -> None:
    """Sends without end, and without saying how much."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.home.stopping.is_set():
        handler.wfile.write(bytes(10_000))
        handler.home.sent += 10_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01, 0.01))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join()


def download(url: str, **options: Any) -> Path:
    with downloading(url, **options) as get:
        return get()


def fetch(server: Server, folder: Path, **changes: object) -> Path:
    return download(server.url, **{"sha256": SHA256, "size": SIZE, "folder": folder, "progress": False, **changes})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_arrives_alone_under_its_name(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / NAME
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [NAME]
    assert server.ranges == [None]


def test_file_is_readable_by_those_whom_the_umask_allows(server: Server, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert fetch(server, tmp_path).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_existing_file_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    fetch(server, tmp_path)
    assert server.ranges == []


def test_upper_case_hash_is_the_same_hash(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, sha256=SHA256.upper()).read_bytes() == CONTENT


@pytest.mark.parametrize("announce", [True, False])
def test_size_may_be_unknown(server: Server, tmp_path: Path, announce: bool) -> None:
    server.answers = [sends(announce=announce)]
    assert fetch(server, tmp_path, size=None).read_bytes() == CONTENT


def test_existing_wrong_file_is_replaced_with_a_warning(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"something else")
    with pytest.warns(UserWarning, match="downloading it again"):
        fetch(server, tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_existing_wrong_file_outlives_a_failed_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"something else")
    server.answers = [fails(404)]
    with pytest.warns(UserWarning, match="downloading it again"), pytest.raises(WeightsNotFound):
        fetch(server, tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"something else"
    assert names(tmp_path) == [NAME]


@pytest.mark.parametrize("announce", [True, False])
def test_cut_off_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path, announce: bool) -> None:
    server.answers = [sends(stop_after=6 * PIECE, announce=announce), sends(stop_after=PIECE), sends()]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={6 * PIECE}-", f"bytes={7 * PIECE}-"]
    assert server.sent == SIZE
    assert names(tmp_path) == [NAME]


def test_transfer_given_up_goes_on_in_the_next_call(server: Server, tmp_path: Path) -> None:
    server.answers = [sends(stop_after=PIECE)]
    with pytest.raises(WeightsNotFound, match=f"{4 * PIECE} bytes are kept, and the next call continues"):
        fetch(server, tmp_path)
    (name,) = names(tmp_path)
    assert re.fullmatch(rf"{NAME}\.{SHA256[:8]}\.[0-9a-f]{{16}}\.part", name)
    server.answers = [sends()]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={4 * PIECE}-"
    assert server.sent == SIZE
    assert names(tmp_path) == [NAME]


def test_progress_earns_further_attempts(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEADY", 2 * PIECE)
    server.answers = [sends(stop_after=2 * PIECE)]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges[1:] == [f"bytes={start}-" for start in range(2 * PIECE, SIZE, 2 * PIECE)]


def test_silent_server_is_left_and_asked_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUTS", (1.0, 0.2))
    server.answers = [sends(stop_after=100_000, then_hang=True), sends()]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    start = int((server.ranges[1] or "").removeprefix("bytes=").removesuffix("-"))
    assert 100_000 - PIECE < start <= 100_000


def test_server_that_stays_silent_is_an_error(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUTS", (1.0, 0.1))
    server.answers = [hangs]
    with pytest.raises(WeightsNotFound, match="timed out"):
        fetch(server, tmp_path)
    assert len(server.ranges) == 1 + len(module.PAUSES)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"PATIENCE": 0.2, "LEAST_RATE": 1 << 20}, "the server sent only [0-9]+ bytes in 0.2 seconds"),
        ({"LONGEST": 0.2}, "it was not complete after .* hours"),
    ],
)
def test_slow_server_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], message: str
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(module, name, value)
    # Each read is fast enough for the time limit of reads.
    server.answers = [sends(pause=0.05)]
    with pytest.raises(WeightsNotFound, match=f"{message}; [0-9]+ bytes are kept"):
        fetch(server, tmp_path)


def test_answer_that_never_begins_is_left(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drips(handler: Handler) -> None:
        while not handler.home.stopping.wait(0.02):
            handler.wfile.write(b"H")

    monkeypatch.setattr(module, "ANSWER", 0.2)
    server.answers = [drips]
    with pytest.raises(WeightsNotFound, match="no answer began"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("name", [NAME, PARTIAL])
def test_named_pipes_are_not_waited_for(server: Server, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    process = start(server, tmp_path)
    _, errors = process.communicate("go\n", timeout=30)
    assert ("it is a named pipe" in errors) == (name == NAME)


def test_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.answers = [sends(stop_after=6 * PIECE), sends(ranges=False)]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={6 * PIECE}-"]
    assert server.sent == 6 * PIECE + SIZE


def test_answer_with_another_range_is_not_appended(server: Server, tmp_path: Path) -> None:
    def shifted(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 5-{SIZE - 1}/{SIZE}")
        handler.send_header("Content-Length", str(SIZE - 5))
        handler.end_headers()
        handler.wfile.write(CONTENT[5:])

    server.answers = [sends(stop_after=6 * PIECE), shifted, sends()]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={6 * PIECE}-", None]


@pytest.mark.parametrize("length", [1000, SIZE, SIZE + 1000])
@pytest.mark.parametrize("size", [SIZE, None])
def test_foreign_partial_is_dropped_and_all_fetched(
    server: Server, tmp_path: Path, length: int, size: int | None
) -> None:
    (tmp_path / PARTIAL).write_bytes(bytes(length))
    assert fetch(server, tmp_path, size=size).read_bytes() == CONTENT
    assert server.ranges[-1] is None
    assert names(tmp_path) == [NAME]


@pytest.mark.parametrize(("size", "requests"), [(SIZE, 0), (None, 1)])
def test_complete_partial_needs_no_transfer(server: Server, tmp_path: Path, size: int | None, requests: int) -> None:
    (tmp_path / PARTIAL).write_bytes(CONTENT)
    assert fetch(server, tmp_path, size=size).read_bytes() == CONTENT
    assert len(server.ranges) == requests
    assert server.sent == 0


@pytest.mark.parametrize("size", [SIZE, None])
def test_tampered_bytes_are_refused_and_removed(server: Server, tmp_path: Path, size: int | None) -> None:
    tampered = CONTENT[:200_000] + bytes([CONTENT[200_000] ^ 1]) + CONTENT[200_001:]
    server.answers = [sends(tampered)]
    with pytest.raises(WeightsCorrupt) as error:
        fetch(server, tmp_path, size=size)
    for part in (
        server.url,
        SHA256,
        hashlib.sha256(tampered).hexdigest(),
        f"{SIZE} bytes",
        str(tmp_path / NAME),
    ):
        assert part in str(error.value)
    assert len(server.ranges) == 1
    assert names(tmp_path) == []


def test_tampered_rest_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.answers = [sends(stop_after=100_000), sends(bytes(SIZE))]
    with pytest.raises(WeightsCorrupt):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1, 0])
def test_wrong_announced_length_is_refused_before_the_transfer(server: Server, tmp_path: Path, length: int) -> None:
    server.answers = [sends((CONTENT + b"x")[:length] or b"page", stop_after=0)]
    with pytest.raises(WeightsCorrupt, match=rf"{SIZE} bytes\): got {length or 4} bytes announced"):
        fetch(server, tmp_path)
    assert len(server.ranges) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [SIZE, None])
def test_endless_answer_is_stopped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    monkeypatch.setattr(module, "LARGEST", 400_000)
    largest = 0

    def watched(file: object) -> None:
        nonlocal largest
        largest = max([largest, *(path.stat().st_size for path in tmp_path.iterdir())])

    monkeypatch.setattr(os, "fsync", watched)
    server.answers = [pours]
    with pytest.raises(WeightsCorrupt, match=f"more than {size or 400_000} bytes"):
        fetch(server, tmp_path, size=size)
    assert largest <= (size or 400_000)
    assert names(tmp_path) == []


def test_compressed_answer_is_unpacked(server: Server, tmp_path: Path) -> None:
    server.answers = [sends(gzip.compress(CONTENT), headers=(("Content-Encoding", "gzip"),))]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 410])
def test_missing_file_is_said_at_once(server: Server, tmp_path: Path, status: int) -> None:
    server.answers = [fails(status)]
    with pytest.raises(WeightsNotFound) as error:
        fetch(server, tmp_path)
    for part in (server.url, f"HTTP {status}", SHA256, f"{SIZE} bytes", str(tmp_path / NAME)):
        assert part in str(error.value)
    assert len(server.ranges) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_server_is_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    server.answers = [fails(status), fails(status), sends()]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_refused_connection(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
    with pytest.raises(WeightsNotFound) as error:
        download(url, sha256=SHA256, size=SIZE, folder=tmp_path)
    for part in (url, "refused", str(tmp_path / NAME)):
        assert part in str(error.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/net.pth", "net.pth", "http:///net.pth"])
def test_address_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(WeightsNotFound, match="could not be downloaded"):
        download(url, sha256=SHA256, size=SIZE, folder=tmp_path)


def test_arguments_that_name_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file name"):
        download("http://127.0.0.1/", sha256=SHA256, size=SIZE, folder=tmp_path)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        download("http://127.0.0.1/net.pth", sha256="7be5be79", size=SIZE, folder=tmp_path)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write everywhere; nobody may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_read_only_folder(server: Server) -> None:
    # Not tmp_path, which nobody but its owner may enter.
    folder = Path(tempfile.mkdtemp())
    try:
        fetch(server, folder)  # Imports what it needs while that may be read.
        folder.chmod(0o555)
        with without_privileges():
            assert fetch(server, folder).read_bytes() == CONTENT
        folder.chmod(0o755)
        (folder / NAME).unlink()
        folder.chmod(0o555)
        with (
            without_privileges(),
            pytest.raises(WeightsNotFound, match=r"could not be saved as .*ermission denied"),
        ):
            fetch(server, folder)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_folder_that_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsNotFound, match="could not be saved"):
        fetch(server, tmp_path / "file")


def test_nothing_is_written_through_a_link(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "weights"
    victim.write_bytes(b"precious")
    folder.mkdir()
    (folder / PARTIAL).symlink_to(victim)
    assert fetch(server, folder).read_bytes() == CONTENT
    (folder / NAME).unlink()
    # Even if the random name were foretold.
    monkeypatch.setattr(module.secrets, "token_hex", lambda count: "0" * 2 * count)
    with pytest.raises(WeightsNotFound, match=re.escape(str(folder / PARTIAL))):
        fetch(server, folder)
    assert victim.read_bytes() == b"precious"


def test_disk_that_fills_midway_leaves_nothing(server: Server, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(WeightsNotFound, match="File too large"):
            fetch(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_threads_share_one_transfer(server: Server, tmp_path: Path) -> None:
    server.answers = [sends(pause=0.005)]
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: fetch(server, tmp_path), range(6)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.ranges == [None]
    assert names(tmp_path) == [NAME]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_will_do(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    server.answers = [sends(pause=0.005)]
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: fetch(server, tmp_path), range(3)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.ranges == [None]
    assert names(tmp_path) == [NAME]


@pytest.mark.parametrize("obstacle", ["no lock can be made", "the holder is stuck"])
def test_without_the_lock_each_fetches_its_own(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    partial, lock = tmp_path / PARTIAL, tmp_path / LOCK
    monkeypatch.setattr(module, "STUCK", 0.15)
    with contextlib.ExitStack() as stack:
        if obstacle == "the holder is stuck":
            stack.enter_context(locked(lock))
        else:
            lock.mkdir()
            stack.callback(lock.rmdir)
        partial.write_bytes(b"of somebody else")
        with ThreadPoolExecutor(3) as pool:
            paths = list(pool.map(lambda _: fetch(server, tmp_path), range(3)))
        assert {path.read_bytes() for path in paths} == {CONTENT}
        assert set(server.ranges) == {None}
        assert partial.read_bytes() == b"of somebody else"
    assert names(tmp_path) == [NAME, PARTIAL]


def test_a_holder_that_makes_progress_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STUCK", 0.3)
    partial = tmp_path / PARTIAL
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / LOCK):
            waiting = pool.submit(fetch, server, tmp_path)
            for length in range(1, 8):
                partial.write_bytes(CONTENT[:length])
                time.sleep(0.1)
                assert not waiting.done()
        assert waiting.result().read_bytes() == CONTENT
    assert server.ranges == ["bytes=7-"]


def start(server: Server, folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.url, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_share_one_transfer(server: Server, tmp_path: Path) -> None:
    server.answers = [sends(pause=0.02)]
    processes = [start(server, tmp_path) for _ in range(2)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [output for output, _ in outputs] == [f"{tmp_path / NAME}\n"] * 2
    # Both report on stderr, in one line each, as it is no terminal here.
    lines = sorted(errors for _, errors in outputs)
    assert lines[0] == f"rlpips_jax: downloading {server.url} (0.3 MB) to {tmp_path / NAME}\n"
    assert re.fullmatch(
        r"rlpips_jax: waiting for (process \d+ on \S+|another process), which downloads (.*)\n", lines[1]
    )
    assert lines[1].endswith(f"{server.url}\n")
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.ranges == [None]
    assert names(tmp_path) == [NAME]


def test_killed_download_is_resumed_by_the_next(server: Server, tmp_path: Path) -> None:
    server.answers = [sends(stop_after=150_000, then_hang=True), sends()]
    process = start(server, tmp_path)
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()
    for _ in range(3000):
        if sum(map(module._length, tmp_path.glob("*.part"))) >= 100_000:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    there = sum(map(module._length, tmp_path.glob("*.part")))
    assert 100_000 <= there <= 150_000
    assert not (tmp_path / NAME).exists()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={there}-"]
    assert names(tmp_path) == [NAME]


def test_bar_on_a_terminal(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    (tmp_path / PARTIAL).write_bytes(CONTENT[:100_000])
    fetch(server, tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert NAME in shown
    assert "100k/300k" in shown
    assert "300k/300k" in shown
    assert "rlpips_jax:" not in shown


def test_no_progress_is_silence(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(server, tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_sha256_of(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(bytes(size))
    assert sha256_of(tmp_path / "file") == hashlib.sha256(bytes(size)).hexdigest()
