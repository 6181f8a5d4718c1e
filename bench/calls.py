"""Both ends of a conversation with a child process: one JSON object a line, a call and its answer.

Imports the standard library alone, because peers run it in environments of their own.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any


def answer(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Serve calls from stdin until it ends. Whatever else writes to stdout goes to stderr."""
    replies: IO[str] = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        call = json.loads(line)
        try:
            reply = {"result": functions[call["function"]](**call["arguments"])}
        except Exception:
            reply = {"error": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def request(to: IO[str], replies: IO[str], function: str, arguments: Mapping[str, Any]) -> Any:
    """The result of one call. Raises `RuntimeError` with the child's traceback, or where the child has ended."""
    try:
        to.write(json.dumps({"function": function, "arguments": arguments}) + "\n")
        to.flush()
        line = replies.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        raise RuntimeError(f"the process ended before it answered {function}")
    reply = json.loads(line)
    if "error" in reply:
        raise RuntimeError(f"{function} failed there:\n{reply['error']}")
    return reply["result"]
