"""What every error answer must be like; tests call this for each one they provoke."""

import json
import re
from typing import Any

import httpx2

# a stack trace, an address of the internal network, a Python object
_LEAKS = re.compile(r"Traceback|File \"|0x[0-9a-f]{6,}|(?<![\d.])(?:10|127|172\.\d+)\.\d+\.\d+\.\d+|site-packages")


def assert_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document, after checking its shape, its status and code, and that it tells nothing internal."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code), problem
    assert set(problem) >= {"type", "title", "status", "detail", "code", "request_id"}
    assert problem["request_id"] == response.headers["x-request-id"]
    assert len(problem["detail"]) > 10
    assert not _LEAKS.search(json.dumps(problem)), problem
    if status == 422 and code == "invalid_request":
        assert problem["errors"]
        assert all(set(error) == {"field", "message"} for error in problem["errors"])
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    return problem
