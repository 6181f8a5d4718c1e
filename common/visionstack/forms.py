"""Multipart forms that more than one service takes: the fields of the JSON requests, with a `file` for the `url`."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import File, Form, Request, UploadFile
from pydantic import BeforeValidator, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from .errors import InvalidRequest
from .schemas import (
    DEFAULT_COLLECTION,
    FILTER_SCHEMA,
    METADATA_SCHEMA,
    CollectionName,
    Filter,
    Metadata,
    ScoreThreshold,
    SearchFields,
    TextId,
)
from .schemas import Request as Fields

MULTIPART = Form(media_type="multipart/form-data")

PictureFile = Annotated[
    UploadFile,
    File(
        description="The image; its format is recognised by its content.",
        # how OpenAPI 3.0 said it, which most tools still look for
        json_schema_extra={"format": "binary"},
    ),
]


class _NoNull:
    """A form has no null; what is not wanted is left out."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        parts: list[JsonSchemaValue] = handler(schema)["anyOf"]
        return next(part for part in parts if part != {"type": "null"})


NO_NULL = _NoNull()


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON, or nests too deep") from None


def _text_of(schema: dict[str, Any], description: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "type": "string",
            "description": description,
            "contentMediaType": "application/json",
            "contentSchema": schema,
        }
    )


MetadataText = Annotated[Metadata, BeforeValidator(_from_text), _text_of(METADATA_SCHEMA, "The metadata as JSON text.")]
FilterText = Annotated[Filter, BeforeValidator(_from_text), _text_of(FILTER_SCHEMA, "The filter as JSON text.")]


class UpsertForm(Fields):
    file: PictureFile
    id: Annotated[TextId | None, NO_NULL] = None
    metadata_json: Annotated[MetadataText | None, NO_NULL] = None
    collection: CollectionName = DEFAULT_COLLECTION


class SearchForm(SearchFields):
    file: PictureFile
    score_threshold: Annotated[ScoreThreshold | None, NO_NULL] = None
    filter_metadata: Annotated[FilterText | None, NO_NULL] = None


class EmbedForm(Fields):
    file: PictureFile


def refuse_misfilled_fields(*repeatable: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency: a second `file` or `id` would be dropped silently, and an empty field taken for one left out."""

    async def check(request: Request) -> None:
        seen: set[str] = set()
        for name, value in (await request.form()).multi_items():
            if value == "":
                raise InvalidRequest.for_field(name, "is empty; send a value, or leave the field out")
            if name in seen and name not in repeatable:
                raise InvalidRequest.for_field(name, "is given more than once; send it once")
            seen.add(name)

    return check
