"""Control characters never reach a terminal as they are: in the name of a file they could hide, change or send text."""

import io
import re
import sys
import warnings

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tabs and line breaks."""


def visible(text: str) -> str:
    """The text with each control character written out, as `\\x1b`."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class VisibleWriter(io.TextIOWrapper):
    """A file of text in which control characters are written out."""

    def write(self, text: str, /) -> int:
        """Writes a text; returns its length."""
        super().write(visible(text))
        return len(text)


def guard_terminal() -> None:
    """From now on, what is printed to a terminal has no control characters, and no warning has any.

    What goes into a file or a pipe stays as it is. Names that are not UTF-8 are printed with their bytes as `\\xff`.
    """
    formatted = warnings.formatwarning
    if formatted.__module__ == "warnings":
        warnings.formatwarning = lambda *place, **options: visible(formatted(*place, **options))
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    if sys.stdout.isatty():
        sys.stdout = VisibleWriter(sys.stdout.buffer, encoding=sys.stdout.encoding, line_buffering=True)
    # Names of files are bytes; those that are not UTF-8 must not end a command when they are printed.
    sys.stdout.reconfigure(errors="backslashreplace")
