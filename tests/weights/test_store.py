"""Where weights are found: in the documented order, whole or not at all, downloaded once and only if need be."""

import contextlib
import errno
import fcntl
import hashlib
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import SQUEEZE, Convolution, Pool, Sequential
from rlpips_jax.errors import WeightsCorrupt, WeightsMismatch, WeightsNotFound
from rlpips_jax.files.locks import locked
from rlpips_jax.ops.pooling import Pooling
from rlpips_jax.weights import download, native, store
from rlpips_jax.weights.download import downloading
from rlpips_jax.weights.parameters import digest, flatten, from_pytorch, with_heads
from rlpips_jax.weights.pytorch import write_checkpoint
from rlpips_jax.weights.registry import BACKBONE, Official, Part

MINI = Sequential("mini", (Convolution(0, 4, 3), Pool(1), Convolution(2, 3, 1)), Pooling("max", 2, 2), tapped=(0, 2))
FILE = "mini-0123abcd.pth"


def drawn(seed: int = 0) -> dict[str, np.ndarray]:
    """A network as torchvision publishes it, with a classifier."""
    random = np.random.default_rng(seed)
    tensors = {
        name: random.standard_normal(shape, np.float32)
        for name, shape in with_heads(MINI).pytorch_shapes.items()
        if name.startswith("features.")
    }
    return tensors | {"classifier.1.weight": random.standard_normal((100, 100), np.float32)}


PARAMETERS = from_pytorch(drawn(), with_heads(MINI), "drawn weights")


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under any name, but at most `cut` bytes of it, and counts the requests."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.cut: int | None = None
        self.delay = 0.0
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/{FILE}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.requests.append(self.path)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        if start:
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.content)}")
        self.end_headers()
        time.sleep(server.delay)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(server.content[start : server.cut])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path) -> bytes:
    """The content of the official file."""
    path = tmp_path / "published.pth"
    write_checkpoint(path, drawn())
    return path.read_bytes()


@pytest.fixture
def server(published: bytes) -> Iterator[Server]:
    with Server(published) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def part(server: Server, published: bytes) -> Part:
    digest = hashlib.sha256(published).hexdigest()
    official = Official(f"v0.1/{FILE}", server.url, digest, len(published), "BSD-2-Clause", "Nobody: Nothing, 2024")
    return Part("mini", with_heads(MINI), BACKBONE, official)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Empty caches, no `lpips` package, and no time lost between attempts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(store.WEIGHTS_DIR, raising=False)
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    folders = {
        "argument": tmp_path / "argument",
        "environment": tmp_path / "environment",
        "cache": tmp_path / "cache" / "rlpips_jax",
        "torch": tmp_path / "torch" / "hub" / "checkpoints",
        "package": tmp_path / "site-packages" / "lpips",
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    return SimpleNamespace(**folders)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def same(parameters: dict[str, Any], expected: dict[str, Any] = PARAMETERS) -> bool:
    return digest(parameters) == digest(expected)


def below(folder: Path) -> list[str]:
    """Every file in a folder and the folders in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The order of places.


def test_search_order(
    places: SimpleNamespace, part: Part, server: Server, published: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.WEIGHTS_DIR, str(places.environment))
    spec = SimpleNamespace(origin=str(places.package / "__init__.py"))
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: spec if name == "lpips" else None)
    order = [
        places.argument / "mini.safetensors",
        places.argument / "v0.1" / FILE,
        places.environment / "mini.safetensors",
        places.environment / "v0.1" / FILE,
        places.cache / "mini.safetensors",
        places.torch / FILE,
        places.package / "weights" / "v0.1" / FILE,
    ]
    for path in order:
        if path.suffix == ".pth":
            put(path, published)
        else:
            native.write(path, PARAMETERS, with_heads(MINI))
    assert list(store.candidates(part, places.argument)) == order
    kept = order[4]
    for place, path in enumerate(order):
        assert store.locate(part, places.argument) == path
        assert same(store.obtain(part, places.argument)[0])
        path.unlink()
        if place >= 4:  # the extract of an official file
            kept.unlink(missing_ok=True)
    assert store.locate(part, places.argument) is None
    assert server.requests == []
    assert same(store.obtain(part, places.argument)[0])
    assert len(server.requests) == 1


def test_a_shipped_file_comes_before_the_caches(
    places: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part("mini", with_heads(MINI), BACKBONE)
    monkeypatch.setattr(store, "SHIPPED", tmp_path / "data")
    native.write(places.cache / "mini.safetensors", PARAMETERS, with_heads(MINI))
    shipped = tmp_path / "data" / "mini.safetensors"
    native.write(shipped, PARAMETERS, with_heads(MINI))
    assert store.locate(part) == shipped
    native.write(places.argument / "mini.safetensors", PARAMETERS, with_heads(MINI))
    assert store.locate(part, places.argument) == places.argument / "mini.safetensors"
    (places.cache / "mini.safetensors").unlink()
    shipped.unlink()
    with pytest.raises(WeightsNotFound, match=r"ships with this library.*installation is incomplete"):
        store.obtain(part)


def test_torch_cache_is_where_pytorch_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.torch_cache_folder() == tmp_path / "torch" / "hub" / "checkpoints"
    monkeypatch.delenv("TORCH_HOME")
    assert store.torch_cache_folder() == tmp_path / "cache" / "torch" / "hub" / "checkpoints"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store.torch_cache_folder() == tmp_path / "home" / ".cache" / "torch" / "hub" / "checkpoints"
    monkeypatch.setenv("TORCH_HOME", "~/models")
    assert store.torch_cache_folder() == tmp_path / "home" / "models" / "hub" / "checkpoints"


@pytest.mark.torch
def test_torch_agrees_where_its_cache_is(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert store.torch_cache_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def test_folders_may_be_below_home(places: SimpleNamespace, part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(places.argument.parent))
    native.write(places.argument / "mini.safetensors", PARAMETERS, with_heads(MINI))
    assert store.locate(part, "~/argument") == places.argument / "mini.safetensors"


def test_a_named_folder_must_exist(part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsNotFound, match=r"^weights_dir '.*nowhere' is not a folder$"):
        store.obtain(part, tmp_path / "nowhere")
    monkeypatch.setenv(store.WEIGHTS_DIR, str(tmp_path / "nowhere"))
    with pytest.raises(WeightsNotFound, match=r"^\$RLPIPS_WEIGHTS_DIR '.*nowhere' is not a folder$"):
        store.obtain(part)
    monkeypatch.setenv(store.WEIGHTS_DIR, "")
    assert same(store.obtain(part)[0])


def test_a_damaged_file_is_no_reason_to_look_further(places: SimpleNamespace, part: Part, server: Server) -> None:
    native.write(places.cache / "mini.safetensors", PARAMETERS, with_heads(MINI))
    put(places.argument / "mini.safetensors", (places.cache / "mini.safetensors").read_bytes()[:-1])
    with pytest.raises(WeightsCorrupt, match=r"argument/mini\.safetensors is not a readable"):
        store.obtain(part, places.argument)
    assert server.requests == []


# Official files.


def test_official_file_in_torchs_cache(places: SimpleNamespace, part: Part, server: Server, published: bytes) -> None:
    """It needs no download and stays; what the metric needs of it is kept, and found the next time."""
    path = put(places.torch / FILE, published)
    parameters, metadata = store.obtain(part)
    assert same(parameters)
    assert metadata["source"] == server.url
    assert metadata["source_sha256"] == hashlib.sha256(published).hexdigest()
    assert metadata["licence"] == "BSD-2-Clause"
    assert metadata["citation"] == "Nobody: Nothing, 2024"
    assert path.read_bytes() == published
    assert below(places.cache) == ["mini.safetensors"]
    kept = places.cache / "mini.safetensors"
    assert kept.stat().st_size < len(published) / 10
    assert dict(flatten(native.read(kept, with_heads(MINI))[0])).keys() == dict(flatten(PARAMETERS)).keys()
    path.unlink()
    again, remembered = store.obtain(part)
    assert same(again)
    assert remembered.items() >= metadata.items()
    assert server.requests == []


def test_what_was_hashed_is_what_is_read(
    places: SimpleNamespace, part: Part, published: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is exchanged after it was hashed is not taken for the official one."""
    path = put(places.argument / "v0.1" / FILE, published)
    doubled = tmp_path / "doubled.pth"
    write_checkpoint(doubled, {name: 2 * tensor for name, tensor in drawn().items()})
    read = store.read_checkpoint

    def exchanging(*arguments: Any, **options: Any) -> dict[str, np.ndarray]:
        os.replace(doubled, path)
        return read(*arguments, **options)

    monkeypatch.setattr(store, "read_checkpoint", exchanging)
    assert same(store.obtain(part, places.argument)[0])


def test_a_forged_file_is_refused(places: SimpleNamespace, part: Part) -> None:
    """What it says of its origin, and its own hashes, prove nothing."""
    assert part.official is not None
    native.write(places.argument / "mini.safetensors", PARAMETERS, part.layout, **store.provenance(part.official))
    assert same(store.obtain(replace(part, parameters_sha256=digest(PARAMETERS)), places.argument)[0])
    with pytest.raises(WeightsCorrupt, match="its parameters are not those of that file"):
        store.obtain(replace(part, parameters_sha256="0" * 64), places.argument)


@pytest.mark.parametrize("place", ["argument", "environment"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_wrong_official_file_in_a_named_folder_is_an_error(
    place: str,
    damage: str,
    places: SimpleNamespace,
    part: Part,
    server: Server,
    published: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = published[:-100] if damage == "cut" else published[:-1] + b"?"
    monkeypatch.setenv(store.WEIGHTS_DIR, str(places.environment))
    path = put(getattr(places, place) / "v0.1" / FILE, content)
    with pytest.raises(WeightsCorrupt) as caught:
        store.obtain(part, places.argument)
    message = str(caught.value)
    assert message.startswith(f"{path} is not the official file: its sha256 is ")
    assert hashlib.sha256(published).hexdigest() in message
    assert server.url in message
    assert below(places.cache) == []
    assert server.requests == []


@pytest.mark.parametrize("place", ["torch", "package"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_another_file_of_an_official_name_is_passed_over(
    place: str,
    damage: str,
    places: SimpleNamespace,
    part: Part,
    server: Server,
    published: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other projects, forks of `lpips` and its versions 0.0 and 0.1 use the same names for different files."""
    spec = SimpleNamespace(origin=str(places.package / "__init__.py"))
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: spec if name == "lpips" else None)
    content = published[:-100] if damage == "cut" else published[:-1] + b"?"
    path = put({"torch": places.torch, "package": places.package / "weights" / "v0.1"}[place] / FILE, content)
    assert path not in store.candidates(part)
    assert store.passed_over(part) == [path]
    assert same(store.obtain(part)[0])
    assert len(server.requests) == 1
    assert path.read_bytes() == content
    (places.cache / "mini.safetensors").unlink()
    put(path, published)
    assert store.passed_over(part) == []
    assert same(store.obtain(part)[0])
    assert len(server.requests) == 1


def test_a_failed_download_names_the_file_that_was_passed_over(places: SimpleNamespace, part: Part) -> None:
    assert part.official is not None
    unreachable = replace(part, official=replace(part.official, url=f"http://127.0.0.1:9/{FILE}"))
    path = put(places.torch / FILE, b"another file")
    with pytest.raises(WeightsNotFound, match=rf"on this machine \({path} is another file: its sha256 differs\), and"):
        store.obtain(unreachable)


@pytest.mark.parametrize("origin", [None, "namespace"])
def test_what_is_called_lpips_but_is_no_package(
    origin: str | None, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> SimpleNamespace:
        if origin is None:
            raise ValueError(f"{name}.__spec__ is None")  # as Python says of modules without one
        return SimpleNamespace(origin=None)

    monkeypatch.setattr(store.importlib.util, "find_spec", find_spec)
    assert store.locate(part) is None


def test_identify(part: Part, published: bytes) -> None:
    assert store.identify(published, [part]) is part
    for other in (published[:-1] + b"?", b""):
        assert store.identify(other, [part]) is None


def test_a_file_must_hold_what_it_is_named_for(places: SimpleNamespace, part: Part) -> None:
    """Else a renamed backbone would pass for heads, and the distance would be unweighted in silence."""
    heads = {"heads": (np.ones(4, np.float32), np.ones(3, np.float32))}
    native.write(places.argument / "mini.safetensors", PARAMETERS, with_heads(MINI))
    with pytest.raises(WeightsMismatch, match="holds backbone alone, but 'mini' stands for heads"):
        store.obtain(replace(part, holds=("heads",)), places.argument)
    native.write(places.argument / "mini.safetensors", heads, with_heads(MINI))
    with pytest.raises(WeightsMismatch, match="holds heads alone, but 'mini' stands for backbone"):
        store.obtain(part, places.argument)
    native.write(places.argument / "mini.safetensors", PARAMETERS | heads, with_heads(MINI))
    for group in ("backbone", "heads"):
        assert store.obtain(replace(part, holds=(group,)), places.argument)[0].keys() == {"backbone", "heads"}


# Downloads.


def test_download_end_to_end(
    places: SimpleNamespace, part: Part, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters, metadata = store.obtain(part)
    assert same(parameters)
    assert metadata["source"] == server.url
    assert below(places.cache) == ["mini.safetensors"]
    assert f"downloading {server.url}" in capsys.readouterr().err
    assert same(store.obtain(part)[0])
    assert server.requests == [f"/models/{FILE}"]


def test_corrupted_download(places: SimpleNamespace, part: Part, server: Server, published: bytes) -> None:
    server.content = published[:5000] + bytes([published[5000] ^ 1]) + published[5001:]
    with pytest.raises(WeightsCorrupt, match="is not the expected file"):
        store.obtain(part)
    assert below(places.cache) == []
    server.content = published
    assert same(store.obtain(part)[0])


def test_cut_off_download_goes_on_later(places: SimpleNamespace, part: Part, server: Server, published: bytes) -> None:
    server.cut = len(published) // 2
    with pytest.raises(WeightsNotFound, match=r"the download failed: .*could not be downloaded"):
        store.obtain(part)
    assert "mini.safetensors" not in below(places.cache)
    server.cut = None
    assert same(store.obtain(part)[0])
    assert below(places.cache) == ["mini.safetensors"]


def test_no_network_says_what_to_do(places: SimpleNamespace, part: Part) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/models/{FILE}"
        assert part.official is not None
        official = replace(part.official, url=url)
        with pytest.raises(WeightsNotFound) as caught:
            store.obtain(replace(part, official=official))
    message = str(caught.value)
    assert message.startswith("no weights for 'mini' on this machine, and the download failed: ")
    for needed in (url, str(places.torch), official.sha256, f"as v0.1/{FILE}, in", "$RLPIPS_WEIGHTS_DIR"):
        assert needed in message
    assert below(places.cache) == []


def test_cache_that_cannot_be_written(
    places: SimpleNamespace, part: Part, server: Server, published: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An official file elsewhere is enough; only a download needs room, and says so."""
    blocked = put(places.cache.parent / "blocked", b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(WeightsNotFound, match=r"could not be saved as .*blocked") as caught:
        store.obtain(part)
    assert str(places.torch) in str(caught.value)
    put(places.torch / FILE, published)
    assert same(store.obtain(part)[0])
    assert blocked.read_bytes() == b""
    assert server.requests == []


def test_what_cannot_be_kept_is_not_downloaded_again(
    places: SimpleNamespace, part: Part, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk is full after the download, the official file stays for the next time."""
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(native, "write", fail)
        assert same(store.obtain(part)[0])
    assert below(places.cache) == [f"downloads/{FILE}"]
    assert same(store.obtain(part)[0])
    assert below(places.cache) == ["mini.safetensors"]
    assert len(server.requests) == 1


def test_many_threads_download_once(places: SimpleNamespace, part: Part, server: Server) -> None:
    server.delay = 0.2
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: store.obtain(part), range(8)))
    assert all(same(parameters) for parameters, _ in results)
    assert len(server.requests) == 1
    assert below(places.cache) == ["mini.safetensors"]


def test_another_process_that_downloads_is_waited_for(
    places: SimpleNamespace, part: Part, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    """A lock held elsewhere delays the download, which is then not needed any more."""
    assert part.official is not None
    with ThreadPoolExecutor(1) as pool:
        with locked(places.cache / "downloads" / f"{FILE}.{part.official.sha256[:8]}.lock"):
            waiting = pool.submit(store.obtain, part)
            text = ""
            while f"which downloads {server.url}" not in text:
                assert not waiting.done()
                text += capfd.readouterr().err
            native.write(places.cache / "mini.safetensors", PARAMETERS, with_heads(MINI))
        assert same(waiting.result()[0])
    assert server.requests == []


def test_a_download_that_hangs_keeps_no_other_file_waiting(
    places: SimpleNamespace, part: Part, server: Server, published: bytes
) -> None:
    other = Official(FILE, f"{server.url}.other", "0" * 64, 1, "MIT", "Nobody: Nothing, 2024")
    with (
        downloading(other.url, sha256=other.sha256, size=1, folder=places.cache / "downloads"),
        ThreadPoolExecutor(1) as pool,
    ):
        assert same(pool.submit(store.obtain, part).result(timeout=60)[0])


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_without_locks_it_works_too(number: int, part: Part, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert same(store.obtain(part)[0])
    assert len(server.requests) == 1


# Tracing.


@pytest.fixture
def squeeze(places: SimpleNamespace) -> Path:
    """A folder with drawn weights of a metric."""
    random = np.random.default_rng(0)
    shapes = with_heads(SQUEEZE).pytorch_shapes
    tensors = {name: np.abs(random.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
    parameters = from_pytorch(tensors, with_heads(SQUEEZE), "drawn weights")
    for name, half in (("squeeze", "backbone"), ("lpips-squeeze", "heads")):
        native.write(places.argument / f"{name}.safetensors", {half: parameters[half]}, with_heads(SQUEEZE))
    return places.argument


def test_loading_under_tracing_leaks_nothing(squeeze: Path, checking_leaks) -> None:
    loaded = []

    def total(scale: jax.Array) -> jax.Array:
        metric = rl.load("lpips-squeeze", weights_dir=squeeze)
        loaded.append(metric)
        return scale * sum(head.sum() for head in metric.parameters["heads"])

    with checking_leaks():
        result = jax.jit(jax.grad(total))(1.0)
    (metric,) = loaded
    for leaf in jax.tree.leaves(metric.parameters):
        assert isinstance(np.asarray(leaf), np.ndarray)  # which a tracer would refuse
    np.testing.assert_allclose(result, sum(head.sum() for head in metric.parameters["heads"]), rtol=1e-6)
    assert metric.signature == rl.load("lpips-squeeze", weights_dir=squeeze).signature
