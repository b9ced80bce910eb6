"""Radii as people write them."""

import math


def read_radius(text: str) -> float:
    """A number or a fraction: "0.5", "2/255", "2.5/255".

    Raises:
        ValueError: it is neither, or not finite.
    """
    numerator, slash, denominator = text.partition("/")
    divisor = float(denominator) if slash else 1.0
    value = float(numerator) / divisor if divisor else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no number")
    return value
