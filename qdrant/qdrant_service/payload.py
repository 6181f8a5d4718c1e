"""Metadata as the engine keeps it, and back again exactly as it was sent.

The caller's keys stand at the payload's top level, where filters and Qdrant's own dashboard look for them. What the
engine would change or cannot match goes beside them, under one private key:

- `json`: the exact text of the metadata, where the engine's JSON reader would alter a number. It rounds integers beyond
  64 bits, and most floats of more than 15 digits come back one unit in the last place off.
- `match`: the metadata's tree with only those scalars that the engine cannot compare for equality, written as text.

Both engines use the same layout, so that points can be moved between them.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from visionstack.errors import InvalidRequest
from visionstack.schemas import PRIVATE_KEY

ORIGINAL_ID_KEY = "_original_id"
MATCH_KEY = "match"
MAX_METADATA_BYTES = 64 * 1024
# The embedded engine cannot read back what nests deeper than 127.
MAX_METADATA_DEPTH = 64

_JSON_KEY = "json"
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
_MIN_MATCHED, _MAX_MATCHED = -(2**63), 2**63 - 1


def check_metadata(metadata: Mapping[str, Any], *, field: str = "metadata") -> None:
    """Raises `InvalidRequest` for what cannot be kept: too large, too deep, not JSON, or our own key."""
    if PRIVATE_KEY in metadata:
        raise InvalidRequest.for_field(field, f"the key {PRIVATE_KEY} is reserved")
    if _deeper_than(MAX_METADATA_DEPTH, metadata):
        raise InvalidRequest.for_field(field, f"nests deeper than {MAX_METADATA_DEPTH} levels")
    try:
        size = len(_to_json(metadata).encode())
    except UnicodeEncodeError:
        raise InvalidRequest.for_field(field, "is not valid Unicode: it holds half of a surrogate pair") from None
    except ValueError:
        raise InvalidRequest.for_field(field, "holds a number that is not finite or too long") from None
    if size > MAX_METADATA_BYTES:
        raise InvalidRequest.for_field(field, f"has {size} bytes as JSON; at most {MAX_METADATA_BYTES}")


def encode(metadata: Mapping[str, Any], original_id: str | None, *, mirror_booleans: bool) -> dict[str, Any]:
    """The payload of a point. `mirror_booleans`: the engine cannot match booleans."""
    payload = dict(metadata)
    if original_id is not None:
        payload[ORIGINAL_ID_KEY] = original_id
    private: dict[str, Any] = {}
    if not _all_kept(payload):
        private[_JSON_KEY] = _to_json(payload)
    if (mirror := _mirror(payload, mirror_booleans)) is not None:
        private[MATCH_KEY] = mirror
    if private:
        payload[PRIVATE_KEY] = private
    return payload


def decode(payload: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata of a point, whoever wrote it."""
    metadata = dict(payload or {})
    private = metadata.pop(PRIVATE_KEY, None)
    if isinstance(private, dict) and isinstance(text := private.get(_JSON_KEY), str):
        exact = json.loads(text)
        if isinstance(exact, dict):
            return exact
    return metadata


def is_matched_integer(number: float) -> bool:
    """Whether the engine compares `number` for equality by itself: an integer that 64 signed bits hold."""
    return isinstance(number, int) and _MIN_MATCHED <= number <= _MAX_MATCHED


def match_text(scalar: bool | float) -> str:
    """What stands for a scalar in the `match` tree; equal numbers have equal texts."""
    if isinstance(scalar, bool):
        return "true" if scalar else "false"
    if isinstance(scalar, float) and not scalar.is_integer():
        return repr(scalar)
    return str(int(scalar))


def _mirror(value: object, mirror_booleans: bool) -> Any:
    match value:
        case bool():
            return match_text(value) if mirror_booleans else None
        case int():
            return None if is_matched_integer(value) else match_text(value)
        case float():
            return match_text(value)
        case dict():
            tree = {key: found for key, item in value.items() if (found := _mirror(item, mirror_booleans)) is not None}
            return tree or None
        case list():
            return [found for item in value if (found := _mirror(item, mirror_booleans)) is not None] or None
    return None


def is_kept(number: float) -> bool:
    """Whether the engine gives the number back as it got it."""
    if isinstance(number, int):
        return _MIN_INTEGER <= number <= _MAX_INTEGER
    # up to 15 digits and small powers of ten its JSON reader computes exactly
    return number == 0 or (1e-4 <= math.fabs(number) < 1e15 and float(f"{number:.15g}") == number)


def _all_kept(value: object) -> bool:
    match value:
        case int() | float():
            return is_kept(value)
        case dict():
            return all(map(_all_kept, value.values()))
        case list():
            return all(map(_all_kept, value))
    return True


def _deeper_than(levels: int, value: object) -> bool:
    """Level by level, so that nothing the caller sends can exhaust the stack."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            child
            for item in layer
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not layer:
            return False
    return True


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
