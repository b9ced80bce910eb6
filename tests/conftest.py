"""What every test has: several devices, checked types, caches of its own, no network, fixed examples."""

import contextlib
import gc
import importlib.metadata
import importlib.util
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# All of this must happen before jax and the library are first imported, hence before pytest imports a test.
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

REQUIRE_SHARED = os.environ.get("RLPIPS_REQUIRE_SHARED") == "1"
# Compiling takes most of the time of the tests. So programs are compiled without optimisations, each in one piece and
# by the older emitter, which takes a third less time; but with all optimisations against reference data.
LEVEL = "--xla_backend_optimization_level"
if LEVEL not in os.environ["XLA_FLAGS"] and not REQUIRE_SHARED:
    os.environ["XLA_FLAGS"] += f" {LEVEL}=0 --xla_cpu_parallel_codegen_split_count=1"
    # XLA ends the process at an option that it does not know; that of jax 0.11 has no other emitter.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

SHARED = Path(os.environ.get("RLPIPS_SHARED") or ROOT.parent / "shared").absolute()

# Programs that tests start inherit these: nothing reads or writes the caches of whoever runs the tests.
HOME = Path(tempfile.mkdtemp(prefix="rlpips-jax-tests-"))
os.environ.update(HOME=str(HOME), XDG_CACHE_HOME=str(HOME / "cache"), TORCH_HOME=str(HOME / "torch"))
os.environ.pop("RLPIPS_WEIGHTS_DIR", None)

# What one process of the tests, or a program that a test starts, has compiled, the others need not.
COMPILED = os.environ.setdefault("RLPIPS_TESTS_CACHE", str(HOME / "compiled"))
os.environ.update(
    JAX_COMPILATION_CACHE_DIR=COMPILED,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    # JAX does not write these files atomically. A file that is not whole costs a compilation, and no more.
    PYTHONWARNINGS="ignore:Error reading persistent compilation cache entry",
)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Shapes and types in signatures are checked at every call.
if already := [name for name in sys.modules if name.partition(".")[0] == "rlpips_jax"]:
    raise RuntimeError(f"imported before its types could be checked: {', '.join(already)}")
install_import_hook("rlpips_jax", "beartype.beartype")

# Tracing makes many objects, few of them garbage: to look for it as often as by default costs a twentieth of the time.
gc.set_threshold(20_000, 20, 50)

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that needs PyTorch where there is none, or fails it where reference data is required."""
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        if REQUIRE_SHARED:
            pytest.fail("RLPIPS_REQUIRE_SHARED=1 requires PyTorch too, and it is not installed", pytrace=False)
        pytest.skip("needs PyTorch, which is not installed")


MAPS = Path("/proc/self/maps")
MANY_MAPS = 30_000
"""A process has 65,530 on Linux; where they run out, the compiler ends with a segmentation fault."""


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Forgets compiled programs when they have become many: each has memory maps of its own."""
    yield
    if "jax" in sys.modules and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data: weights, photographs and numbers computed by other programs."""
    if SHARED.is_dir():
        return SHARED
    reason = f"needs the reference data: {SHARED} is no folder; $RLPIPS_SHARED names another"
    if REQUIRE_SHARED:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def is_local(host: object) -> bool:
    """Whether a host as given to `connect` or `getaddrinfo` is this machine."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name).partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails a test that looks up or connects to another machine, even if the tested code catches errors.

    Gives the list of what was refused.
    """
    refused: list[str] = []

    def refuse(host: object) -> None:
        refused.append(f"a test may talk to this machine only, and it tried {host!r}")
        # pytest's own exception is a BaseException, so `except Exception` does not hide it.
        pytest.fail(refused[-1])

    def guarded(method: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
        def call(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
                refuse(address[0])
            return method(self, address)

        return call

    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if not is_local(host):
            refuse(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield refused
    # What was refused in another thread, or caught as a BaseException, comes out here.
    if refused:
        pytest.fail("; ".join(refused), pytrace=False)


@pytest.fixture
def checking_leaks() -> Callable[[], AbstractContextManager[None]]:
    """`jax.checking_leaks`, which collects garbage after every trace, but nothing of other tests."""

    @contextlib.contextmanager
    def checking() -> Iterator[None]:
        import jax

        gc.freeze()
        try:
            with jax.checking_leaks():
                yield
        finally:
            gc.unfreeze()

    return checking


@pytest.fixture(scope="session")
def drawn() -> Callable[..., Any]:
    """Makes metrics with drawn weights: `drawn(ALEX, dtype="bfloat16")`, `drawn(VGG, version="0.0")`."""
    import jax
    import numpy as np

    from rlpips_jax.backbones import Backbone
    from rlpips_jax.distances.lpips import Lpips

    def make(architecture: Backbone, **options: Any) -> Lpips:
        rng = np.random.default_rng(0)
        backbone: dict[str, Any] = {}
        for name, shape in architecture.shapes.items():
            *path, leaf = name.split(".")
            node = backbone
            for step in path:
                node = node.setdefault(step, {})
            # This variance of a kernel keeps the scale of activations through a ReLU.
            deviation = np.sqrt(2 / np.prod(shape[:-1])) if leaf == "kernel" else 0.01
            node[leaf] = rng.normal(1 if leaf == "scale" else 0, deviation, shape).astype(np.float32)
        heads = tuple(rng.uniform(0, 1, channels).astype(np.float32) for channels in architecture.channels)
        parameters = jax.tree.map(jax.numpy.asarray, {"backbone": backbone, "heads": heads})
        return Lpips(parameters, f"drawn-{architecture.name}", architecture, **options)

    return make


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `rlpips` with these arguments, in this process; gives its exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from rlpips_jax import cli

        monkeypatch.setattr(sys, "argv", ["rlpips", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """The compilations during a test so far, one entry each."""
    import jax

    events: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def wrong_types() -> Iterator[None]:
    """Lets a test pass arguments of wrong types, so that the library's own errors answer."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
