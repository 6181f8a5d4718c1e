"""From whatever a caller names a point to the id that the engine takes.

The engine knows unsigned 64-bit integers and UUIDs. Those are kept, a UUID in its canonical spelling. Any other text
becomes a UUID derived from it, so that the same text in the same collection is always the same point. A caller who
sends that derived UUID himself names the same point. Pure: whether a point exists is the store's business.
"""

import re
import uuid
from dataclasses import dataclass

from visionstack.errors import InvalidRequest
from visionstack.schemas import MAX_ORIGINAL_ID

MAX_INTEGER_ID = 2**64 - 1

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:vision-stack:original-id")
# Leading zeros, signs, blanks, exponents and digits beyond ASCII make a text, so that no two texts are one integer.
_INTEGER = re.compile(r"0|[1-9][0-9]{0,19}")
_HYPHENATED = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_UUID = re.compile(rf"[0-9a-f]{{32}}|(?:urn:uuid:)?{_HYPHENATED}|\{{{_HYPHENATED}\}}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ResolvedId:
    """`original` is the caller's text where it had to be replaced, else None."""

    point_id: int | str
    original: str | None = None


def random_id() -> ResolvedId:
    return ResolvedId(str(uuid.uuid4()))


def derived_id(collection: str, original: str) -> str:
    """The UUIDv5 that stands for `original` in `collection`. Collection names hold no slash, so no two pairs meet."""
    return str(uuid.uuid5(_NAMESPACE, f"{collection}/{original}"))


def resolve_id(collection: str, value: object, *, field: str = "id") -> ResolvedId:
    """The point that `value` names. Raises `InvalidRequest` for `field` if it can name none."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InvalidRequest.for_field(field, "send an unsigned 64-bit integer or a text")
    if isinstance(value, int):
        if not 0 <= value <= MAX_INTEGER_ID:
            raise InvalidRequest.for_field(field, "an integer id lies between 0 and 2^64 - 1; send others as text")
        return ResolvedId(value)
    if not 0 < len(value) <= MAX_ORIGINAL_ID:
        raise InvalidRequest.for_field(field, f"a text id has 1 to {MAX_ORIGINAL_ID} characters")
    if not is_unicode(value):
        raise InvalidRequest.for_field(field, "is not valid Unicode: it holds half of a surrogate pair")
    if _INTEGER.fullmatch(value) and int(value) <= MAX_INTEGER_ID:
        return ResolvedId(int(value))
    if _UUID.fullmatch(value):
        return ResolvedId(str(uuid.UUID(value.lower())))
    return ResolvedId(derived_id(collection, value), value)


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: JSON lets halves of surrogate pairs through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
