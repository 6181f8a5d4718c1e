"""Everything that goes over a wire, as pydantic models used by both ends.

The names, bounds and defaults are the public API's. Requests refuse unknown fields, so that a typo is seen.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)

DEFAULT_COLLECTION = "images"
MAX_ORIGINAL_ID = 1024
MAX_BATCH_ITEMS = 100
# Of a filter: keys, parts of a dotted key, values in a list.
MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES = 64, 5, 1000
# The key under which the store keeps what is its own.
PRIVATE_KEY = "_vision"

CollectionName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"),
    Field(description="Letters, digits, `_` and `-`; at most 64.", examples=["images"]),
]


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 5.0 is an integer there, to JSON Schema too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = BeforeValidator(_whole)
Limit = Annotated[int, Field(ge=1, le=100, description="At most so many items."), _Whole]
Variants = Annotated[int, Field(ge=1, le=10, description="How many different captions."), _Whole]
MaxLength = Annotated[int, Field(ge=5, le=200, description="Longest caption, in tokens."), _Whole]
Confidence = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="Least confidence of a box.")]
SearchLimit = Annotated[int, Field(ge=1, le=1000, description="At most so many results."), _Whole]
ScoreThreshold = Annotated[
    float,
    Field(
        allow_inf_nan=False,
        description="Least similarity of a result (for `euclid` and `manhattan`: the largest distance).",
    ),
]
ImageUrl = Annotated[
    str,
    Field(
        description="Public http or https address of an image.",
        examples=["https://example.com/picture.webp"],
    ),
]


def _point_id(value: Any) -> int | str:
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("send an unsigned 64-bit integer or a text")
    if isinstance(value, int):
        if not 0 <= value < 2**64:
            raise ValueError("an integer id lies between 0 and 2^64 - 1; send others as text")
    elif not 0 < len(value) <= MAX_ORIGINAL_ID:
        raise ValueError(f"a text id has 1 to {MAX_ORIGINAL_ID} characters")
    return value


TextId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_ORIGINAL_ID,
        description="Digits of an unsigned 64-bit integer or a UUID: kept. Any other text: replaced by a UUID derived"
        " from it.",
        examples=["img-001"],
    ),
]
PointId = Annotated[
    int | str,
    PlainValidator(_point_id),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**64},
                {"type": "string", "minLength": 1, "maxLength": MAX_ORIGINAL_ID},
            ],
            "description": "Unsigned 64-bit integer or UUID: kept. Any other text: replaced by a UUID derived from it.",
            "examples": ["img-001"],
        }
    ),
]


def _refuse_non_finite(value: Any) -> Any:
    """JSON has no NaN and no infinity, though parsers let them pass; stored, they would turn into null."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("holds a number that is not finite")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_non_finite(inner)
    return value


_Object = Annotated[dict[str, JsonValue], AfterValidator(_refuse_non_finite)]
METADATA_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Any JSON object of at most 64 KiB that nests at most 64 deep; it comes back exactly as sent."
    f" The key `{PRIVATE_KEY}` is reserved, and `_original_id` may only be the request's own id.",
    "examples": [{"category": "wallpaper", "width": 3840}],
}
Metadata = Annotated[_Object, WithJsonSchema(METADATA_SCHEMA)]


_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_RANGE = {
    "type": "object",
    "description": "All bounds are numbers, or all are RFC 3339 times.",
    "properties": {key: {"type": ["number", "string"], "format": "date-time"} for key in ("gte", "lte", "gt", "lt")},
    "additionalProperties": False,
    "minProperties": 1,
}
_KEY_PART = r'[^."\\]+'
FILTER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Exact value, list of values (any of), or a range `{gte, lte, gt, lt}` on numbers or RFC 3339 times;"
    " keys may be dotted; ANDed.",
    "maxProperties": MAX_CONDITIONS,
    "propertyNames": {
        "pattern": rf"^(?!{PRIVATE_KEY}(\.|$)){_KEY_PART}(\.{_KEY_PART}){{0,{MAX_DEPTH - 1}}}$",
    },
    "additionalProperties": {
        "anyOf": [
            _SCALAR,
            {"type": "array", "items": _SCALAR, "minItems": 1, "maxItems": MAX_VALUES},
            _RANGE,
        ]
    },
    "examples": [{"category": "wallpaper"}],
}
Filter = Annotated[_Object, WithJsonSchema(FILTER_SCHEMA)]
Vector = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]],
    Field(min_length=1, max_length=65536, description="The embedding; as long as the collection's `vector_dim`."),
]
# U+0085 is stripped like any space, which `\s` means only in some of the languages that read the document
_NOT_BLANK = r"[^\s\x85]"
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=_NOT_BLANK)]
TagList = Annotated[
    list[Tag], Field(min_length=1, max_length=1000, description="Choose among these tags instead of the vocabulary.")
]
SearchText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000, pattern=_NOT_BLANK)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JsonRequest(Request):
    """A JSON body: a number is no text and no truth value there, as it may be in a form."""

    model_config = ConfigDict(strict=True)


class Answer(BaseModel):
    """Answers tolerate fields that a newer service adds."""

    model_config = ConfigDict(extra="ignore")


# --- analysis -----------------------------------------------------------------------------------------------------


class ClipOptions(Request):
    limit: Limit = 5
    tags: TagList | None = None


class BlipOptions(Request):
    variants: Variants = 1
    max_length: MaxLength = 50


class YoloOptions(Request):
    conf: Confidence = 0.25


class AllOptions(Request):
    limit: Limit = 5
    variants: Variants = 1
    max_length: MaxLength = 50
    conf: Confidence = 0.25


class ClipUrlRequest(ClipOptions, JsonRequest):
    url: ImageUrl


class BlipUrlRequest(BlipOptions, JsonRequest):
    url: ImageUrl


class YoloUrlRequest(YoloOptions, JsonRequest):
    url: ImageUrl


class AllUrlRequest(AllOptions, JsonRequest):
    url: ImageUrl


class TagScore(Answer):
    tag: str = Field(examples=["mountain"])
    confidence: float = Field(ge=0, le=1, description="Softmax over the vocabulary.", examples=[0.41])


class Caption(Answer):
    caption: str = Field(examples=["a mountain under a night sky"])
    score: float = Field(
        gt=0, le=1, description="Exponential of the mean log-probability of the caption's tokens.", examples=[0.62]
    )


class Detection(Answer):
    model_config = ConfigDict(extra="ignore", validate_by_name=True, serialize_by_alias=True)

    class_name: str = Field(alias="class", examples=["dog"])
    confidence: float = Field(ge=0, le=1, examples=[0.91])
    bbox: tuple[float, float, float, float] = Field(
        description="x1, y1, x2, y2 in pixels of the upright image.", examples=[[12.0, 30.5, 200.0, 220.0]]
    )


class ImageInfo(Answer):
    width: int = Field(description="Pixels, as a viewer shows it.")
    height: int
    format: str = Field(examples=["webp"])


class Problem(Answer):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    errors: list[dict[str, str]] | None = None


class AnalyzeAll(Answer):
    clip: list[TagScore] | None
    blip: list[Caption] | None
    yolo: list[Detection] | None
    image: ImageInfo
    errors: dict[str, Problem] = Field(description="The problem of each service whose part is null.")
    timings_ms: dict[str, float] = Field(description="`fetch`, `decode`, `clip`, `blip`, `yolo`, `total`.")


# --- vectors ------------------------------------------------------------------------------------------------------


class PointFields(JsonRequest):
    """What a caller says about a point, however its vector comes."""

    id: PointId | None = None
    metadata: Metadata | None = None
    collection: CollectionName = DEFAULT_COLLECTION


class SearchFields(Request):
    limit: SearchLimit = 5
    score_threshold: ScoreThreshold | None = None
    filter_metadata: Filter | None = None
    collection: CollectionName = DEFAULT_COLLECTION


class UpsertUrlRequest(PointFields):
    url: ImageUrl


class UpsertVectorRequest(PointFields):
    vector: Vector


class BatchItem(JsonRequest):
    url: ImageUrl
    id: PointId | None = None
    metadata: Metadata | None = None


class UpsertBatchRequest(JsonRequest):
    items: list[BatchItem] = Field(min_length=1, max_length=MAX_BATCH_ITEMS)
    collection: CollectionName = DEFAULT_COLLECTION


class SearchUrlRequest(SearchFields, JsonRequest):
    url: ImageUrl


class SearchVectorRequest(SearchFields, JsonRequest):
    vector: Vector


class SearchTextRequest(SearchFields, JsonRequest):
    text: SearchText


class EmbedUrlRequest(JsonRequest):
    url: ImageUrl


class EmbedTextRequest(JsonRequest):
    text: SearchText


class DeletePointsRequest(JsonRequest):
    ids: list[PointId] = Field(min_length=1, max_length=10_000, description="Point ids or original ids.")
    collection: CollectionName = DEFAULT_COLLECTION


Distance = Literal["cosine", "dot", "euclid", "manhattan"]


class CreateCollectionRequest(JsonRequest):
    name: CollectionName
    vector_dim: Annotated[int, Field(ge=1, le=65536), _Whole] | None = Field(
        None, description="Default: CLIP's dimension."
    )
    distance: Distance = "cosine"


class Upserted(Answer):
    id: int | str
    collection: str
    original_id: str | None = Field(description="The caller's id, where it had to be replaced.")


class BatchError(Answer):
    error: Problem


class Hit(Answer):
    id: int | str
    score: float
    metadata: dict[str, Any]


class Point(Answer):
    id: int | str
    metadata: dict[str, Any]
    vector: list[float] | None = None


class Collection(Answer):
    name: str
    vector_dim: int
    distance: Distance
    points_count: int
    status: str = Field(examples=["green"])


class Deleted(Answer):
    deleted: int = Field(description="How many of the ids existed.")


class CollectionDeleted(Answer):
    deleted: bool


class Embedding(Answer):
    vector: list[float] = Field(description="Unit length.")
    model: str = Field(examples=["ViT-B-32/laion2b_s34b_b79k"])
    dim: int = Field(examples=[512])


# --- state --------------------------------------------------------------------------------------------------------


class ServiceStatus(Answer):
    """What a service says of itself on `/readyz`; the gateway shows it under `services` in `/health`."""

    status: Literal["ok", "loading", "failed", "unavailable"]
    model: str | None = None
    device: str | None = None
    precision: str | None = None
    runtime: str | None = None
    instance: str | None = Field(None, description="Tells one run of a model service from every other; not public.")
    circuit: Literal["closed", "open", "half-open"] | None = Field(
        None, description="The gateway's circuit breaker towards the service; `open` refuses at once."
    )


class Health(Answer):
    status: Literal["ok", "degraded", "unavailable"]
    version: str
    services: dict[str, ServiceStatus]
