"""Finds the weights of a part: in folders, in caches, then by the official download.

Search order: the `weights_dir` argument, `$RLPIPS_WEIGHTS_DIR`, this package itself (for the metrics it
ships), the user cache (`$XDG_CACHE_HOME/rlpips_jax` or the platform's), PyTorch's own cache
(`$TORCH_HOME/hub/checkpoints`), an installed `lpips` package, the download. A folder may hold native files
(`alex.safetensors`) or official ones under their official names. An official file counts only if its sha256
is right: in a folder that the user named, another file of that name is an error; in PyTorch's cache and in the `lpips`
package, where other programs keep theirs under the same names, it is passed over. The tensors of an official file are
kept in the user cache.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rlpips_jax.errors import WeightsCorrupt, WeightsMismatch, WeightsNotFound
from rlpips_jax.files.regular import read_regular
from rlpips_jax.weights import native
from rlpips_jax.weights.download import downloading, sha256_of
from rlpips_jax.weights.parameters import Parameters, from_pytorch, needed_by
from rlpips_jax.weights.pytorch import read_checkpoint
from rlpips_jax.weights.registry import BACKBONE, Official, Part

SHIPPED = Path(__file__).parent.parent / "data"
WEIGHTS_DIR = "RLPIPS_WEIGHTS_DIR"


def cache_folder() -> Path:
    """Where this library keeps weights unless told otherwise."""
    import pooch

    return Path(pooch.os_cache("rlpips_jax"))


def torch_cache_folder() -> Path:
    """Where PyTorch keeps its downloads."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    return Path(os.path.expanduser(home), "hub", "checkpoints")


def obtain(part: Part, weights_dir: str | os.PathLike[str] | None = None) -> tuple[Parameters, dict[str, str]]:
    """Parameters and metadata of a part, from the first place that has it.

    Raises:
        WeightsNotFound: nowhere, and the download is impossible; says what to put where.
        WeightsCorrupt: a file is there, but damaged.
        WeightsMismatch: a file is there, but of another network.
    """
    path = locate(part, weights_dir)
    if path is not None:
        return read(path, part)
    if part.official is not None:
        return fetch(part)
    if part.converted:
        raise WeightsNotFound(
            f"no weights for '{part.name}' on this machine, and no download: 'python -m convert --name {part.name} "
            "--checkpoint FILE --out FOLDER' makes them of a file that you have, and weights_dir=FOLDER finds them "
            "(docs/embeddings.md says which files there are)"
        )
    raise WeightsNotFound(
        f"no weights for '{part.name}', though it ships with this library: {SHIPPED} lacks "
        f"{part.name}{native.SUFFIX}, so the installation is incomplete; install rlpips-jax again"
    )


def locate(part: Part, weights_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Path of the first file that holds a part, without downloading; None if no place has one.

    Raises:
        WeightsNotFound: what was named as a folder, by the argument or the environment, is not one.
    """
    return next((path for path in candidates(part, weights_dir) if path.is_file()), None)


def candidates(part: Part, weights_dir: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Every path where a part may lie, in search order.

    Raises:
        WeightsNotFound: what was named as a folder, by the argument or the environment, is not one.
    """
    named = {"weights_dir": weights_dir, f"${WEIGHTS_DIR}": os.environ.get(WEIGHTS_DIR)}
    folders = [_existing(origin, folder) for origin, folder in named.items() if folder]
    for folder in folders:
        yield folder / (part.name + native.SUFFIX)
        if part.official:
            yield folder / part.official.path
    if part.shipped:
        yield SHIPPED / (part.name + native.SUFFIX)
    yield _kept(part)
    if part.official:
        yield from (path for path in _shared_places(part.official) if _is_official(path, part.official))


def passed_over(part: Part) -> list[Path]:
    """Files under the official name of a part, where other programs keep theirs, that are not the official one."""
    official = part.official
    if official is None:
        return []
    return [path for path in _shared_places(official) if path.is_file() and not _is_official(path, official)]


def read(path: Path, part: Part) -> tuple[Parameters, dict[str, str]]:
    """Parameters and metadata from a native file, or from an official one, which then enters the cache.

    Raises:
        WeightsCorrupt: the file is damaged, or under an official name but not the official one.
        WeightsMismatch: the file is of another network, or lacks what the part stands for.
    """
    if path.suffix == native.SUFFIX:
        parameters, metadata = native.read(path, part.layout)
        if not set(part.holds) <= parameters.keys():
            raise WeightsMismatch(
                f"{path} holds {' and '.join(parameters)} alone, but '{part.name}' stands for "
                f"{' and '.join(part.holds)}: was the file renamed?"
            )
        if metadata.get("metric", part.name) != part.name:
            raise WeightsMismatch(
                f"{path} holds the metric '{metadata['metric']}', not '{part.name}': was the file renamed? "
                "Pooling and version may differ; give it back its name, or load it by its path"
            )
        if (
            part.official
            and metadata.get("source_sha256") == part.official.sha256
            and is_official(part, metadata) is False
        ):
            raise WeightsCorrupt(
                f"{path} says it was made from {part.official.url}, but its parameters are not those of that file: "
                "it is forged; delete it and get it again"
            )
        return parameters, metadata
    official = part.official
    assert official is not None, f"{part.name} has no official file, so {path} cannot be one"
    parameters, metadata = _extract(path, part, official)
    with contextlib.suppress(OSError):  # Without a writable cache it is only read.
        native.write(_kept(part), parameters, part.layout, **metadata)
    return parameters, metadata


def is_official(part: Part, metadata: Mapping[str, str]) -> bool | None:
    """Whether the parameters of a native file, read by `read`, are those that were published; None if nobody knows."""
    return None if part.parameters_sha256 is None else metadata["parameters_sha256"] == part.parameters_sha256


def fetch(part: Part) -> tuple[Parameters, dict[str, str]]:
    """Downloads a part's official file, keeps the tensors that the metric needs in the cache, and returns them.

    Of several threads or processes one downloads, and the others read what it kept.

    Raises:
        WeightsNotFound: the download is impossible; says what to put where.
        WeightsCorrupt: the server delivers another file.
    """
    official = part.official
    assert official is not None, f"{part.name} has no download"
    folder = cache_folder() / "downloads"
    with downloading(official.url, sha256=official.sha256, size=official.size, folder=folder) as download:
        if _kept(part).is_file():
            return read(_kept(part), part)
        try:
            path = download()
        except WeightsNotFound as error:
            others = "".join(f" ({path} is another file: its sha256 differs)" for path in passed_over(part))
            raise WeightsNotFound(
                f"no weights for '{part.name}' on this machine{others}, and the download failed: {error}; fetched by "
                f"hand, it may also lie in {torch_cache_folder()}, or, as {official.path}, in a folder passed as "
                f"weights_dir or named by ${WEIGHTS_DIR}"
            ) from None  # It says all that its causes say.
        parameters, metadata = _extract(path, part, official)
        with contextlib.suppress(OSError):  # Without room for it, the official file stays for the next time.
            native.write(_kept(part), parameters, part.layout, **metadata)
            path.unlink()
        return parameters, metadata


def not_official(path: Path, found: str, official: Official) -> str:
    """The message about a file under an official name whose sha256, `found`, is not the official one."""
    return (
        f"{path} is not the official file: its sha256 is {found}, not {official.sha256}; delete it and fetch it "
        f"again from {official.url} (your own weights go through 'python -m convert')"
    )


def identify(content: bytes, parts: Iterable[Part]) -> Part | None:
    """The one of some parts whose official file has this content, by its sha256."""
    found = hashlib.sha256(content).hexdigest()
    return next((part for part in parts if part.official and part.official.sha256 == found), None)


def provenance(official: Official) -> dict[str, str]:
    """Metadata of a native file that describe the official file it was made from."""
    return {
        "source": official.url,
        "source_sha256": official.sha256,
        "licence": official.licence,
        "citation": official.citation,
    }


def _extract(path: Path, part: Part, official: Official) -> tuple[Parameters, dict[str, str]]:
    """The needed tensors of an official file, of the very bytes whose sha256 is right."""
    content = read_regular(path)
    if (found := hashlib.sha256(content).hexdigest()) != official.sha256:
        raise WeightsCorrupt(not_official(path, found, official))
    needed = read_checkpoint(path, keep=needed_by([part.backbone]), content=content)
    metric = {} if part.holds == BACKBONE else {"metric": part.name}
    return from_pytorch(needed, part.layout, str(path)), provenance(official) | metric


def _kept(part: Part) -> Path:
    return cache_folder() / (part.name + native.SUFFIX)


def _existing(origin: str, folder: str | os.PathLike[str]) -> Path:
    path = Path(os.path.expanduser(folder))
    if not path.is_dir():
        raise WeightsNotFound(f"{origin} {os.fspath(folder)!r} is not a folder")
    return path


def _shared_places(official: Official) -> Iterator[Path]:
    """Where other programs keep files of the official name: PyTorch's cache, and an installed `lpips` package."""
    yield torch_cache_folder() / official.file_name
    try:
        package = importlib.util.find_spec("lpips")
    except ValueError:  # The module was imported by other means than a file.
        return
    if package and package.origin:
        yield Path(package.origin).parent / "weights" / official.path


def _is_official(path: Path, official: Official) -> bool:
    try:
        state = path.stat()
        return state.st_size == official.size and _known_sha256(path, state.st_mtime_ns) == official.sha256
    except OSError:
        return False


@functools.lru_cache
def _known_sha256(path: Path, modified: int) -> str:
    """The hash of a file as it was at a time: several metrics look for the same large file."""
    return sha256_of(path)
