"""Which errors each kind of endpoint can answer with, for the OpenAPI document."""

from visionstack.errors import (
    BodyTooLarge,
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    FetchFailed,
    FetchTimeout,
    ImageTooLarge,
    InternalError,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    PointNotFound,
    RateLimited,
    ReceiveTimeout,
    ServiceUnavailable,
    Unauthorized,
    UnsupportedMediaType,
    UpstreamError,
    UpstreamTimeout,
    UrlNotAllowed,
    VisionError,
)
from visionstack.web import problem_responses

_ANY: tuple[type[VisionError], ...] = (
    Unauthorized,
    InvalidRequest,
    RateLimited,
    InternalError,
    UpstreamError,
    Overloaded,
    ServiceUnavailable,
    UpstreamTimeout,
)
_BODY = (ReceiveTimeout, BodyTooLarge)
_IMAGE = (ImageTooLarge, UnsupportedMediaType, InvalidImage)
_FETCH = (UrlNotAllowed, FetchFailed, FetchTimeout)
_STORE = (CollectionNotFound, CollectionExists, DimensionMismatch)

URL_PROBLEMS = problem_responses(*_ANY, *_BODY, *_IMAGE, *_FETCH)
FILE_PROBLEMS = problem_responses(*_ANY, *_BODY, *_IMAGE)
JSON_PROBLEMS = problem_responses(*_ANY, *_BODY)
VECTOR_URL_PROBLEMS = problem_responses(*_ANY, *_BODY, *_IMAGE, *_FETCH, *_STORE)
VECTOR_FILE_PROBLEMS = problem_responses(*_ANY, *_BODY, *_IMAGE, *_STORE)
VECTOR_PROBLEMS = problem_responses(*_ANY, *_BODY, *_STORE)
POINT_PROBLEMS = problem_responses(*_ANY, CollectionNotFound, PointNotFound)
COLLECTION_PROBLEMS = problem_responses(*_ANY, *_BODY, CollectionNotFound, CollectionExists)
