"""Every error of the stack, and the one shape in which errors leave it (RFC 9457 problem details).

    VisionError
    ├── UrlNotAllowed          400 url_not_allowed
    ├── MalformedRequest       400 malformed_request
    ├── Unauthorized           401 unauthorized
    ├── NotFound               404 not_found
    │   ├── CollectionNotFound 404 collection_not_found
    │   └── PointNotFound      404 point_not_found
    ├── MethodNotAllowed       405 method_not_allowed
    ├── ReceiveTimeout         408 receive_timeout
    ├── CollectionExists       409 collection_exists
    ├── DimensionMismatch      409 dimension_mismatch
    ├── ImageTooLarge          413 image_too_large
    ├── BodyTooLarge           413 body_too_large
    ├── UnsupportedMediaType   415 unsupported_media_type
    ├── InvalidRequest         422 invalid_request
    ├── InvalidImage           422 invalid_image
    ├── RateLimited            429 rate_limited
    ├── HeadersTooLarge        431 headers_too_large
    ├── InternalError          500 internal_error
    ├── FetchFailed            502 fetch_failed
    ├── UpstreamError          502 upstream_error
    ├── Overloaded             503 overloaded
    ├── ServiceUnavailable     503 service_unavailable
    ├── FetchTimeout           504 fetch_timeout
    └── UpstreamTimeout        504 upstream_timeout

Code raises these and never builds an error response; `web.py` turns them into one. The `detail` is public: a sentence
that says what to do, without addresses, paths or library texts. What only the operator may see goes into `log_detail`.
"""

from typing import Any, ClassVar, TypedDict


class FieldError(TypedDict):
    """One entry of a 422's `errors` list."""

    field: str
    message: str


class VisionError(Exception):
    """Base of the tree. Subclasses set the status, the stable code, the title and a default sentence."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    default_detail: ClassVar[str] = "Something went wrong on our side. Try again; quote the request id if it persists."
    default_retry_after: ClassVar[int | None] = None

    def __init__(
        self,
        detail: str | None = None,
        *,
        log_detail: str | None = None,
        retry_after: int | None = None,
        errors: list[FieldError] | None = None,
    ) -> None:
        self.detail = detail or self.default_detail
        self.log_detail = log_detail
        self.retry_after = retry_after if retry_after is not None else self.default_retry_after
        self.errors = errors
        super().__init__(log_detail or self.detail)

    def problem(self, request_id: str | None = None) -> dict[str, Any]:
        """The problem object as it goes over the wire."""
        body: dict[str, Any] = {
            "type": f"urn:vision-stack:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if self.errors is not None:
            body["errors"] = self.errors
        return body

    @staticmethod
    def from_problem(problem: object, *, retry_after: int | None = None) -> "VisionError | None":
        """Rebuild the error that another service answered with; None where it is not one of ours."""
        if not isinstance(problem, dict):
            return None
        error_class = _BY_CODE.get(str(problem.get("code")))
        if error_class is None:
            return None
        detail = problem.get("detail")
        errors = problem.get("errors")
        return error_class(
            detail if isinstance(detail, str) else None,
            retry_after=retry_after,
            errors=errors if isinstance(errors, list) else None,
        )


class UrlNotAllowed(VisionError):
    status, code, title = 400, "url_not_allowed", "URL not allowed"
    default_detail = "Send a public http or https address of an image."


class MalformedRequest(VisionError):
    status, code, title = 400, "malformed_request", "Malformed request"
    default_detail = "This is not proper HTTP/1.1; send the request with an ordinary client."


class Unauthorized(VisionError):
    status, code, title = 401, "unauthorized", "Unauthorized"
    default_detail = "Send a valid API key in the X-API-Key header."


class NotFound(VisionError):
    status, code, title = 404, "not_found", "Not found"
    default_detail = "There is nothing at this address; see /docs for the endpoints."


class CollectionNotFound(NotFound):
    code, title = "collection_not_found", "Collection not found"
    default_detail = "This collection does not exist; create it with POST /vectors/collections."


class PointNotFound(NotFound):
    code, title = "point_not_found", "Point not found"
    default_detail = "No point with this id exists in the collection."


class MethodNotAllowed(VisionError):
    status, code, title = 405, "method_not_allowed", "Method not allowed"
    default_detail = "This address does not answer this method; see /docs for the endpoints."


class ReceiveTimeout(VisionError):
    status, code, title = 408, "receive_timeout", "Request too slow"
    default_detail = "The request body did not arrive in time; send it again over a faster connection."


class CollectionExists(VisionError):
    status, code, title = 409, "collection_exists", "Collection exists"
    default_detail = "A collection of this name exists with another configuration; choose another name."


class DimensionMismatch(VisionError):
    status, code, title = 409, "dimension_mismatch", "Dimension mismatch"
    default_detail = "The vector's length differs from the collection's dimension."


class ImageTooLarge(VisionError):
    status, code, title = 413, "image_too_large", "Image too large"
    default_detail = "The image is larger than this server accepts; send a smaller one."


class BodyTooLarge(VisionError):
    status, code, title = 413, "body_too_large", "Request body too large"
    default_detail = "The request body is larger than this endpoint accepts; send less."


class UnsupportedMediaType(VisionError):
    status, code, title = 415, "unsupported_media_type", "Unsupported media type"
    default_detail = "This is not an image of an accepted format."


class InvalidRequest(VisionError):
    """A parameter that cannot be used; `errors` names each field."""

    status, code, title = 422, "invalid_request", "Invalid request"
    default_detail = "A parameter is missing or out of range; see `errors`."

    @classmethod
    def for_field(cls, field: str, message: str) -> "InvalidRequest":
        return cls(f"{field}: {message}", errors=[{"field": field, "message": message}])


class InvalidImage(VisionError):
    status, code, title = 422, "invalid_image", "Invalid image"
    default_detail = "The image is damaged and cannot be decoded; send an intact file."


class RateLimited(VisionError):
    status, code, title = 429, "rate_limited", "Too many requests"
    default_detail = "Too many requests; wait as long as Retry-After says."
    default_retry_after = 1


class HeadersTooLarge(VisionError):
    status, code, title = 431, "headers_too_large", "Headers too large"
    default_detail = "The request's headers are more or longer than this server reads; send fewer."


class InternalError(VisionError):
    pass


class FetchFailed(VisionError):
    status, code, title = 502, "fetch_failed", "Image could not be fetched"
    default_detail = "The image's host did not deliver the image; check the URL or try again."


class UpstreamError(VisionError):
    status, code, title = 502, "upstream_error", "An internal service failed"
    default_detail = "An internal service failed on this request; try again."


class Overloaded(VisionError):
    status, code, title = 503, "overloaded", "Overloaded"
    default_detail = "The server is at capacity; try again as Retry-After says."
    default_retry_after = 1


class ServiceUnavailable(VisionError):
    status, code, title = 503, "service_unavailable", "Service unavailable"
    default_detail = "A service needed for this request is not ready; try again as Retry-After says."
    default_retry_after = 5


class FetchTimeout(VisionError):
    status, code, title = 504, "fetch_timeout", "Image fetch timed out"
    default_detail = "The image's host was too slow; try again or upload the file."


class UpstreamTimeout(VisionError):
    status, code, title = 504, "upstream_timeout", "An internal service timed out"
    default_detail = "An internal service did not answer in time; try again."


def _subclasses(base: type[VisionError]) -> list[type[VisionError]]:
    direct = base.__subclasses__()
    return direct + [deeper for child in direct for deeper in _subclasses(child)]


_BY_CODE: dict[str, type[VisionError]] = {error.code: error for error in _subclasses(VisionError)}
