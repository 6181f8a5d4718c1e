"""A Qdrant server without a server: its REST API as a transport, answered by qdrant-client's in-memory engine.

What the adapter sends and reads is therefore the real client's JSON. Like the real server's, its JSON reader rounds
numbers that it cannot hold. Payload indexes are listed, but have no effect.
"""

import asyncio
import json
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from qdrant_client import AsyncQdrantClient, models


class QdrantWire(httpx.AsyncBaseTransport):
    """Give it to `QdrantServerStore(transport=...)`; `requests` lists what arrived."""

    def __init__(self) -> None:
        self.engine = AsyncQdrantClient(":memory:")
        self.indexes: dict[str, dict[str, str]] = {}
        self.requests: list[tuple[str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((request.method, request.url.path))
        await asyncio.sleep(0)  # as on a network, other calls come in between
        body = json.loads(await request.aread() or "{}", parse_int=_read_integer, parse_float=_read_float)
        try:
            result = await self._answer(request, body)
        except ValueError as exc:
            status = 409 if "already exists" in str(exc) else 404 if "not found" in str(exc) else 400
            return httpx.Response(status, json={"status": {"error": str(exc)}, "time": 0.0})
        return httpx.Response(200, content=json.dumps({"result": result, "status": "ok", "time": 0.0}))

    async def _answer(self, request: httpx.Request, body: Any) -> Any:
        match [request.method, *request.url.path.strip("/").split("/")]:
            case ["GET", "collections"]:
                return _dump(await self.engine.get_collections())
            case ["GET", "collections", name]:
                info = _dump(await self.engine.get_collection(name))
                kinds = self.indexes.get(name, {})
                info["payload_schema"] = {path: {"data_type": kind, "points": 0} for path, kind in kinds.items()}
                return info
            case ["PUT", "collections", name]:
                vectors = models.VectorParams(**body["vectors"])
                self.indexes[name] = {}
                return await self.engine.create_collection(name, vectors_config=vectors, metadata=body.get("metadata"))
            case ["PATCH", "collections", name]:
                return await self.engine.update_collection(name, metadata=body["metadata"])
            case ["DELETE", "collections", name]:
                if not await self.engine.collection_exists(name):
                    return False
                self.indexes.pop(name, None)
                return await self.engine.delete_collection(name)
            case ["PUT", "collections", name, "index"]:
                self.indexes[name][body["field_name"]] = body["field_schema"]
                return _completed()
            case ["DELETE", "collections", name, "index", path]:
                self.indexes[name].pop(path)
                return _completed()
            case ["PUT", "collections", name, "points"]:
                await self._check_lengths(name, [point["vector"] for point in body["points"]])
                await self.engine.upsert(name, [models.PointStruct(**point) for point in body["points"]])
                return _completed(request)
            case ["POST", "collections", name, "points"]:
                options = {"with_payload": body["with_payload"], "with_vectors": body["with_vector"]}
                return _dump(await self.engine.retrieve(name, body["ids"], **options))
            case ["POST", "collections", name, "points", "delete"]:
                await self.engine.delete(name, models.PointIdsList(points=body["points"]))
                return _completed(request)
            case ["POST", "collections", name, "points", "scroll"]:
                points, _ = await self.engine.scroll(
                    name,
                    models.Filter(**body["filter"]),
                    limit=body["limit"],
                    with_vectors=body["with_vector"],
                )
                return {"points": _dump(points), "next_page_offset": None}
            case ["POST", "collections", name, "points", "query"]:
                vector = body["query"]["nearest"]
                await self._check_lengths(name, [vector])
                conditions = models.Filter(**body["filter"]) if "filter" in body else None
                found = await self.engine.query_points(name, vector, query_filter=conditions, limit=body["limit"])
                return _dump(found)
        raise NotImplementedError(f"{request.method} {request.url}")

    async def _check_lengths(self, name: str, vectors: list[list[float]]) -> None:
        vector_params = (await self.engine.get_collection(name)).config.params.vectors
        assert isinstance(vector_params, models.VectorParams)
        for vector in vectors:
            if len(vector) != vector_params.size:
                raise ValueError(f"Vector dimension error: expected dim: {vector_params.size}, got {len(vector)}")


def _completed(request: httpx.Request | None = None) -> dict[str, Any]:
    waited = request is None or request.url.params.get("wait") == "true"
    return {"operation_id": 0, "status": "completed" if waited else "acknowledged"}


def _dump(result: Any) -> Any:
    if isinstance(result, list):
        return [_dump(item) for item in result]
    return json.loads(result.model_dump_json())


def _read_integer(text: str) -> float:
    number = int(text)
    return number if -(2**63) <= number < 2**64 else float(number)


def _read_float(text: str) -> float:
    number = float(text)
    return number if float(f"{number:.15g}") == number else math.nextafter(number, math.inf)


@contextmanager
def qdrant_server() -> Iterator[int]:
    """The same over real sockets, for services that are processes of their own; gives the port on loopback."""
    wire = QdrantWire()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        url = httpx.URL(scheme="http", host="qdrant", path=scope["path"], query=scope["query_string"])
        response = await wire.handle_async_request(httpx.Request(scope["method"], url, content=body))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(response.content))]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.content})

    with socket.create_server(("127.0.0.1", 0)) as listener:  # listens at once: a client never comes too early
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="qdrant", daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)
