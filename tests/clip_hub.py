"""Run as a process: loads CLIP models from a hub of its own, once more without it, and prints what came of it.

huggingface_hub reads its endpoint and its cache folder when it is imported, so a test cannot set them in its own
process. The first argument is a folder with an open_clip model.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_hub(folder: Path, tokens: list[str]) -> ThreadingHTTPServer:
    """Serves `here/model` from the folder, refuses `here/gated`, knows nothing else; notes the tokens it is sent."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            tokens.append(self.headers.get("authorization", ""))
            if self.path.startswith("/here/gated/"):
                return self.refuse(403, "GatedRepo")
            if not self.path.startswith("/here/model/resolve/main/"):
                return self.refuse(401, "RepoNotFound")
            file = folder / self.path.rpartition("/")[2]
            if not file.is_file():
                return self.refuse(404, "EntryNotFound")
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{file.name}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def refuse(self, status: int, code: str) -> bytes:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""

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
        print(json.dumps(try_all(hub, tokens, Path(home))))


def try_all(hub: ThreadingHTTPServer, tokens: list[str], folder: Path) -> dict[str, object]:
    from clip_service.model import ClipModel
    from clip_service.settings import ClipSettings
    from visionstack.model_service import ModelLoadError

    def load(name: str, **more: str) -> object:
        model = ClipModel(
            ClipSettings.model_validate(
                {"clip_model": name, "clip_tags_file": folder / "tags.txt", "cache_dir": folder / "cache", **more}
            )
        )
        try:
            model.load()
        except ModelLoadError as exc:
            return str(exc)
        return [model.identity, *model.predict("text", ["a castle"])[0][:4].tolist()]

    (folder / "tags.txt").write_text("castle\n")
    results = {
        "gated": load("hf-hub:here/gated"),
        "unknown": load("hf-hub:here/nothing"),
        "online": load("hf-hub:here/model", huggingface_token="hf_secret"),
        "tokens": sorted(set(tokens)),
    }
    hub.shutdown()
    hub.server_close()
    return results | {"hub gone": load("hf-hub:here/model")}


if __name__ == "__main__":
    main()
