"""The embedded store: its files, kills, second processes, and the limits of its one thread."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge

import edge_writer
import qdrant_service.edge_registry
from mounts import PowerDisk
from qdrant_service.edge_store import QdrantEdgeStore
from qdrant_service.filters import parse_filter
from qdrant_service.store import MAX_DEMANDED_INDEXES, CollectionConfig, NewPoint, StoredPoint, StoreOpenError
from store_kit import fast_folder, point
from visionstack.errors import (
    CollectionNotFound,
    Overloaded,
    ServiceUnavailable,
    UpstreamError,
    UpstreamTimeout,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder / "data" / "qdrant"


async def open_edge(folder: Path, timeout_s: float = 30) -> QdrantEdgeStore:
    store = QdrantEdgeStore(folder, timeout_s=timeout_s)
    await store.open()
    return store


async def test_reopening_keeps_everything(folder: Path) -> None:
    store = await open_edge(folder)
    configs = [CollectionConfig("images", 3, "cosine", "model"), CollectionConfig("other", 2, "manhattan")]
    for config in configs:
        await store.create_collection(config)
    await store.record_model("other", "model-2")
    await store.upsert("images", [NewPoint(i, [1.0, i, 0.0], {"i": i, "even": i % 2 == 0}, f"n{i}") for i in range(50)])
    await store.delete("images", [3, 4])
    conditions = parse_filter({"even": True, "i": {"lt": 10}})
    before = await store.search("images", [1.0, 0.0, 0.0], limit=50, conditions=conditions)
    assert [hit.id for hit in before] == [0, 2, 6, 8]
    await store.close()

    store = await open_edge(folder)
    assert [info.config for info in await store.collections()] == [
        configs[0],
        replace(configs[1], embedding_model="model-2"),
    ]
    assert (await store.collection("images")).points_count == 48
    assert await store.search("images", [1.0, 0.0, 0.0], limit=50, conditions=conditions) == before
    assert await store.find_by_original_id("images", "n7") == StoredPoint(
        7, {"i": 7, "even": False, "_original_id": "n7"}
    )
    await store.close()


def python_path() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def write_until(
    end: Callable[[], object], folder: Path, after: int, *, padding: int = 0, index_after: int = 0
) -> dict[str, set[int]]:
    """The ids by what a writing process said of them before its death; `end` is called after at least `after` lines."""
    command = [sys.executable, edge_writer.__file__, str(folder), str(padding), str(index_after)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=python_path()
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(after)]
        end()
        process.send_signal(signal.SIGKILL)
        lines += [line for line in process.stdout if line.endswith("\n")]
    said: dict[str, set[int]] = {"written": set(), "deleting": set(), "deleted": set()}
    for line in lines:
        word, id = line.split()
        said[word].add(int(id))
    return said


async def assert_kept(store: QdrantEdgeStore, said: dict[str, set[int]], padding: int = 0) -> None:
    for id in said["written"] - said["deleting"]:
        assert await store.retrieve("images", id, with_vector=True) == edge_writer.stored(id, padding)
    for id in said["deleted"]:
        assert await store.retrieve("images", id) is None
    # each writer may have had one more write or deletion under way
    count = (await store.collection("images")).points_count
    assert abs(count - len(said["written"] - said["deleted"])) <= edge_writer.WRITERS


@pytest.mark.parametrize("after", [1, 100, 2500])
async def test_what_was_acknowledged_survives_a_kill(folder: Path, after: int) -> None:
    """2,500 lines take it past a flush of the engine's log."""
    said = await asyncio.to_thread(write_until, lambda: None, folder, after)
    assert len(said["written"]) >= after // 2
    store = await open_edge(folder)
    await assert_kept(store, said)
    await store.upsert("images", [point(5)])
    await store.close()


@pytest.mark.parametrize("after", [300, 900, 1500, 2100, 2700, 3300])
async def test_what_was_acknowledged_survives_a_kill_while_an_index_is_built(folder: Path, after: int) -> None:
    """With so small an index that one follows another: the kill falls into the copying, a build, or a swap."""
    said = await asyncio.to_thread(write_until, lambda: None, folder, after, index_after=50)
    store = await open_edge(folder)
    assert len(list((folder / "collections").iterdir())) == 1
    await assert_kept(store, said)
    await store.close()


async def test_a_start_waits_for_a_dying_builder_that_still_writes(folder: Path) -> None:
    await (await open_edge(folder)).close()
    leftover = folder / "collections" / f"images.{uuid.uuid4().hex}"
    busy = threading.Event()

    def write() -> None:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                (leftover / "segments").mkdir(parents=True, exist_ok=True)
                (leftover / "segments" / uuid.uuid4().hex).touch()
            busy.set()

    with ThreadPoolExecutor(2) as threads:
        writers = [threads.submit(write) for _ in range(2)]
        await asyncio.to_thread(busy.wait)
        store = await open_edge(folder)
    for writer in writers:
        writer.result()
    await store.create_collection(CollectionConfig("images", 3, "cosine", "model"))
    await store.close()


async def test_a_leftover_that_cannot_be_removed_stops_no_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await (await open_edge(folder)).close()
    leftover = folder / "collections" / f"images.{uuid.uuid4().hex}"
    leftover.mkdir()

    def fail(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(qdrant_service.edge_registry, "_DYING_S", 0.2)
    monkeypatch.setattr("shutil.rmtree", fail)
    store = await open_edge(folder)
    assert f"{leftover} is not needed any more and cannot be removed: Operation not permitted" in caplog.text
    await store.create_collection(CollectionConfig("images", 3, "cosine", "model"))
    await store.close()


@pytest.mark.security
@pytest.mark.parametrize(
    ("after", "padding"), [(40, 0), (900, 60_000)], ids=["soon", "after the log began another file"]
)
async def test_what_was_acknowledged_survives_a_power_failure(
    tmp_path: Path, after: int, padding: int, record_property: Callable[[str, object], None]
) -> None:
    """On a real disk, whose file system is shut down with all that it has not written."""
    disk = PowerDisk(tmp_path, 1024)
    try:
        said = await asyncio.to_thread(write_until, disk.fail, disk.path / "data", after, padding=padding)
        disk.unmount()
        disk.mount()
        store = await open_edge(disk.path / "data")
        await assert_kept(store, said, padding)
        await store.upsert("images", [point(5)])
        await store.close()
    finally:
        disk.remove()
    row = f"Durability/power failure after {'some' if padding == 0 else 'many'} writes"
    record_property(f"{row}/acknowledged writes checked", len(said["written"] | said["deleted"]))
    record_property(f"{row}/lost", 0)
    record_property(f"{row}/wrong", 0)


async def test_a_second_process_is_told_in_one_line(folder: Path) -> None:
    store = await open_edge(folder)
    await store.create_collection(CollectionConfig("images", 4, "cosine"))
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from qdrant_service.edge_store import QdrantEdgeStore\n"
        "from qdrant_service.store import StoreOpenError\n"
        "try: asyncio.run(QdrantEdgeStore(Path(sys.argv[1]), timeout_s=5).open())\n"
        "except StoreOpenError as exc: print(exc)\n"
    )
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, check=True, env=python_path(),
    )  # fmt: skip
    assert result.stdout == (
        f"QDRANT_PATH: {folder} is in use by another process; stop it, choose another path, "
        "or set QDRANT_URL to share one server\n"
    )
    await store.upsert("images", [point(1)])
    await store.close()
    await (await open_edge(folder)).close()


async def test_what_a_kill_left_of_a_creation_or_deletion_is_removed(folder: Path) -> None:
    store = await open_edge(folder)
    await store.create_collection(CollectionConfig("images", 4, "cosine"))
    await store.upsert("images", [point(1)])
    await store.close()
    kept = next((folder / "collections").iterdir()).name
    half_made = folder / "collections" / f"other.{uuid.uuid4().hex}"
    (half_made / "segments").mkdir(parents=True)
    foreign = folder / "collections" / "lost+found"
    foreign.mkdir()
    (folder / "registry.json.new").write_text("{")

    store = await open_edge(folder)
    assert [info.config.name for info in await store.collections()] == ["images"]
    assert sorted(path.name for path in (folder / "collections").iterdir()) == sorted([kept, "lost+found"])
    await store.delete_collection("images")
    assert [path.name for path in (folder / "collections").iterdir()] == ["lost+found"]
    await store.close()


async def test_a_creation_that_fails_leaves_nothing(folder: Path) -> None:
    store = await open_edge(folder)
    draft = folder / "registry.json.new"
    draft.mkdir()  # where the registry's next version would be written
    with pytest.raises(ServiceUnavailable):
        await store.create_collection(CollectionConfig("images", 4, "cosine"))
    with pytest.raises(CollectionNotFound):
        await store.collection("images")
    draft.rmdir()
    await store.create_collection(CollectionConfig("images", 4, "cosine"))
    await store.close()
    assert len(list((folder / "collections").iterdir())) == 2
    store = await open_edge(folder)
    assert len(list((folder / "collections").iterdir())) == 1
    await store.close()


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"version": 1}', '{"version": 1, "collections": [{}]}'])
async def test_without_a_registry_data_is_not_touched(folder: Path, content: str | None) -> None:
    store = await open_edge(folder)
    await store.create_collection(CollectionConfig("images", 4, "cosine"))
    await store.close()
    registry = folder / "registry.json"
    registry.unlink() if content is None else registry.write_text(content)
    with pytest.raises(StoreOpenError, match=r"registry\.json is (missing|damaged)"):
        await open_edge(folder)
    assert len(list((folder / "collections").iterdir())) == 1


async def test_a_newer_registry_is_not_touched(folder: Path) -> None:
    await (await open_edge(folder)).close()
    (folder / "registry.json").write_text('{"version": 2, "collections": []}')
    with pytest.raises(StoreOpenError, match="newer version"):
        await open_edge(folder)


async def test_a_damaged_collection_stops_the_start(folder: Path) -> None:
    store = await open_edge(folder)
    await store.create_collection(CollectionConfig("images", 4, "cosine"))
    await store.close()
    (shard,) = (folder / "collections").iterdir()
    for segment in (shard / "segments").iterdir():
        (segment / "segment.json").write_text("{")
    with pytest.raises(StoreOpenError, match="cannot be opened"):
        await open_edge(folder)
    await asyncio.sleep(0)
    with pytest.raises(StoreOpenError, match="cannot be opened"):  # the first try has let go of the folder
        await open_edge(folder)


async def test_a_path_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreOpenError, match="cannot be used"):
        await open_edge(tmp_path / "file")


async def test_a_closed_store_refuses(folder: Path) -> None:
    store = QdrantEdgeStore(folder, timeout_s=5)
    with pytest.raises(ServiceUnavailable):
        await store.ping()
    await store.open()
    await store.ping()
    await store.close()
    for operation in (store.ping(), store.collections(), store.upsert("images", [point(1)])):
        with pytest.raises(ServiceUnavailable):
            await operation


async def test_a_full_queue_refuses_at_once(folder: Path) -> None:
    store = await open_edge(folder)
    results = await asyncio.gather(*(store.collections() for _ in range(300)), return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 300 - 256
    assert sum(result == [] for result in results) == 256
    assert await store.collections() == []
    await store.close()


async def test_the_engines_exceptions_are_translated(folder: Path) -> None:
    store = await open_edge(folder)
    await store.create_collection(CollectionConfig("images", 4, "cosine"))
    with pytest.raises(UpstreamError) as caught:
        await store.retrieve("images", -1)
    assert "engine" not in caught.value.detail
    assert isinstance(caught.value.__cause__, Exception)
    await store.close()


async def test_a_slow_engine_times_out(folder: Path) -> None:
    store = await open_edge(folder, timeout_s=0.05)
    blocked = asyncio.Event()
    loop = asyncio.get_running_loop()
    release = threading.Event()
    store._executor.submit(lambda: (loop.call_soon_threadsafe(blocked.set), release.wait()))
    await blocked.wait()
    with pytest.raises(UpstreamTimeout):
        await store.collections()
    release.set()
    await store.close()


async def test_the_engines_log_of_writes_does_not_grow_without_end(folder: Path) -> None:
    store = await open_edge(folder)
    await store.create_collection(CollectionConfig("images", 4, "cosine"))
    shard = store._shards["images"]
    for _ in range(3):
        await store.upsert("images", [point(i) for i in range(600)])
    assert shard._unflushed == 600
    await store.upsert("images", [point(i) for i in range(600)])
    assert shard._unflushed == 0
    await store.close()


def index_kinds(store: QdrantEdgeStore, name: str) -> dict[str, str]:
    schema = store._shards[name]._shard.info().payload_schema
    return {path: str(index.data_type).rpartition(".")[2] for path, index in schema.items()}


async def test_filtered_keys_get_an_index(folder: Path) -> None:
    store = await open_edge(folder)
    await store.create_collection(CollectionConfig("images", 4, "cosine"))

    async def search(**filter_metadata: Any) -> dict[str, str]:
        conditions = parse_filter(filter_metadata)
        await store.search("images", [1.0, 0.0, 0.0, 0.0], limit=1, conditions=conditions)
        return index_kinds(store, "images")

    assert index_kinds(store, "images") == {"_original_id": "Keyword"}
    expected = {"_original_id": "Keyword", "word": "Keyword", "width": "Float", "_vision.match.flag": "Keyword"}
    assert await search(word="a", width={"gt": 1}, flag=True) == expected
    # a float index would hide the times of the field
    expected.pop("width")
    assert await search(width={"gte": "2026-01-31T12:00:00Z"}) == expected
    assert await search(width=1) == expected
    assert len(await search(**{f"k{i}": "x" for i in range(64)})) == MAX_DEMANDED_INDEXES + 1
    await store.close()


def test_the_engine_still_does_not_match_booleans(tmp_path: Path) -> None:
    """Fails when qdrant-edge is mended: then `mirrored_booleans` can go, and booleans be matched as on the server."""
    vectors = qdrant_edge.EdgeVectorParams(size=1, distance=qdrant_edge.Distance.Dot)
    (tmp_path / "shard").mkdir()
    shard = qdrant_edge.EdgeShard.create(str(tmp_path / "shard"), qdrant_edge.EdgeConfig(vectors=vectors))
    payloads: list[dict[str, Any]] = [{"k": True}, {"k": 1}]
    points = [qdrant_edge.Point(id=i, vector=[1.0], payload=payload) for i, payload in enumerate(payloads)]
    shard.update(qdrant_edge.UpdateOperation.upsert_points(points))
    condition = qdrant_edge.FieldCondition("k", match=qdrant_edge.MatchValue(True))
    request = qdrant_edge.ScrollRequest(
        filter=qdrant_edge.Filter(must=[condition]), with_payload=False, with_vector=False
    )
    assert [record.id for record in shard.scroll(request)[0]] == [1]
    shard.close()
