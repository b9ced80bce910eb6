"""A small BAPPS in the layout of the real one, and a server that has its archives."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

COUNTS = {
    "2afc/train": {"traditional": 5, "cnn": 4, "mix": 3},
    "2afc/val": {"traditional": 3, "cnn": 2, "superres": 1, "deblur": 1, "color": 1, "frameinterp": 1},
    "jnd/val": {"traditional": 3, "cnn": 2},
}
ARCHIVES = {"twoafc_train": ("2afc", "train"), "twoafc_val": ("2afc", "val"), "jnd": ("", "jnd")}
"""The folder that `tar` was called in, and what it was given, as the archives' makers did."""


def draw(*where: object) -> np.ndarray:
    """A patch enlarged to 256x256, drawn from its path."""
    seed = int.from_bytes(hashlib.sha256("/".join(map(str, where)).encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8).repeat(4, axis=0).repeat(4, axis=1)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extracted folders; tests must not change them."""
    root = tmp_path_factory.mktemp("bapps")
    for portion, categories in COUNTS.items():
        images, judgments = (("p0", "p1"), "same") if portion.startswith("jnd") else (("ref", "p0", "p1"), "judge")
        for category, count in categories.items():
            for part in (*images, judgments):
                (root / portion / category / part).mkdir(parents=True)
            for index in range(count):
                for part in images:
                    # The fine grain makes resizing with and without antialiasing differ.
                    image = draw(portion, category, part, index)
                    image[::2, 1::2] //= 2
                    Image.fromarray(image).save(root / portion / category / part / f"{index:06d}.png")
                judgment = np.array([(index % 5) / 4], np.float32)
                np.save(root / portion / category / judgments / f"{index:06d}.npy", judgment)
    return root


Change = bytes | tarfile.TarInfo | None


def _pack(path: Path, root: Path, name: str, changes: Mapping[str, Change] | None = None) -> None:
    """Writes an archive of a part of `root`; changes take files out, replace their bytes, or add members."""
    folder, given = ARCHIVES[name]
    changes = changes or {}
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for file in sorted((root / folder / given).rglob("*")):
            member = file.relative_to(root / folder).as_posix()
            if member not in changes:
                archive.add(file, member, recursive=False)
        for member, change in changes.items():
            if isinstance(change, tarfile.TarInfo):
                archive.addfile(change)
            elif change is not None:
                info = tarfile.TarInfo(member)
                info.size = len(change)
                archive.addfile(info, io.BytesIO(change))


@pytest.fixture(scope="session")
def pack() -> Callable[..., None]:
    """Writes an archive: `pack(path, root, "twoafc_val", {"val/cnn/judge/000000.npy": None})` lacks a judgment."""
    return _pack


@pytest.fixture(scope="session")
def archives(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three archives; tests must not change them."""
    folder = tmp_path_factory.mktemp("archives")
    for name in ARCHIVES:
        _pack(folder / f"{name}.tar.gz", tree, name)
    return folder


class Server(ThreadingHTTPServer):
    """Serves `folder` and keeps the list of what was asked for."""

    daemon_threads = True
    folder: Path
    asked: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        server = cast(Server, self.server)
        self.directory = str(server.folder)
        server.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def server(archives: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.folder, server.asked = archives, []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def prepared(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets in which "twoafc" is built from extracted folders."""
    from training.data.bapps.bapps_dataset_builder import prepare

    data = tmp_path_factory.mktemp("data")
    prepare(data, "twoafc", manual_dir=tree)
    return data
