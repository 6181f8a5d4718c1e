"""What no schema can say, for the schemathesis that `test_openapi.py` starts; loaded in its process."""

import base64
import json
import os
from typing import Any

import jsonschema_rs
import schemathesis
from hypothesis import strategies as st
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.transport.serialization import Binary

_PICTURE = base64.b64decode(os.environ["OPENAPI_PICTURE"])
_PICTURE_URL = os.environ["OPENAPI_PICTURE_URL"]
# schemathesis writes any JSON into a field that is JSON text, whatever its schema; the JSON endpoints get the variety.
_JSON_TEXTS = ['{"category":"wallpaper"}', "{}"]

_TEXT_FIELDS = ("id", "collection", "metadata_json", "filter_metadata")

# What is refused though it is well formed: each answer says why.
_BEYOND_SCHEMAS = (
    "is zero, which has no direction",  # a vector of zeros is fine under every distance but cosine
    "the bounds of a range are all numbers or all RFC 3339 times",  # two kinds of object, which it could not negate
    "is longer than 1e+18",  # so is a long one, unless its square leaves 32 bits
)


schemathesis.openapi.format("binary", st.just(_PICTURE))
schemathesis.openapi.format("picture-url", st.just(_PICTURE_URL))
schemathesis.openapi.media_type("image/*", st.just(_PICTURE))


@schemathesis.hook
def before_load_schema(_: schemathesis.HookContext, raw_schema: Any) -> None:
    """The documents' examples of addresses lead nowhere."""
    if isinstance(raw_schema, dict):
        if isinstance(url := raw_schema.get("properties", {}).get("url"), dict):
            url |= {"format": "picture-url", "examples": [_PICTURE_URL]}
        if "contentSchema" in raw_schema:
            raw_schema["enum"] = _JSON_TEXTS
    for part in raw_schema.values() if isinstance(raw_schema, dict) else raw_schema:
        if isinstance(part, dict | list):
            before_load_schema(_, part)


@schemathesis.hook
def filter_failure(
    _: schemathesis.HookContext, failure: Exception, case: schemathesis.Case[Any], response: schemathesis.Response
) -> bool:
    if isinstance(failure, AcceptedNegativeData):
        return not _fits_as_text(case)
    return not (response.status_code == 422 and any(sentence in response.text for sentence in _BEYOND_SCHEMAS))


def _fits_as_text(case: schemathesis.Case[Any]) -> bool:
    """Whether what does not fit the document does so as it is sent: `false` as an id, one tag, or no tags at all.

    schemathesis looks for that itself, but not thoroughly, and not at all in a form with a file.
    """
    texts: dict[str, tuple[Any, Any]] = {"QUERY": (case.operation.query.validation_schema, case.query)}
    if case.media_type == "multipart/form-data":
        form = case.operation.get_body_for_media_type(case.media_type)
        texts["BODY"] = (form.validation_schema, case.body)
    assert case.meta is not None
    changed = [place.name for place, part in case.meta.components.items() if part.mode.is_negative]
    return all(place in texts and _is_valid_as_text(*texts[place]) for place in changed)


def _is_valid_as_text(schema: Any, sent: Any) -> bool:
    if not isinstance(sent, dict):
        return False
    return jsonschema_rs.is_valid(schema, {name: _as_read(name, value) for name, value in sent.items() if value != []})


def _as_read(name: str, value: Any) -> Any:
    if isinstance(value, Binary):
        return ""
    if name == "tags":
        return [_text(tag) for tag in (value if isinstance(value, list) else [value])]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return _text(value) if name in _TEXT_FIELDS else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
