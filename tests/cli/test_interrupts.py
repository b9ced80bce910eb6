"""Ctrl-C between two steps, and at once when pressed twice."""

import signal
from collections.abc import Iterator

import pytest

from rlpips_jax.cli import interrupts


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Python's own, which a test run in the background of a shell script is without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_step_is_finished_first() -> None:
    finished = []

    def work() -> None:
        with interrupts.deferred():
            press()
            finished.append(1)
            interrupts.check()
            finished.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert finished == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupts.check()


def test_the_end_is_a_step_too() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        press()


def test_pressed_twice_it_is_answered_at_once() -> None:
    finished = []

    def work() -> None:
        with interrupts.deferred():
            press()
            finished.append(1)
            press()
            finished.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert finished == [1]
    interrupts.check()


def test_who_ignores_it_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.deferred():
            press()
            interrupts.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
