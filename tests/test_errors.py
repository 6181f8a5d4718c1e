"""The exception tree and its wire shape."""

import re

import pytest

from visionstack import errors
from visionstack.errors import InvalidRequest, Overloaded, VisionError


def tree() -> list[type[VisionError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, VisionError)]


def test_every_class_stands_in_the_modules_drawing_with_its_status_and_code() -> None:
    drawn = re.findall(r"[├└]── (\w+)\s+(\d{3}) (\w+)", errors.__doc__ or "")
    assert {(name, int(status), code) for name, status, code in drawn} == {
        (error.__name__, error.status, error.code) for error in tree() if error is not VisionError
    }


@pytest.mark.parametrize("error_class", tree())
def test_each_error_survives_the_wire(error_class: type[VisionError]) -> None:
    sent = error_class("Do this.", retry_after=7)
    problem = sent.problem("req-1")
    assert problem["request_id"] == "req-1"
    assert problem["status"] == error_class.status
    received = VisionError.from_problem(problem, retry_after=7)
    assert received is not None
    assert (received.status, received.code, received.detail, received.retry_after) == (
        error_class.status,
        error_class.code,
        "Do this.",
        7,
    )


def test_field_errors_survive_the_wire() -> None:
    received = VisionError.from_problem(InvalidRequest.for_field("limit", "too large").problem())
    assert isinstance(received, InvalidRequest)
    assert received.errors == [{"field": "limit", "message": "too large"}]


@pytest.mark.parametrize("foreign", [None, [], "text", {}, {"code": "unheard_of"}, {"detail": "x"}])
def test_what_is_not_ours_is_none(foreign: object) -> None:
    assert VisionError.from_problem(foreign) is None


def test_the_log_detail_never_goes_out() -> None:
    assert "10.0.0.5" not in str(Overloaded(log_detail="10.0.0.5 refused").problem())
