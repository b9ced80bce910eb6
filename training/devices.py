"""All devices of all processes as one mesh: batches are cut along it, everything else is on each of them.

The same code runs on one CPU, on several GPUs, and on TPU pods: under `jit` the compiler divides the work by where its
arguments lie.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from rlpips_jax.errors import TrainingError
from training.config import Training


def join(config: Training) -> None:
    """Joins the other processes that the configuration speaks of. Before any computation.

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
    """Arrays that every process has, as arrays of which each device has a whole copy.

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
