"""BAPPS as a TensorFlow data set (`tensorflow_datasets`), built and read without TensorFlow.

    directory = prepare("data", "twoafc")
    source = RecordSource(directory, "val_cnn")             # training.data.sources

Records are array records, in the order of the archive's file names. An example of `twoafc` has `reference`, `p0` and
`p1`, PNG files as they are in the archive, `judgment` and `name`; one of `jnd` has `p0`, `p1`, `same` and `name`.
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
"""What the archive's folders are called in an example."""
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
    """Builds BAPPS, unless it is there already. One process at a time; others wait for its end, and then read.

    They wait for a lock on the file `bapps.lock` in `data_dir`, as `rlpips_jax.files.locks` describes it.

    The room needed, for the time it takes, is about three times the archives' size; they have 6.6 GB together. A
    process that is killed outright leaves a folder `incomplete.*`, which is never read and may be removed.

    A first download records the archives' hashes, which later ones must have (`training.data.bapps.archives`).

    Args:
        data_dir: of all data sets; downloads go to `downloads/bapps` in it, and may be removed afterwards.
        config: "twoafc" or "jnd".
        manual_dir: a folder with the archives, or with what they hold; nothing is downloaded then, and the splits of
            archives (or extracted categories) that are not there are left out.
        base_url: where the archives are; by default `$RLPIPS_BAPPS_URL`, or their makers' site.
        archives: of the configuration's archives, those wanted; by default all. `["twoafc_val"]` spares whoever
            evaluates the training set. Splits of others are left out.

    Returns:
        The folder of the records, for `training.data.sources.RecordSource`.

    Raises:
        TripletsError: no such configuration or archive, one that cannot be had, has changed or is damaged, a file
            without its counterpart, or a judgment that is not one number from 0 to 1; names the file. Nothing
            half-built is left.
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
        # Another process may have built it meanwhile, which a builder notices when it is made.
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
    """Builder of BAPPS; `prepare` is the way to it.

    Args:
        base_url: as in `prepare`.
        archives: as in `prepare`.
        options: of `tfds.core.DatasetBuilder`: `data_dir`, `config`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012  (as the base class has it)
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
            # Only now: what could not be built should not bind later downloads.
            for path in self._files.values():
                record(path)

    def _by_archive(self, words: str) -> str:
        """Names files by the archives that hold them: where they were unpacked is gone when the message is read."""
        for archive, path in self._files.items():
            words = words.replace(os.fspath(self._unpacked / archive.name), os.fspath(path))
        return words

    @property
    def _unpacked(self) -> Path:
        """Within the folder that takes the data set's name at the end, and vanishes where the end is not reached."""
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
        """The extracted folder of an archive, or None if it is not to be had."""
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
    """A file's bytes, once they are known to give an image that can be scored."""
    height, width, _ = read_uint8(path).shape
    content = path.read_bytes()
    if not content.startswith(SIGNATURE):
        raise TripletsError(f"{path} is no PNG file; BAPPS has 256x256 PNG files")
    if height != width or height < BAPPS_SIZE:
        raise TripletsError(f"{path} is {height}x{width} pixels; BAPPS has 256x256 PNG files")
    return content


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps stdout for results, whatever the base class would print there, and its bars off what is no terminal."""
    terminal = sys.stderr.isatty()
    if not terminal:
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if not terminal:
            tfds.enable_progress_bar()
