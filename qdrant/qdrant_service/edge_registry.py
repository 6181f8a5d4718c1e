"""Which collections the embedded store has, and in which folder each lies.

    lock                        held while a process has the store open
    registry.json               the truth: what it does not name does not exist
    collections/NAME.HEX/       one shard of the engine

Creating and deleting are one atomic write of the registry each. A folder that it does not name is the rest of a
creation or a deletion that a kill cut short, and is removed at the next start.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from .edge_disk import sync_folder
from .store import COLLECTION_NAME, CollectionConfig, StoreOpenError

logger = logging.getLogger(__name__)

_VERSION = 1
# how long the build of an index may outlive its service that was killed, and write where nothing is needed any more
_DYING_S = 5.0
_FOLDER = re.compile(COLLECTION_NAME.pattern + r"\.[0-9a-f]{32}")


class Registry:
    """Not for use by several threads at once. `open` is the way to get one."""

    def __init__(self, root: Path, lock: int, entries: dict[str, tuple[CollectionConfig, str]]) -> None:
        self._root = root
        self._lock = lock
        self._entries = entries

    @classmethod
    def open(cls, root: Path) -> Self:
        """Raises `StoreOpenError`."""
        try:
            (root / "collections").mkdir(parents=True, exist_ok=True)
            lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise StoreOpenError(f"QDRANT_PATH: {root} cannot be used: {exc.strerror}") from exc
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise StoreOpenError(
                    f"QDRANT_PATH: {root} is in use by another process; stop it, choose another path, "
                    "or set QDRANT_URL to share one server"
                ) from exc
            registry = cls(root, lock, _read(root))
            registry._write(registry._entries)
            registry._remove_leftovers()
        except OSError as exc:
            os.close(lock)
            raise StoreOpenError(f"QDRANT_PATH: {root} cannot be used: {exc.strerror}") from exc
        except BaseException:
            os.close(lock)
            raise
        return registry

    def close(self) -> None:
        os.close(self._lock)

    @property
    def configs(self) -> dict[str, CollectionConfig]:
        return {name: config for name, (config, _) in self._entries.items()}

    def path(self, name: str) -> Path:
        return self._root / "collections" / self._entries[name][1]

    @property
    def paths(self) -> list[Path]:
        return [self.path(name) for name in self._entries]

    def new_folder(self, name: str) -> Path:
        """An empty folder for a shard that does not exist until `add` says so."""
        folder = self._root / "collections" / f"{name}.{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def add(self, config: CollectionConfig, folder: Path) -> None:
        self._write({**self._entries, config.name: (config, folder.name)})

    def replace(self, config: CollectionConfig) -> None:
        self._write({**self._entries, config.name: (config, self._entries[config.name][1])})

    def move(self, config: CollectionConfig, folder: Path) -> None:
        """Another folder takes the place of the collection's. After an `OSError` the disk may name either."""
        self._write({**self._entries, config.name: (config, folder.name)})

    def remove(self, name: str) -> Path:
        """The folder that is no longer needed."""
        folder = self.path(name)
        self._write({other: entry for other, entry in self._entries.items() if other != name})
        return folder

    def _write(self, entries: dict[str, tuple[CollectionConfig, str]]) -> None:
        content = {
            "version": _VERSION,
            "collections": [{**asdict(config), "folder": folder} for config, folder in entries.values()],
        }
        target, draft = self._root / "registry.json", self._root / "registry.json.new"
        with draft.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        self._entries = entries
        sync_folder(self._root)

    def _remove_leftovers(self) -> None:
        named = {folder for _, folder in self._entries.values()}
        deadline = time.monotonic() + _DYING_S
        for folder in (self._root / "collections").iterdir():
            if folder.name not in named and _FOLDER.fullmatch(folder.name):
                _remove(folder, deadline)


def _remove(folder: Path, deadline: float) -> None:
    """A leftover that cannot be removed takes room and nothing else: no reason not to start."""
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as exc:
            if time.monotonic() > deadline:
                logger.warning("%s is not needed any more and cannot be removed: %s", folder, exc.strerror)
                return
            time.sleep(0.05)


def _read(root: Path) -> dict[str, tuple[CollectionConfig, str]]:
    path = root / "registry.json"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        if any((root / "collections").iterdir()):
            # an empty registry would take all of it for leftovers
            raise StoreOpenError(f"QDRANT_PATH: {path} is missing though there is data; restore it") from None
        return {}
    except ValueError as exc:
        raise StoreOpenError(f"QDRANT_PATH: {path} is damaged; restore it") from exc
    try:
        if content["version"] != _VERSION:
            raise StoreOpenError(f"QDRANT_PATH: {path} was written by a newer version; update this one")
        return {entry["name"]: (_config(entry), str(entry["folder"])) for entry in content["collections"]}
    except (TypeError, KeyError) as exc:
        raise StoreOpenError(f"QDRANT_PATH: {path} is damaged; restore it") from exc


def _config(entry: dict[str, Any]) -> CollectionConfig:
    return CollectionConfig(entry["name"], entry["vector_dim"], entry["distance"], entry["embedding_model"])
