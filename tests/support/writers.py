"""Clients that write through the public API while services die, and remember what must be there afterwards."""

import json
import random
import threading
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

CONTRACT_CODES = {502: {"upstream_error"}, 503: {"service_unavailable", "overloaded"}, 504: {"upstream_timeout"}}
DIM = 8


@dataclass(frozen=True, slots=True)
class Stored:
    """What a point is expected to be; `None` in its place stands for no point."""

    vector: Sequence[float]
    metadata: dict[str, Any]

    def is_shown_by(self, point: dict[str, Any]) -> bool:
        return exact(point["metadata"]) == exact(self.metadata) and point["vector"] == pytest.approx(
            list(self.vector), abs=1e-5
        )


@dataclass(frozen=True, slots=True)
class Picture:
    """`vector` is what CLIP makes of it."""

    data: bytes
    vector: Sequence[float]


@dataclass(slots=True)
class Findings:
    """Acknowledged writes and deletions: how many were looked at, which were gone, which were not right."""

    checked: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def exact(value: object) -> str:
    """Tells 1 from 1.0 and true, which `==` does not."""
    return json.dumps(value, sort_keys=True)


class Writer:
    """One client with ids of its own. `work` until `stop` is set, then `verify`; both may be called again.

    `points` has the states that each point may be in: the one last acknowledged, and those asked for since.
    """

    def __init__(
        self, client: httpx2.Client, number: int, seed: int, vectors: str, pictures: Sequence[Picture]
    ) -> None:
        self._client = client
        self._number = number
        self._random = random.Random(f"{seed}-{number}")
        self._vectors = vectors
        self._pictures = pictures
        self._serial = 0
        self.acknowledged = 0
        self.failures: list[str] = []
        self.points: dict[tuple[str, int | str], list[Stored | None]] = {}
        self.collections: dict[str, set[bool]] = {}
        self._touched: set[tuple[str, int | str]] = set()

    def work(self, stop: threading.Event) -> None:
        actions = [self._upsert, self._replace, self._upsert_picture, self._delete, self._collection, self._read]
        weights = [40, 20, 8, 15, 7, 10]
        try:
            while not stop.is_set():
                if not self._random.choices(actions, weights)[0]():
                    stop.wait(0.05)
        except Exception as exc:
            self.failures.append(repr(exc))

    def _upsert(self) -> bool:
        return self._write(self._vectors, self._new_id())

    def _replace(self) -> bool:
        mine = [id for collection, id in self.points if collection == self._vectors]
        return self._write(self._vectors, self._random.choice(mine)) if mine else True

    def _write(self, collection: str, id: int | str) -> bool:
        vector = [float(self._random.randint(-8, 8)) for _ in range(DIM)]
        metadata = self._metadata()
        body = {"vector": vector, "id": id, "metadata": metadata, "collection": collection}
        return self._change(collection, id, Stored(vector, self._kept(id, metadata)), "upsert/vector", json=body)

    def _upsert_picture(self) -> bool:
        if not self._pictures:
            return True
        id, metadata = self._new_id(), self._metadata()
        picture = self._random.choice(self._pictures)
        form = {"id": str(id), "metadata_json": json.dumps(metadata), "collection": f"{self._vectors}-pictures"}
        stored = Stored(picture.vector, self._kept(id, metadata))
        return self._change(
            form["collection"], id, stored, "upsert/file", data=form, files={"file": ("p", picture.data)}
        )

    def _delete(self) -> bool:
        if not self.points:
            return True
        collection, id = self._random.choice(list(self.points))
        before = self.points[collection, id]
        body = {"ids": [id], "collection": collection}
        answer: list[int] = []
        done = self._change(collection, id, None, "delete", answer, json=body)
        if answer and answer[0] not in {int(state is not None) for state in before}:
            self.failures.append(f"{id}: {answer[0]} deleted of {before}")
        return done

    def _change(
        self,
        collection: str,
        id: int | str,
        state: Stored | None,
        path: str,
        deleted: list[int] | None = None,
        **request: Any,
    ) -> bool:
        states = self.points.setdefault((collection, id), [None])
        self._touched.add((collection, id))
        response = self._send("POST", f"/vectors/{path}", **request)
        if response is None:
            states.append(state)
            return False
        if deleted is not None:
            deleted.append(response.json()["deleted"])
        self.points[collection, id] = [state]
        self.acknowledged += 1
        return True

    def _collection(self) -> bool:
        there = [name for name, states in self.collections.items() if True in states]
        if there and self._random.random() < 0.5:
            name = self._random.choice(there)
            response = self._send("DELETE", f"/vectors/collections/{name}", also={404})
            wanted = False
        else:
            self._serial += 1
            name, wanted = f"{self._vectors}-{self._number}-{self._serial}", True
            response = self._send("POST", "/vectors/collections", json={"name": name, "vector_dim": 2})
        known = self.collections.setdefault(name, {False})
        if response is None:
            known.add(wanted)
            return False
        if response.status_code == 404 and known == {True}:
            self.failures.append(f"{name} was gone before its deletion")
        self.collections[name] = {wanted}
        self.acknowledged += 1
        return True

    def _read(self) -> bool:
        """A point that answers to an original id must be the one that was stored under it, at any moment."""
        texts = [(collection, id) for collection, id in self.points if self._is_text(id)]
        if texts:
            collection, id = self._random.choice(texts)
            response = self._send(
                "GET", f"/vectors/points/by-original-id/{id}", params={"collection": collection}, also={404}
            )
            if response is None:
                return False
            if response.status_code == 200 and response.json()["metadata"]["_original_id"] != id:
                self.failures.append(f"{id} was answered with {response.text}")
        return True

    def _send(self, method: str, path: str, *, also: Collection[int] = (), **request: Any) -> httpx2.Response | None:
        """None where it is not known whether it was done."""
        try:
            response = self._client.request(method, path, **request)
        except httpx2.TransportError:
            return None
        if response.status_code < 300 or response.status_code in also:
            return response
        if response.json()["code"] not in CONTRACT_CODES.get(response.status_code, set()):
            self.failures.append(f"{method} {path}: {response.text}")
        return None

    def verify(self, findings: Findings, *, everything: bool = False) -> None:
        """Ask for all that was touched since the last time; what is found there is what must be there from now on."""
        for collection, id in list(self.points) if everything else sorted(self._touched, key=repr):
            states = self.points[collection, id]
            found = self._find(collection, id)
            findings.checked += 1
            if found is None:
                if None not in states:
                    findings.lost.append(f"{id} of {collection}")
                self.points[collection, id] = [None]
                continue
            shown = [state for state in states if state is not None and state.is_shown_by(found)]
            if not shown or found["id"] != self._point_id(id, found):
                findings.wrong.append(f"{id} of {collection}: {found}, not {states}")
            else:
                self.points[collection, id] = [shown[-1]]
        for name, possible in self.collections.items():
            findings.checked += 1
            there = self._ask(f"/vectors/collections/{name}", {}) is not None
            if there not in possible:
                (findings.wrong if there else findings.lost).append(f"collection {name}")
            self.collections[name] = {there}
        self._touched.clear()

    def present(self, collection: str) -> int:
        """How many points of the collection this writer must have, after `verify`."""
        return sum(name == collection and states != [None] for (name, _), states in self.points.items())

    def _find(self, collection: str, id: int | str) -> dict[str, Any] | None:
        way = "by-original-id/" if self._is_text(id) else ""
        return self._ask(f"/vectors/points/{way}{id}", {"collection": collection, "with_vector": "true"})

    def _ask(self, path: str, params: dict[str, str]) -> dict[str, Any] | None:
        """As clients should: after a 503, again when Retry-After says; a breaker closes a moment after a restart."""
        for _ in range(30):
            response = self._client.get(path, params=params)
            if response.status_code in (200, 404):
                return response.json() if response.status_code == 200 else None
            threading.Event().wait(int(response.headers.get("retry-after", 1)))
        raise AssertionError(f"{path}: {response.text}")

    def _new_id(self) -> int | str:
        self._serial += 1
        match self._serial % 3:
            case 0:
                return self._number * 1_000_000 + self._serial
            case 1:
                return str(uuid.UUID(int=self._random.getrandbits(128)))
        return f"w{self._number}/{self._serial}.webp"

    def _metadata(self) -> dict[str, Any]:
        value = self._random
        return {
            "n": value.randint(-(2**60), 2**60), "f": value.random(), "flag": value.random() < 0.5,
            "nested": {"list": [1, 1.0, None, "x"], "word": value.choice("abc")}, "serial": self._serial,
        }  # fmt: skip

    def _kept(self, id: int | str, metadata: dict[str, Any]) -> dict[str, Any]:
        return metadata | ({"_original_id": id} if self._is_text(id) else {})

    @staticmethod
    def _is_text(id: int | str) -> bool:
        return isinstance(id, str) and "/" in id

    def _point_id(self, id: int | str, found: dict[str, Any]) -> int | str:
        return str(found["id"]) if self._is_text(id) else id


def working(writers: Sequence[Writer], stop: threading.Event) -> Iterator[None]:
    """Writes in threads while the caller's block runs; use it with `contextmanager`."""
    threads = [threading.Thread(target=writer.work, args=(stop,)) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)
