"""What Hugging Face answers, as far as its clients ask: for hubs of the tests, on loopback and in a container.

Only the standard library: in a container nothing else is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Answer:
    """A status, the hub's word for a refusal, and otherwise the content of a file by its name."""

    status: int
    refusal: str = ""
    content: bytes = b""
    name: str = ""


GATED = Answer(403, "GatedRepo")
NO_REPOSITORY = Answer(401, "RepoNotFound")
NO_FILE = Answer(404, "EntryNotFound")


def hub_handler(find: Callable[[str, str], Answer]) -> type[BaseHTTPRequestHandler]:
    """GET and HEAD of what `find(path, authorization)` says."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            answer = find(self.path, self.headers.get("Authorization", ""))
            self.send_response(answer.status)
            self.send_header("X-Repo-Commit", _COMMIT)
            if answer.refusal:
                self.send_header("X-Error-Code", answer.refusal)
            else:
                self.send_header("ETag", f'"{answer.name}"')
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            return answer.content

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Hub
