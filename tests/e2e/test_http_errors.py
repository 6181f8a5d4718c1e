"""Those tests of the error codes that need no second gateway and no frozen process, on containers."""

from test_api_errors import (
    test_a_redirect_passes_the_same_guard,
    test_every_key_works,
    test_fetch_failed_names_the_hosts_status,
    test_invalid_image,
    test_invalid_request,
    test_unauthorized,
    test_unknown_addresses_and_methods,
    test_unsupported_media_type,
    test_url_not_allowed,
)

__all__ = [
    "test_a_redirect_passes_the_same_guard",
    "test_every_key_works",
    "test_fetch_failed_names_the_hosts_status",
    "test_invalid_image",
    "test_invalid_request",
    "test_unauthorized",
    "test_unknown_addresses_and_methods",
    "test_unsupported_media_type",
    "test_url_not_allowed",
]
