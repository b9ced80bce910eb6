"""Warnings that point at the user's line, however deep in the library they arise."""

import sys
import warnings
from pathlib import Path

LIBRARY = str(Path(__file__).parent)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warns with the location of the first caller outside this library."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(LIBRARY):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)
