"""Devices and processes: batches are cut over all devices, and everything else is on each of them.

The same code runs on one CPU, on several GPUs, and on TPU pods: under `jit` the compiler divides the work according to
the placement of its arguments.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array
from tqdm import tqdm

from rlpips_jax.errors import RlpipsError, TrainingError
from training.config import Run

T = TypeVar("T")


def join(config: Run) -> None:
    """Joins the other processes that the configuration names; must come before any computation.

    Raises:
        TrainingError: the options do not fit together, or the others cannot be reached.
    """
    stated = [config.coordinator, config.processes, config.process]
    if None in stated and stated != [None] * 3:
        raise TrainingError("give --coordinator, --processes and --process together, or --distributed alone")
    if not config.distributed and config.coordinator is None:
        return
    try:
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the processes cannot be joined: {error}") from error


def replicate(tree: Any, rows: NamedSharding) -> Any:
    """Arrays that every process has, as arrays with a whole copy on each device.

    Args:
        tree: of arrays.
        rows: how batches are cut, from `rlpips_jax.evaluation.placement.over_all_devices`.
    """
    return jax.device_put(tree, NamedSharding(rows.mesh, PartitionSpec()))


def divide(own: np.ndarray, rows: NamedSharding) -> Array:
    """This process's rows of a batch, as a part of an array of all devices."""
    return jax.make_array_from_process_local_data(rows, own)


def check_batch(count: int, parts: int, what: str) -> None:
    """Raises a TrainingError unless each part of a batch can be cut into equal parts, one for each device."""
    least = parts * jax.device_count()
    if count < 1 or count % least:
        raise TrainingError(
            f"{what} cannot be cut evenly over {jax.device_count()} device(s) in {parts} part(s) (--accumulate); make "
            f"that a multiple of {least}"
        )


def on_first(action: Callable[[], T], failure: type[RlpipsError]) -> T:
    """The result of an action of the first process, on every process.

    Args:
        action: returns a value that JSON can say.
        failure: the error that every process raises where the first one's action raises an error of the library's, or
            an `OSError`.
    """
    outcome: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            outcome = {"value": action()}
        except (RlpipsError, OSError) as error:
            if jax.process_count() == 1:
                raise error if isinstance(error, failure) else failure(str(error)) from error
            outcome = {"error": str(error)}
    if jax.process_count() > 1:
        content = json.dumps(outcome).encode()
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
        sent = np.frombuffer(content.ljust(size)[:size], np.uint8)
        outcome = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())
    if "error" in outcome:
        raise failure(outcome["error"])
    return outcome["value"]


def say(text: str) -> None:
    """Writes a line above the progress bar, to stderr as that one, once for all processes."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)
