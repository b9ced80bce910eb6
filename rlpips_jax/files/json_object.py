"""JSON out of files that anyone may have changed."""

import json
from typing import Any


def json_object(text: str | bytes, **options: Any) -> dict[str, Any]:
    """The object that a JSON text is.

    Args:
        text: JSON.
        options: of `json.loads`.

    Raises:
        ValueError: it is not JSON, nested too deeply, or not an object.
    """
    found = json_value(text, **options)
    if not isinstance(found, dict):
        raise ValueError(f"it is {json.dumps(found)[:40]}, not an object {{...}}")
    return found


def json_value(text: str | bytes, **options: Any) -> Any:
    """The value that a JSON text is; `json_object` for one of any kind."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
