"""Signals end a run without a traceback, whenever they come."""

import signal
import subprocess
import sys

import pytest

TWICE = """
import signal
from training.stopping import listening
with listening() as stopping:
    signal.raise_signal(signal.{name})
    assert stopping.is_asked()
    signal.raise_signal(signal.{name})
"""
LOADING = """
import os, signal, sys
from training import __main__
class Finder:
    def find_spec(self, name, *_):
        if name == "jax":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder())
sys.exit(__main__.main(["lin"]))
"""


@pytest.mark.parametrize("program", [TWICE, LOADING])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_run_without_a_traceback(program: str, name: str) -> None:
    # A shell script's background process ignores SIGINT, and so would this one.
    usual = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", usual + program.format(name=name)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (-signal.Signals[name], "")
