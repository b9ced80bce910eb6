"""Arguments that several subcommands share."""

import importlib
import inspect
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from rlpips_jax.distances.named import DEFAULT
from rlpips_jax.distances.protocol import Metric, is_random
from rlpips_jax.errors import EnsembleError, ImageError, MetricError, RlpipsError
from rlpips_jax.files.reading import Picture, Reading
from rlpips_jax.loading import PREFIX, load, under_transformations
from rlpips_jax.scoring.pairs import check_files as check_files
from rlpips_jax.weights import native

UNSAID = tyro.conf.arg(help_behavior_hint="")
"""Of options whose help says all: no default is shown."""

Flag = Annotated[bool, UNSAID]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Side = Annotated[str | None, tyro.conf.arg(metavar="PX", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """Which metric."""

    metric: Annotated[str, tyro.conf.arg(metavar="NAME")] = DEFAULT
    """Name of a metric ('rlpips weights list' shows all), path of a .safetensors file, or your own metric as
    PACKAGE.MODULE:NAME, where NAME is a metric or a function without arguments that returns one."""

    weights_dir: Folder = None
    """Folder to look for weights in first."""

    def load(self) -> Metric:
        """The metric, which must not be random.

        Raises:
            EnsembleError: it is an ensemble.
        """
        metric = self.load_any()
        if is_random(metric):
            raise EnsembleError(
                f"{self.metric} is random; 'rlpips distance', compare, evaluate, average and geodesic take it, and in "
                "Python rlpips_jax.distance and estimate do"
            )
        return metric

    def load_any(self) -> Any:
        """The metric, random or not."""
        return load_metric(self.metric, self.weights_dir)


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How image files are read."""

    background: Annotated[str | None, tyro.conf.arg(metavar="COLOUR", help_behavior_hint="(default: white)")] = None
    """Colour to blend transparent pixels with: white, black, '#ff8000'; or ignore, to drop alpha as lpips does."""

    resize: Side = None
    """Resize each image, bicubic: 256 (the shorter side) or 640x480 (width and height)."""

    crop: Side = None
    """Then cut from its middle: 256 (a square) or 640x480."""

    bits: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 16)")] = None
    """Bits that files of 16 bits per channel use: with 12, 4095 is white."""

    max_pixels: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 89478485)")] = None
    """Largest picture that is read; more takes the memory that it needs."""

    @property
    def reading(self) -> Reading:
        """The same, for functions that read.

        Raises:
            ImageError: an option makes no sense.
        """
        return Reading(
            background=self.background,
            bits=self.bits,
            max_pixels=self.max_pixels,
            resize=_side("--resize", self.resize),
            crop=_side("--crop", self.crop),
        )

    def image_of(self, path: Path) -> Picture:
        """An image that the user names; a pipe too."""
        return self.reading.image(path, pipes=True)


def _side(option: str, text: str | None) -> int | tuple[int, int] | None:
    """Pixels: a number, or height and width of `WIDTHxHEIGHT`."""
    if text is None:
        return None
    numbers = text.split("x")
    if not 1 <= len(numbers) <= 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ImageError(f"{option} must be a number of pixels, or width and height such as 640x480, got {text}")
    width, height = int(numbers[0]), int(numbers[-1])
    return width if len(numbers) == 1 else (height, width)


UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def memory_size(option: str, text: str | None) -> int | None:
    """Bytes: a number and one of `UNITS`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", text)
    if not found or found[2] not in UNITS:
        raise MetricError(f"{option} must be a number of bytes, such as 500MiB or 2GiB, got {text}")
    return int(float(found[1]) * UNITS[found[2]])


def load_metric(name: str, weights_dir: Path | None = None) -> Any:
    """The metric that a user names by `--metric` or the like, random or not.

    Args:
        name: of a metric of this library, path of a weight file, or `package.module:name` of a metric or of a function
            without arguments that returns one; any of them may follow "ensemble:".
        weights_dir: folder to look for weights in first.

    Raises:
        MetricError: the name stands for no metric; says what is missing.
        RlpipsError: JAX has no device, or the metric cannot be loaded (see `rlpips_jax.load`).
    """
    if problem := device_problem():
        raise RlpipsError(problem)
    place = name.removeprefix(PREFIX)
    if ":" not in place or place.endswith(native.SUFFIX):
        return load(name, weights_dir=weights_dir)
    metric = _imported(place)
    return metric if place == name else under_transformations(metric)


def _imported(place: str) -> Any:
    """The metric at `package.module:name`; modules are also looked for in the current directory."""
    module_name, _, name = place.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise MetricError(f"the metric {place} should be PACKAGE.MODULE:NAME, such as my_metrics:blurred")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # The module is there, but one that it imports is not.
        raise MetricError(
            f"the metric {place}: there is no module {error.name}, neither installed nor in {os.getcwd()}"
        ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise MetricError(f"the metric {place}: {module_name} has no {name}")
        found = getattr(found, part)
    # A class has the members of its instances, so it looks like a metric.
    if callable(found) and (isinstance(found, type) or not _is_metric(found)):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise MetricError(f"the metric {place} must be callable without arguments: {error}") from None
        found = found()
    if not _is_metric(found):
        needed = ("name", "signature", "minimum_size", "features", "between")
        missing = ", ".join(member for member in needed if not hasattr(found, member))
        raise MetricError(
            f"the metric {place} gives an object of type {type(found).__name__}, which is not a metric: it has no "
            f"{missing} (see rlpips_jax.distances.protocol.Metric)"
        )
    if jax.tree_util.all_leaves([found]):
        raise MetricError(
            f"the metric {place} gives a metric that is not a pytree: register {type(found).__name__} by "
            "jax.tree_util.register_dataclass, or by register_static if it has no parameters"
        )
    return found


def _is_metric(found: object) -> bool:
    return isinstance(found, Metric) or is_random(found)


def device_problem() -> str | None:
    """Why JAX has no device to compute on; None if it has one."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        cause = str(error) or "the platform is not installed, or has no device"
        return "JAX finds no device to compute on" + (f" with JAX_PLATFORMS={asked}" if asked else "") + f": {cause}"
    return None
