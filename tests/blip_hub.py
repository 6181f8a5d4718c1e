"""Run as a process: loads a BLIP model from a hub of its own, with and without that hub, and prints what came of it.

huggingface_hub reads its endpoint and its cache folder when it is imported, so no test can set them in its own process.
The first argument is a folder with a BLIP model.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_hub(folder: Path, tokens: list[str]) -> ThreadingHTTPServer:
    """Serves the folder's files as `here/model`, refuses `here/gated`; notes the tokens it is sent."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            tokens.append(self.headers.get("authorization", ""))
            if "/here/gated/" in self.path:
                return self.send(403, {"X-Error-Code": "GatedRepo"})
            file = folder / self.path.rpartition("/")[2]
            if not self.path.startswith("/here/model/resolve/main/") or not file.is_file():
                return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return self.send(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{file.name}"'}, file.read_bytes())

        def send(self, status: int, headers: dict[str, str], content: bytes = b"") -> bytes:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    tokens: list[str] = []
    hub = make_hub(Path(sys.argv[1]), tokens)
    with TemporaryDirectory() as home:
        os.environ["HF_HOME"] = home
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
        print(json.dumps(try_all(hub, tokens)))


def try_all(hub: ThreadingHTTPServer, tokens: list[str]) -> dict[str, object]:
    from blip_service.model import BlipModel, CaptionKey
    from blip_service.settings import BlipSettings
    from visionstack.model_service import ModelLoadError

    def load(name: str) -> object:
        settings = {"blip_model": name, "huggingface_token": "hf_secret", "device": "cpu", "precision": "fp32"}
        model = BlipModel(BlipSettings.model_validate(settings))
        try:
            model.load()
        except ModelLoadError as exc:
            return str(exc)
        (captions,) = model.predict(CaptionKey(2, 20), [np.zeros((90, 120, 3), np.uint8)])
        return [caption.model_dump() for caption in captions]

    results = {"gated": load("here/gated"), "online": load("here/model"), "tokens": sorted(set(tokens))}
    asked = len(tokens)
    results |= {"cached": load("here/model"), "asked again": len(tokens) - asked}
    hub.shutdown()
    hub.server_close()
    return results | {"offline": load("here/model")}


if __name__ == "__main__":
    main()
