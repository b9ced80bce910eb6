"""Where the rows of a batch are: on one device, or split over all devices of all processes."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

Placement = Sharding | None
"""How the first axis of a batch is split over devices; None for JAX's default device."""


def over_all_devices() -> NamedSharding:
    """The first axis of a batch split over all devices of all processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


def filled_size(count: int, placement: Placement) -> int:
    """The smallest number of rows, `count` or more, that can be split evenly."""
    devices = 1 if placement is None else placement.num_devices
    return -(-count // devices) * devices


def put(rows: np.ndarray, placement: Placement) -> jax.Array | np.ndarray:
    """Rows on the devices; every process passes all rows."""
    return rows if placement is None else jax.device_put(rows, placement)


def fetch(array: jax.Array) -> np.ndarray:
    """All rows, on every process."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
