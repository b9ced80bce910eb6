"""The guards that the other tests rely on do guard."""

import contextlib
import os
import re
import socket
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import TypeCheckError

from rlpips_jax.ops.resize import resize_bilinear
from rlpips_jax.weights import store

ELSEWHERE = "192.0.2.1"
"""Reserved for documentation (RFC 5737): never a real machine."""


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_other_machines_are_not_connected_to(method: str, no_network: list[str]) -> None:
    with socket.socket() as connection, pytest.raises(pytest.fail.Exception, match=ELSEWHERE):
        getattr(connection, method)((ELSEWHERE, 80))
    assert no_network.pop()


def test_other_machines_are_not_looked_up(no_network: list[str]) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"images\.invalid"):
        socket.create_connection(("images.invalid", 80))
    assert no_network.pop()


def test_catching_every_error_does_not_hide_the_attempt(no_network: list[str]) -> None:
    with contextlib.suppress(BaseException):
        socket.create_connection((ELSEWHERE, 80))
    assert no_network.pop()


def test_this_machine_is_within_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()


def test_caches_are_temporary() -> None:
    temporary = Path(tempfile.gettempdir()).resolve()
    for folder in (store.cache_folder(), store.torch_cache_folder()):
        assert folder.resolve().is_relative_to(temporary)
    assert store.WEIGHTS_DIR not in os.environ


def test_signatures_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        resize_bilinear(np.zeros((1, 3, 3), np.int32), 6, 6)  # pyright: ignore[reportArgumentType]


def test_there_are_as_many_devices_as_were_asked_for() -> None:
    asked = re.findall(r"host_platform_device_count=(\d+)", os.environ["XLA_FLAGS"])
    assert jax.device_count("cpu") == int(asked[-1])


def test_examples_are_reproducible() -> None:
    assert settings().derandomize
    assert settings().deadline is None
