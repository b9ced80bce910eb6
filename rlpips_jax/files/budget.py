"""How much memory and computing time a process that only reads files may take, so that no file can take more.

Both are limits of the operating system: decoders cannot be stopped from within. Where it has none, as Windows, nothing
is limited.
"""

import contextlib
import signal
import time
from pathlib import Path

MEMORY = 3 << 30
"""Most bytes for one file. An image of `PIL.Image.MAX_IMAGE_PIXELS` takes less in every format."""

SECONDS = 60
"""Most seconds of computing for one file, several times what the largest images take."""

STOPPED = -getattr(signal, "SIGXCPU", 0)
"""The return code of a process whose time was up."""


def limit_memory() -> None:
    """Lets this process take `MEMORY` more than it has; beyond that, allocations fail."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[5])
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + MEMORY, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time() -> None:
    """Lets this process compute for `SECONDS` more; then it is ended by the signal SIGXCPU."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, most))
