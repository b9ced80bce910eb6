"""`rlpips doctor`: checks that this installation computes the right numbers, and explains what is wrong if not."""

import importlib.metadata
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from rlpips_jax import reports
from rlpips_jax._version import __version__
from rlpips_jax.backbones import Convolution, Pool, Sequential
from rlpips_jax.cli.options import Flag, Folder, device_problem
from rlpips_jax.distances.distance import distance
from rlpips_jax.errors import RlpipsError
from rlpips_jax.loading import load, recipes
from rlpips_jax.ops.unit_vectors import EPSILON
from rlpips_jax.weights import store
from rlpips_jax.weights.download import megabytes
from rlpips_jax.weights.inventory import availability, places
from rlpips_jax.weights.parameters import SCALE, SHIFT

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pillow", "safetensors", "pooch", "tyro")

VARIABLES = (
    "RLPIPS_WEIGHTS_DIR",
    "RLPIPS_COMPILATION_CACHE",
    "XDG_CACHE_HOME",
    "TORCH_HOME",
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
    "JAX_DISABLE_JIT",
    "JAX_DEBUG_NANS",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_COMPILATION_CACHE_DIR",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "CUDA_VISIBLE_DEVICES",
)
"""Variables that change where weights are searched for, or where or how numbers are computed."""

TOLERANCE = 1e-5
"""Largest allowed relative difference from the same distance computed in float64."""


class Check(NamedTuple):
    """The outcome of one check."""

    name: str
    passed: bool
    detail: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check this installation: versions, devices, weights, and the numbers themselves.

    The exit status is 0 if every check passes; otherwise it is 1, and each problem comes with advice.

    Examples:
        rlpips doctor
        rlpips doctor --json > report.json    # to attach to a report
    """

    weights_dir: Folder = None
    """Folder to search for weights first."""

    json: Flag = False
    """Print one JSON object."""

    def run(self) -> int:
        document: dict[str, Any] = {}

        def section(title: str, rows: list[tuple[str, str]]) -> None:
            document[title] = dict(rows)
            if not self.json:
                _section(title, rows)

        section("versions", [("rlpips-jax", __version__), ("python", sys.version.split()[0]), *_versions()])
        section("platform", [("system", platform.platform()), *_devices()])
        variables = [(name, os.environ[name]) for name in VARIABLES if name in os.environ]
        section("environment", variables)
        section("places", [(kind, _described(path)) for kind, path in places(self.weights_dir)])
        metrics = [(name, availability(recipe, self.weights_dir)) for name, recipe in recipes().items()]
        section(
            "metrics",
            [(name, f"{here.state:18}{'' if here.damage else here.places}".rstrip()) for name, here in metrics],
        )
        checks = [_check_cache(), *_check_devices()]
        # One bad file or folder can affect several metrics.
        for damage in dict.fromkeys(here.damage for _, here in metrics if here.damage):
            affected = [name for name, here in metrics if here.damage == damage]
            advice = f"until it is repaired {reports.few(affected)} cannot be loaded; run 'rlpips weights verify'"
            checks.append(Check("weights", False, damage, advice))
        checks += _check_numbers(self.weights_dir)
        problems = [check for check in checks if not check.passed]
        if self.json:
            found = [check._asdict() for check in checks]
            print(reports.json_text(document | {"checks": found, "healthy": not problems}))
            return 1 if problems else 0
        section(
            "checks",
            [(check.name, f"{'ok' if check.passed else 'FAILED':8}{check.detail}") for check in checks],
        )
        for problem in problems:
            print(f"\n{problem.name}: {problem.advice}")
        print(f"\n{len(problems)} of {len(checks)} checks failed" if problems else "\nhealthy")
        return 1 if problems else 0


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    rows = rows or [("nothing that matters is set", "")]
    width = max(len(name) for name, _ in rows)
    print(f"{title}\n" + "\n".join(f"  {name.ljust(width)}  {value}".rstrip() for name, value in rows))


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"


def _devices() -> Iterator[tuple[str, str]]:
    if device_problem():
        yield "devices", "none"
        return
    devices = jax.devices()
    yield "default backend", jax.default_backend()
    kinds = [device.device_kind for device in devices]
    yield "devices", ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    yield "64-bit mode", "on" if jax.config.read("jax_enable_x64") else "off"


def _described(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} (not there)"
    try:
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    except OSError as error:
        return f"{folder} ({error})"
    return f"{folder} ({len(files)} {'file' if len(files) == 1 else 'files'}, {megabytes(size)})"


def _check_cache() -> Check:
    folder = store.cache_folder()
    name = "cache"
    advice = (
        f"make {folder} writable, or set XDG_CACHE_HOME to a writable folder; until then downloaded "
        "weights cannot be kept"
    )
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    probe = nearest / f".rlpips-{secrets.token_hex(8)}"
    try:
        # Only an attempt tells whether a file can be made.
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        return Check(name, False, f"{folder} is not writable: {error}", advice)
    return Check(name, True, f"{folder} is writable", advice)


def _check_devices() -> Iterator[Check]:
    name = "devices"
    if problem := device_problem():
        yield Check(name, False, problem, "unset JAX_PLATFORMS, or install the plugin for the platform that it names")
        return
    backend = jax.default_backend()
    # It is right if the user asked for the CPU.
    asked = "cpu" in os.environ.get("JAX_PLATFORMS", "")
    if backend == "cpu" and not asked and shutil.which("nvidia-smi") and Path("/dev/nvidiactl").exists():
        advice = "to use the GPU: pip install 'rlpips-jax[cuda]'; to stay on the CPU: JAX_PLATFORMS=cpu"
        yield Check(name, False, "there is an NVIDIA GPU, but JAX computes on the CPU", advice)
    else:
        yield Check(name, True, f"JAX computes on {backend}", "")


def _check_numbers(weights_dir: Path | None) -> Iterator[Check]:
    """Checks properties that hold for every metric, on the one that needs no download."""
    if device_problem():
        return
    try:
        metric = load("lpips-tiny", weights_dir=weights_dir)
    except (RlpipsError, OSError) as error:
        yield Check("lpips-tiny", False, str(error), "until this is repaired no number can be checked")
        return
    x, y = _images()
    report = "please report this together with the output above: numbers from this machine cannot be trusted"
    started = time.perf_counter()
    value = float(distance(x, y, metric))
    first = time.perf_counter() - started
    started = time.perf_counter()
    float(distance(x, y, metric))
    second = time.perf_counter() - started
    expected = distance_in_numpy(x, y, metric)
    error = abs(value - expected) / expected
    yield Check(
        "right number",
        error <= TOLERANCE,
        f"{value:.7f}, in NumPy and float64 {expected:.7f}, relative difference {error:.1e}",
        f"{report}; if JAX_DEFAULT_MATMUL_PRECISION or XLA_FLAGS is set, try again without it",
    )
    itself = float(distance(x, x, metric))
    yield Check("identical images", itself == 0, f"distance {itself:g}", report)
    jitted = float(jax.jit(distance)(x, y, metric))
    yield Check("within jit", abs(jitted - value) <= TOLERANCE * value, f"{jitted:.7f}", report)
    floats = jnp.asarray(y, jnp.float32) / 255
    for name, other in (("gradient", x), ("gradient at 0", y)):
        gradient = np.asarray(jax.grad(distance)(floats, jnp.asarray(other, jnp.float32) / 255, metric))
        largest = float(np.abs(gradient).max())
        sound = bool(np.isfinite(gradient).all()) and (largest > 0 or name == "gradient at 0")
        yield Check(name, sound, f"largest component {largest:.3g}", report)
    detail = f"first call {first:.2f} s, second {second * 1e3:.1f} ms (a pair of {x.shape[1]}x{x.shape[0]} pixels)"
    yield Check("time", True, detail, "")


def _images(size: int = 64) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
    """Returns a picture with edges and gradients, and the same picture with noise."""
    rows, columns = np.mgrid[:size, :size] / size
    waves = np.stack([np.sin(9 * rows), np.cos(7 * columns), np.sin(11 * rows * columns)], axis=-1)
    picture = 128 + 60 * waves + 40 * (rows > columns)[..., None]
    noise = np.random.default_rng(0).normal(0, 20, picture.shape)
    return tuple(np.clip(image, 0, 255).astype(np.uint8) for image in (picture, picture + noise))  # type: ignore[return-value]


def distance_in_numpy(x: UInt8[np.ndarray, "h w 3"], y: UInt8[np.ndarray, "h w 3"], metric: Any) -> float:
    """Computes LPIPS from its definition, in NumPy and float64.

    It is slow, and on purpose shares no computation with the library: the check compares the library, JAX and its
    compiler with it. Only the tables (layers, `SHIFT`, `SCALE`, `EPSILON`) and the parameters are common.

    Args:
        x, y: two images of the same size.
        metric: LPIPS 0.1 over a network of convolutions and max pooling only, such as "lpips-tiny".
    """
    total = 0.0
    pairs = zip(_features_in_numpy(x, metric), _features_in_numpy(y, metric), strict=True)
    for (f, g), head in zip(pairs, metric.parameters["heads"], strict=True):
        total += float(np.mean(np.square(f - g) @ np.asarray(head, np.float64)))
    return total


def _features_in_numpy(image: UInt8[np.ndarray, "h w 3"], metric: Any) -> Iterator[Float[np.ndarray, "i j c"]]:
    value = (image / 127.5 - 1 - np.array(SHIFT)) / np.array(SCALE)
    floors = iter(metric.parameters.get("floors", ()))
    backbone = metric.backbone
    assert isinstance(backbone, Sequential)
    for layer in backbone.layers:
        if isinstance(layer, Pool):
            pooling = backbone.pooling
            value = _windows(value, pooling.window, pooling.stride).max(axis=(-2, -1))
            continue
        assert isinstance(layer, Convolution)
        weights = metric.parameters["backbone"][f"features_{layer.index}"]
        padded = np.pad(value, ((layer.padding,) * 2, (layer.padding,) * 2, (0, 0)))
        windows = _windows(padded, layer.window, layer.stride)
        kernel = np.asarray(weights["kernel"], np.float64)
        value = np.tensordot(windows, kernel, axes=((2, 3, 4), (2, 0, 1))) + np.asarray(weights["bias"], np.float64)
        value = np.maximum(value, 0)
        if layer.index in backbone.tapped:
            length, floor = np.linalg.norm(value, axis=-1, keepdims=True), next(floors, None)
            yield value / (length + EPSILON if floor is None else np.maximum(np.hypot(length, floor), EPSILON))


def _windows(value: Float[np.ndarray, "h w c"], window: int, stride: int) -> Float[np.ndarray, "i j c u v"]:
    return np.lib.stride_tricks.sliding_window_view(value, (window, window), axis=(0, 1))[::stride, ::stride]
