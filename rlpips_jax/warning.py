"""Warnings that point at the user's line, however deep in the library they arise."""

import sys
import warnings

PASSED_OVER = ("rlpips_jax", "jaxtyping")
"""Packages whose frames are not the user's: this one, and the one that may check its signatures."""


def warn_user(message: str, category: type[Warning]) -> None:
    """Warns with the location of the first caller outside this library."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in PASSED_OVER:
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)
