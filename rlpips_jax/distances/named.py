"""Metrics that a function is given by their names."""

import functools
import pkgutil
from typing import Any

DEFAULT = "lpips-alex"
"""The metric that is used where none is named."""


@functools.cache
def named(name: str) -> Any:
    """The metric of a name, as `rlpips_jax.load` gives it, loaded once."""
    # Looked up late: `loading` knows every family of metrics, and these know this module.
    return pkgutil.resolve_name("rlpips_jax.loading:load")(name)
