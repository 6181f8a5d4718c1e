"""Run in a container: the bundled models, given out as Hugging Face and GitHub give out theirs.

Arguments: the folder of the models, the certificate for github.com, its key. Of Hugging Face there are `here/clip` and
`here/blip`, which need the token `hf_secret`, on port 8000; of GitHub there is yolo11n.pt, on port 443.
"""

import re
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def handler(models: Path) -> type[BaseHTTPRequestHandler]:
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            if re.fullmatch(r"/ultralytics/assets/releases/download/[^/]+/yolo11n\.pt", self.path):
                return self.send(200, {}, (models / "yolo.pt").read_bytes())
            named = re.fullmatch(r"/here/(clip|blip)/resolve/main/([\w.]+)", self.path)
            if named is None:
                return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT})
            if self.headers.get("Authorization") != "Bearer hf_secret":
                return self.send(403, {"X-Error-Code": "GatedRepo"})
            file = models / named[1] / named[2]
            if not file.is_file():
                return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT})
            return self.send(200, {"X-Repo-Commit": _COMMIT, "ETag": f'"{named[1]}-{file.name}"'}, file.read_bytes())

        def send(self, status: int, headers: dict[str, str], content: bytes = b"") -> bytes:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

    return Hub


def main() -> None:
    models, certificate, key = sys.argv[1:]
    plain = ThreadingHTTPServer(("", 8000), handler(Path(models)))
    secured = ThreadingHTTPServer(("", 443), handler(Path(models)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secured.socket = context.wrap_socket(secured.socket, server_side=True)
    Thread(target=plain.serve_forever, daemon=True).start()
    secured.serve_forever()


if __name__ == "__main__":
    main()
