"""`python -S -m visionstack.healthcheck`: exit 0 if the service in this container is ready. Images need no curl for it.

It runs every few seconds for as long as the container lives, so it imports as little as can be: an HTTP client would
cost three times the CPU.
"""

import os
import socket
import sys

_TIMEOUT_S = 3


def main() -> None:
    port = int(os.environ.get("PORT", "8000"))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
            connection.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            status_line = connection.makefile("rb").readline(1000).decode("latin-1").strip()
    except OSError as exc:
        sys.exit(f"not ready: {exc}")
    if status_line.split(" ")[1:2] != ["200"]:
        sys.exit(f"not ready: {status_line}")


if __name__ == "__main__":
    main()
