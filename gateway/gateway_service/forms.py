"""The multipart twins of the JSON requests: the same fields, with a `file` in place of the `url`."""

import json
from typing import Annotated, Any

from fastapi import Form, Request, UploadFile
from pydantic import BeforeValidator, Field

from visionstack.errors import InvalidRequest
from visionstack.schemas import (
    DEFAULT_COLLECTION,
    AllOptions,
    BlipOptions,
    ClipOptions,
    CollectionName,
    Metadata,
    SearchFields,
    YoloOptions,
)
from visionstack.schemas import Request as Fields

MULTIPART = Form(media_type="multipart/form-data")


def _json_object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON, or nests too deep") from None


JsonMetadata = Annotated[Metadata, BeforeValidator(_json_object, json_schema_input_type=str)]
ImageFile = Annotated[UploadFile, Field(description="The image; its format is recognised by its content.")]


class ClipForm(ClipOptions):
    file: ImageFile


class BlipForm(BlipOptions):
    file: ImageFile


class YoloForm(YoloOptions):
    file: ImageFile


class AllForm(AllOptions):
    file: ImageFile


class UpsertForm(Fields):
    file: ImageFile
    id: str | None = Field(None, description="As in the JSON request; digits are an integer.")
    metadata_json: JsonMetadata | None = Field(None, description="The metadata as JSON text.")
    collection: CollectionName = DEFAULT_COLLECTION


class SearchForm(SearchFields):
    file: ImageFile
    filter_metadata: JsonMetadata | None = Field(None, description="The filter as JSON text.")


class EmbedForm(Fields):
    file: ImageFile


async def refuse_repeated_fields(request: Request) -> None:
    """A second `file` or `id` would be dropped silently; only `tags` may come several times."""
    names = [name for name, _ in (await request.form()).multi_items()]
    for name in dict.fromkeys(names):
        if name != "tags" and names.count(name) > 1:
            raise InvalidRequest.for_field(name, "is given more than once; send it once")
