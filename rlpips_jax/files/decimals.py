"""Numbers as text in files of results."""

from typing import SupportsFloat

import numpy as np

from rlpips_jax.errors import MetricError


def decimal(value: SupportsFloat) -> str:
    """A number as plain digits, no exponent: the fewest that give back the same float32 (or float64).

    Raises:
        MetricError: NaN or infinity, which plain digits cannot say.
    """
    number = value if isinstance(value, np.float64) else np.float32(float(value))
    if not np.isfinite(number):
        raise MetricError(f"a distance must be a finite number, got {number}")
    return np.format_float_positional(number, unique=True, trim="0")
