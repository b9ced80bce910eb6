"""BAPPS as a TensorFlow data set (`tensorflow_datasets`), built and read without TensorFlow itself.

    directory = prepare("data", "twoafc")
    source = RecordSource(directory, "val_cnn")             # training.data.sources

Records are array records, in the order of the file names in the archive. An example of `twoafc` has `reference`, `p0`
and `p1` (the unchanged PNG files of the archive), `judgment` and `name`; an example of `jnd` has `p0`, `p1`, `same` and
`name`.
"""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rlpips_jax.errors import ImageFileError, TripletsError
from rlpips_jax.evaluation.patches import read_uint8
from rlpips_jax.evaluation.triplet_files import BAPPS_SIZE, JudgedFiles, judged_files, read_fraction
from rlpips_jax.files.locks import locked
from training.data.bapps.archives import ARCHIVES, Archive, fetch, find, record, unpack

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FEATURES = {"ref": "reference", "p0": "p0", "p1": "p1", "judge": "judgment", "same": "same"}
"""Maps the folders of the archive to the fields of an example."""
CHECKED_AT_ONCE = 64
LOCK = "bapps.lock"


def prepare(
    data_dir: str | os.PathLike[str],
    config: str = "twoafc",
    *,
    manual_dir: str | os.PathLike[str] | None = None,
    base_url: str | None = None,
    archives: Sequence[str] | None = None,
) -> Path:
    """Builds BAPPS unless it has been built. One process builds; others wait for it.

    They wait for the lock `bapps.lock` in `data_dir` (see `rlpips_jax.files.locks`).

    Building temporarily needs about three times the size of the archives, which is 6.6 GB in total. A process that is
    killed leaves a folder `incomplete.*`, which is never read and may be removed.

    The first download records the hashes of the archives; later downloads must match them
    (`training.data.bapps.archives`).

    Args:
        data_dir: the folder of all data sets; downloads go to its `downloads/bapps` and may be removed afterwards.
        config: "twoafc" or "jnd".
        manual_dir: a folder with the archives, or with their extracted contents; nothing is downloaded then. Splits of
            missing archives (or categories) are left out.
        base_url: URL of the folder of the archives; by default `$RLPIPS_BAPPS_URL`, or the authors' site.
        archives: names of the archives to use; by default all of the configuration. `["twoafc_val"]` is enough for an
            evaluation. Splits of other archives are left out.

    Returns:
        The folder of the records, for `training.data.sources.RecordSource`.

    Raises:
        TripletsError: a configuration or archive does not exist, an archive is unavailable, changed or damaged, a file
            has no counterpart, or a judgment is not one number from 0 to 1. The message names the file. No
            partial data set remains.
        ImageFileError: an image cannot be read.
    """
    if config not in ARCHIVES:
        raise TripletsError(f"BAPPS has no configuration {config!r}; it has {', '.join(ARCHIVES)}")
    builder = Builder(data_dir=os.fspath(data_dir), config=config, base_url=base_url, archives=archives)
    if builder.is_prepared():
        return Path(builder.data_dir)
    with locked(
        Path(data_dir) / LOCK, waiting=lambda holder: _say(f"waiting for {holder}, which builds in {data_dir}")
    ):
        # Another process may have built it in the meantime; only a new builder notices that.
        builder = Builder(data_dir=os.fspath(data_dir), config=config, base_url=base_url, archives=archives)
        if not builder.is_prepared():
            _say(f"building {builder.data_dir}")
            with _quietly():
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(
                        manual_dir=None if manual_dir is None else os.fspath(manual_dir)
                    )
                )
    return Path(builder.data_dir)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Builder(tfds.core.GeneratorBasedBuilder):
    """The builder of BAPPS; call `prepare` instead.

    Args:
        base_url: as in `prepare`.
        archives: as in `prepare`.
        options: options of `tfds.core.DatasetBuilder`: `data_dir`, `config`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012  (as in the base class)
        tfds.core.BuilderConfig(name="twoafc", description="Which of two patches is closer to a reference."),
        tfds.core.BuilderConfig(name="jnd", description="Whether two patches look the same."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The archives twoafc_train.tar.gz, twoafc_val.tar.gz and jnd.tar.gz, or their folders."
    )

    def __init__(self, *, base_url: str | None = None, archives: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(**{"file_format": "array_record", **options})
        self._base_url = base_url
        self._archives = self._wanted(archives)
        self._manual_dir: Path | None = None

    def _wanted(self, names: Sequence[str] | None) -> list[Archive]:
        there = ARCHIVES[str(self.builder_config_name)]
        unknown = set(names or ()) - {archive.name for archive in there}
        if unknown or (names is not None and not names):
            raise TripletsError(
                f"archives are {list(names or ())}; {self.builder_config_name} is made of "
                f"{', '.join(archive.name for archive in there)}: give one or more, or None for all"
            )
        return [archive for archive in there if names is None or archive.name in names]

    def _info(self) -> tfds.core.DatasetInfo:
        first = ARCHIVES[str(self.builder_config_name)][0]
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        features: dict[str, Any] = {FEATURES[part]: image for part in first.images}
        features |= {FEATURES[first.judgments]: np.float32, "name": tfds.features.Text()}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            homepage="https://richzhang.github.io/PerceptualSimilarity/",
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        manual = download_config.manual_dir
        self._manual_dir = None if manual is None else Path(manual).expanduser()
        self._files: dict[Archive, Path] = {}
        try:
            super()._download_and_prepare(dl_manager, download_config)
        except (TripletsError, ImageFileError) as error:
            raise type(error)(self._by_archive(str(error))) from error
        finally:
            shutil.rmtree(self._unpacked, ignore_errors=True)
        if self._manual_dir is None:
            # Only now, so that the hash of an archive that could not be built does not bind later downloads.
            for path in self._files.values():
                record(path)

    def _by_archive(self, words: str) -> str:
        """Replaces temporary paths in a message by the archive, because the unpacked files are removed."""
        for archive, path in self._files.items():
            words = words.replace(os.fspath(self._unpacked / archive.name), os.fspath(path))
        return words

    @property
    def _unpacked(self) -> Path:
        """Lies in the folder that is renamed to the data set when it is complete, and removed if it is not."""
        return Path(self.data_dir) / "unpacked"

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        splits: dict[str, Iterator[tuple[int, dict[str, Any]]]] = {}
        for archive in self._archives:
            portion = self._portion(archive, Path(dl_manager.download_dir) / "bapps")
            for split, category in archive.splits.items():
                if portion is not None and (portion / category).is_dir():
                    files = judged_files(portion / category, images=archive.images, judgments=archive.judgments)
                    splits[split] = self._generate_examples(archive, files)
        if not splits:
            raise TripletsError(
                f"{self._manual_dir} has none of {', '.join(archive.file for archive in self._archives)}, nor what "
                "they hold (val/cnn/judge and so on)"
            )
        return splits

    def _portion(self, archive: Archive, downloads: Path) -> Path | None:
        """Returns the extracted folder of an archive, or None if `manual_dir` does not have it."""
        if self._manual_dir is None:
            path = fetch(archive, downloads, self._base_url)
        else:
            path = find(archive, self._manual_dir)
            if path is None or path.is_dir():
                return path
        self._files[archive] = path
        return unpack(path, archive, self._unpacked / archive.name)

    def _generate_examples(self, archive: Archive, files: list[JudgedFiles]) -> Iterator[tuple[int, dict[str, Any]]]:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(files), CHECKED_AT_ONCE):
                examples = pool.map(lambda one: _example(archive, one), files[start : start + CHECKED_AT_ONCE])
                yield from enumerate(examples, start)


def _example(archive: Archive, files: JudgedFiles) -> dict[str, Any]:
    example: dict[str, Any] = {"name": files.judgment.stem}
    for part, path in zip(archive.images, files.images, strict=True):
        example[FEATURES[part]] = _checked_png(path)
    example[FEATURES[archive.judgments]] = np.float32(read_fraction(files.judgment))
    return example


def _checked_png(path: Path) -> bytes:
    """Returns the bytes of a file after checking that it is a PNG image of the right size."""
    height, width, _ = read_uint8(path).shape
    content = path.read_bytes()
    if not content.startswith(SIGNATURE):
        raise TripletsError(f"{path} is not a PNG file; BAPPS has 256x256 PNG files")
    if height != width or height < BAPPS_SIZE:
        raise TripletsError(f"{path} is {height}x{width} pixels; BAPPS has 256x256 PNG files")
    return content


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses what the base class prints to stdout, and its progress bars unless stderr is a terminal."""
    terminal = sys.stderr.isatty()
    if not terminal:
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if not terminal:
            tfds.enable_progress_bar()
