"""How a metric is to be computed: what `rlpips_jax.load` takes beside a name."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rlpips_jax.arguments import whole_number
from rlpips_jax.errors import MetricError

DTYPES = ("float32", "bfloat16", "float64")
PRECISIONS = ("default", "high", "highest")


@dataclass(frozen=True)
class Options:
    """Options of `rlpips_jax.load`, which documents them; every family of metrics is built with them.

    Raises:
        MetricError: an option makes no sense.
    """

    unweighted: bool = False
    dtype: DTypeLike = "float32"
    precision: str = "highest"
    max_batch: int | None = None
    max_memory: int | None = None
    remat: bool = False
    forward_mode: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _checked_dtype(self.dtype))
        if self.precision not in PRECISIONS:
            raise MetricError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("max_batch", "max_memory"):
            if (most := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole_number(name, most, minimum=1, error=MetricError))

    @property
    def of_network(self) -> dict[str, Any]:
        """Those that are fields of every metric over a network."""
        names = ("dtype", "precision", "max_batch", "remat", "forward_mode", "frozen")
        return {name: getattr(self, name) for name in names}


def _checked_dtype(dtype: DTypeLike) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise MetricError(f"dtype must be one of {', '.join(DTYPES)}, got {name}")
    if name == "float64" and not jax.config.read("jax_enable_x64"):
        raise MetricError(
            "dtype float64 needs 64-bit mode: jax.config.update('jax_enable_x64', True), before any array"
        )
    return name
