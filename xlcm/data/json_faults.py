"""What is wrong with text that is no JSON: where, and whether its end is missing."""

from __future__ import annotations

import re
from json import JSONDecodeError

_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_NUMBER = re.compile(r"-?\d*(?:\.\d*)?(?:[eE][+-]?\d*)?")
_ESCAPE = re.compile(r"\\?(?:u[0-9a-fA-F]{0,4})?")


def told(error: JSONDecodeError) -> str:
    """Return the fault with its column; says so if the text is the beginning of JSON."""
    cut = "; it is cut off here, get the file again" if cut_off(error) else ""
    return f"not JSON: {error.msg} at column {error.colno}{cut}"


def cut_off(error: JSONDecodeError) -> bool:
    """Return whether more text would make JSON of what could not be read."""
    rest = error.doc[error.pos :].rstrip()
    return bool(
        error.msg.startswith("Unterminated string")
        or _NUMBER.fullmatch(rest)  # also if nothing is left
        or _ESCAPE.fullmatch(rest)
        or any(word.startswith(rest) for word in _WORDS)
    )
