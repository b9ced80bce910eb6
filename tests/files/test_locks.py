"""One process or thread holds a lock at a time, whether or not the file system knows locks."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlpips_jax.errors import Locked
from rlpips_jax.files.locks import locked

HOLDER = """
import errno, fcntl, sys
from pathlib import Path
from rlpips_jax.files.locks import locked

def refuse(*_):
    raise OSError(int(sys.argv[2]), "flock")

if int(sys.argv[2]):
    fcntl.flock = refuse
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(
    params=[0, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=["locks", "ENOSYS", "ENOLCK", "EOPNOTSUPP"]
)
def refusal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The error number with which the file system refuses locks; 0 if it has them."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def hold(path: Path, refusal: int) -> "subprocess.Popen[str]":
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(refusal)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_named_waited_for_and_survived(tmp_path: Path, refusal: int) -> None:
    path = tmp_path / "new" / "lock"
    process = hold(path, refusal)
    holder = f"process {process.pid} on "
    with pytest.raises(Locked, match=f"lock.* is held by {holder}"), locked(path):
        pass
    answers = iter([False, True])
    with pytest.raises(Locked, match=holder), locked(path, waiting=str, give_up=lambda: next(answers)):
        pass
    seen: list[str] = []

    def end(name: str) -> None:
        seen.append(name)
        process.communicate()

    with locked(path, waiting=end):
        assert seen[0].startswith(holder)
        assert len(list(path.parent.iterdir())) == 1
    assert list(path.parent.iterdir()) == []


def test_a_killed_process_holds_nothing(tmp_path: Path, refusal: int) -> None:
    path = tmp_path / "lock"
    process = hold(path, refusal)
    process.kill()
    process.communicate()
    with locked(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_threads_hold_it_one_at_a_time(tmp_path: Path, refusal: int) -> None:
    inside, most = 0, 0
    start = threading.Barrier(4)

    def enter(_: int) -> None:
        nonlocal inside, most
        start.wait()
        for _ in range(5):
            with locked(tmp_path / "lock", waiting=str):
                inside += 1
                most = max(most, inside)
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert (inside, most) == (0, 1)
    assert list(tmp_path.iterdir()) == []


def test_what_fails_inside_releases_it(tmp_path: Path, refusal: int) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught, locked(tmp_path / "lock"):
            raise ZeroDivisionError
        assert caught.value.__context__ is None
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "lock"):
        pass
    (tmp_path / "lock").mkdir()
    with pytest.raises(OSError, match="lock"), locked(tmp_path / "lock"):
        pass
