"""What every database can store. PostgreSQL refuses characters and numbers that Python and other databases accept."""

import json
from typing import Any

from .framework import normalize_json


def as_text(value: object) -> str:
    """Return the value as a text. An escape takes the place of each character that a database may refuse."""
    return str(value).encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def as_json(name: str, value: Any) -> Any:
    """Return the value in JSON types. Raises TypeError, which calls the value by this name, if it cannot be stored."""
    try:
        normal = normalize_json(value)
        text = json.dumps(normal, allow_nan=False, ensure_ascii=False)
        # This refuses half of a surrogate pair.
        text.encode()
        # An escaped backslash may stand before the same letters.
        if "\\u0000" in text.replace("\\\\", ""):
            raise ValueError("the character NUL is not allowed")
    except (RecursionError, TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be stored as JSON: {error}") from error
    return normal
