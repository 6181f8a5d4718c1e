"""A small web server for image URLs, with the faults that real image hosts have."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

Respond = Callable[[BaseHTTPRequestHandler], None]


class ImageHost:
    """Serves what `put` gave it; `on` lets a test answer by hand. Counts the requests by path."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self._answers: dict[str, Respond] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                host.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                answer = host._answers.get(self.path)
                if answer is None:
                    self.send_error(404)
                else:
                    answer(self)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return self._server.server_port

    def url(self, path: str) -> str:
        return f"http://{self.address}:{self.port}{path}"

    def on(self, path: str, respond: Respond) -> str:
        self._answers[path] = respond
        return self.url(path)

    def put(self, path: str, data: bytes, content_type: str = "image/png") -> str:
        """Serve these bytes; returns the URL."""

        def respond(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Type", content_type)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

        return self.on(path, respond)

    def redirect(self, path: str, location: str, status: int = 302) -> str:
        def respond(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Location", location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return self.on(path, respond)
