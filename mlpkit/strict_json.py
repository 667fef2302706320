"""JSON in files, read without Python's usual latitude: what is written reads back as the same value, or is refused."""

from __future__ import annotations

import json
import math
from typing import Any

from mlpkit.errors import InvalidArgumentError, ModelFormatError
from mlpkit.strict_hdf5 import refuse

__all__ = ["MAX_JSON_BYTES", "parse_json", "to_json"]

MAX_JSON_BYTES = 1024**2


def to_json(value: Any, what: str) -> bytes:
    """Write JSON that reads back as the same value, or say why that cannot be.

    Examples
    --------
    >>> to_json([], "net.metadata")
    b'[]'
    """
    try:
        raw = json.dumps(value, allow_nan=False, indent=1).encode()
        same = parse_json(raw, what) == value
    except (TypeError, ValueError, RecursionError, ModelFormatError) as error:
        raise InvalidArgumentError(f"{what}: expected values that JSON can hold ({error!s:.200})") from error
    if not same:
        raise InvalidArgumentError(
            f"{what}: expected values that JSON gives back unchanged (keys that are text, lists instead of tuples)"
        )
    if len(raw) > MAX_JSON_BYTES:
        raise InvalidArgumentError(f"{what}: expected at most {MAX_JSON_BYTES} bytes as JSON, found {len(raw)}")
    return raw


def parse_json(raw: bytes, element: str) -> Any:
    """Read JSON in UTF-8; a key that occurs twice and numbers that are not finite are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            refuse(element, "a key occurs twice in one object")
        return dict(pairs)

    def number(token: str) -> float:
        value = float(token)
        if not math.isfinite(value):
            refuse(element, f"{token[:40]} is not a finite number")
        return value

    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=number,
            parse_float=number,
        )
    except ModelFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{element}: not valid JSON in UTF-8 ({error})") from error
