"""A model hub on loopback that serves one folder, for processes that load a model from it: `HF_ENDPOINT`.

huggingface_hub reads its endpoint and its cache folder when it is imported, so no test can set them in its own process.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub:
    """Has the folder's files as `here/model`, refuses `here/gated`, knows nothing else.

    `tokens` is the authorization of every request so far.
    """

    def __init__(self, folder: Path) -> None:
        tokens: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.wfile.write(self.answer())

            def answer(self) -> bytes:
                tokens.append(self.headers.get("authorization", ""))
                if "/here/gated/" in self.path:
                    return self.send(403, {"X-Error-Code": "GatedRepo"})
                if "/here/model/" not in self.path:
                    return self.send(401, {"X-Error-Code": "RepoNotFound"})
                file = folder / self.path.rpartition("/")[2]
                if not self.path.startswith("/here/model/resolve/main/") or not file.is_file():
                    return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT})
                return self.send(200, {"X-Repo-Commit": _COMMIT, "ETag": f'"{file.name}"'}, file.read_bytes())

            def send(self, status: int, headers: dict[str, str], content: bytes = b"") -> bytes:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                return content

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.tokens = tokens
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def hub_with_empty_cache(folder: Path) -> Iterator[tuple[LoopbackHub, Path]]:
    """The hub that this process loads from, and a folder that is empty and goes when the context ends."""
    hub = LoopbackHub(folder)
    with TemporaryDirectory() as home:
        os.environ["HF_HOME"] = home
        os.environ["HF_ENDPOINT"] = hub.url
        yield hub, Path(home)
