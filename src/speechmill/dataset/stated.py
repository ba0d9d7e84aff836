"""JSON that was found in a sink, and may be anything."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["json_object"]


def json_object(data: bytes | str) -> dict[str, Any]:
    """Parse JSON that must be an object.

    Raises:
        ValueError: it is something else, no JSON, nested too deeply to be read, or has text that is
            no Unicode.
    """
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if (b"\\u" if isinstance(data, bytes) else "\\u") in data:  # type: ignore[operator]
        json.dumps(found, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    if not isinstance(found, dict):
        raise ValueError(  # noqa: TRY004 - as all that is wrong with JSON
            f"it is no object, but {type(found).__name__}"
        )
    return found
