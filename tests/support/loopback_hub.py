"""A model hub on loopback that serves one folder, for processes that load a model from it: `HF_ENDPOINT`.

huggingface_hub reads its endpoint and its cache folder when it is imported, so no test can set them in its own process.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from model_hub import GATED, NO_FILE, NO_REPOSITORY, Answer, hub_handler


class LoopbackHub:
    """Has the folder's files as `here/model`, refuses `here/gated`, knows nothing else.

    `tokens` is the authorization of every request so far.
    """

    def __init__(self, folder: Path) -> None:
        self.tokens: list[str] = []
        self._folder = folder
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), hub_handler(self._find))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _find(self, path: str, authorization: str) -> Answer:
        self.tokens.append(authorization)
        if "/here/gated/" in path:
            return GATED
        if "/here/model/" not in path:
            return NO_REPOSITORY
        file = self._folder / path.rpartition("/")[2]
        if not path.startswith("/here/model/resolve/main/") or not file.is_file():
            return NO_FILE
        return Answer(200, content=file.read_bytes(), name=file.name)


@contextmanager
def hub_with_empty_cache(folder: Path) -> Iterator[tuple[LoopbackHub, Path]]:
    """The hub that this process loads from, and a folder that is empty and goes when the context ends."""
    hub = LoopbackHub(folder)
    with TemporaryDirectory() as home:
        os.environ["HF_HOME"] = home
        os.environ["HF_ENDPOINT"] = hub.url
        yield hub, Path(home)
