"""The embedded store's index: built beside the serving process, in a copy that takes the collection's place."""

import asyncio
import os
import random
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import qdrant_edge as edge

import qdrant_service.edge_disk
import qdrant_service.edge_store
from qdrant_service.edge_disk import LogSync, copy_tree
from qdrant_service.edge_index import IndexFailed, build_index
from qdrant_service.edge_registry import Registry
from qdrant_service.edge_store import QdrantEdgeStore
from qdrant_service.filters import parse_filter
from qdrant_service.store import CollectionConfig, NewPoint
from store_kit import fast_folder
from visionstack.errors import CollectionNotFound, ServiceUnavailable

pytestmark = pytest.mark.anyio

DIM = 16
POINTS = 600


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(qdrant_service.edge_store, "_LOOK_EVERY_S", 0.02)
    with fast_folder() as folder:
        yield folder / "data"


def vector(seed: int) -> list[float]:
    return [random.Random(f"{seed}-{place}").gauss(0, 1) for place in range(DIM)]


def points(first: int, end: int, version: int = 0) -> list[NewPoint]:
    return [
        NewPoint(id, vector(id + version * 1_000_000), {"n": id, "version": version}, f"n{id}")
        for id in range(first, end)
    ]


async def opened(folder: Path, index_after: int = 500) -> QdrantEdgeStore:
    store = QdrantEdgeStore(folder, timeout_s=30, index_after=index_after)
    await store.open()
    return store


async def filled(folder: Path) -> QdrantEdgeStore:
    store = await opened(folder)
    await store.create_collection(CollectionConfig("images", DIM, "euclid", "model"))
    await store.upsert("images", points(0, POINTS))
    return store


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "collections").iterdir())


def unindexed(store: QdrantEdgeStore) -> int:
    return store._shards["images"].unindexed()[0]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_indexed(store: QdrantEdgeStore) -> None:
    async def indexed() -> bool:
        return await store._run(lambda: unindexed(store)) < 500 and (await store.collection("images")).status == "green"

    await until(indexed)


async def versions(store: QdrantEdgeStore, ids: range) -> dict[int, int]:
    """By id the version of each point that is there, whose vector and string id must be that version's, too."""
    found = {}
    for id in ids:
        stored = await store.retrieve("images", id, with_vector=True)
        assert stored == await store.find_by_original_id("images", f"n{id}", with_vector=True)
        if stored is not None:
            found[id] = stored.metadata["version"]
            assert stored.vector == pytest.approx(vector(id + found[id] * 1_000_000), abs=1e-6)
    return found


class Held:
    """A build that waits until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.release = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(qdrant_service.edge_store, "build_index", self._build)

    async def _build(self, folder: Path, config: CollectionConfig) -> None:
        self.begun.set()
        await self.release.wait()
        await build_index(folder, config)


async def test_a_large_collection_gets_an_index_and_answers_as_before(folder: Path) -> None:
    store = await opened(folder)
    await store.create_collection(CollectionConfig("images", DIM, "euclid", "model"))
    await store.upsert("images", points(0, 400))
    await asyncio.sleep(0.2)
    assert await store._run(lambda: unindexed(store)) == 400
    before = folders(folder)
    await store.upsert("images", points(400, POINTS))
    conditions = parse_filter({"n": {"gte": 100}})
    wanted = [await store.search("images", vector(seed), limit=5, conditions=conditions) for seed in range(100, 120)]
    await until_indexed(store)
    assert await store._run(lambda: store._shards["images"]._shard.info().indexed_vectors_count) == POINTS
    found = [await store.search("images", vector(seed), limit=5, conditions=conditions) for seed in range(100, 120)]
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in wanted]
    assert [hits[0].id for hits in found] == list(range(100, 120))
    assert len(folders(folder)) == 1
    assert folders(folder) != before
    info = await store.collection("images")
    assert info.config == CollectionConfig("images", DIM, "euclid", "model")
    assert info.points_count == POINTS
    await store.close()

    kept = folders(folder)
    store = await opened(folder)
    assert await versions(store, range(POINTS)) == dict.fromkeys(range(POINTS), 0)
    await asyncio.sleep(0.2)
    assert folders(folder) == kept, "the index was built once more"
    await store.close()


async def test_what_is_written_meanwhile_is_carried_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Held(monkeypatch)
    monkeypatch.setattr(qdrant_service.edge_store, "_CARRIED_AT_ONCE", 7)
    store = await filled(folder)
    await build.begun.wait()
    assert (await store.collection("images")).status == "yellow"
    await store.upsert("images", points(0, 50, version=1))
    await store.delete("images", list(range(40, 60)))
    await store.upsert("images", points(55, 58, version=2))
    await store.upsert("images", points(POINTS, POINTS + 20))
    await store.record_model("images", "another")
    wanted = dict.fromkeys(range(POINTS + 20), 0) | dict.fromkeys(range(40), 1) | dict.fromkeys(range(55, 58), 2)
    for gone in {*range(40, 60)} - {55, 56, 57}:
        del wanted[gone]
    assert await versions(store, range(POINTS + 20)) == wanted
    build.release.set()
    await until_indexed(store)
    assert await versions(store, range(POINTS + 20)) == wanted
    await store.upsert("images", points(0, 1, version=3))
    await store.close()
    store = await opened(folder)
    assert await versions(store, range(POINTS + 20)) == wanted | {0: 3}
    assert (await store.collection("images")).config.embedding_model == "another"
    await store.close()


async def test_what_may_change_the_files_waits_for_the_copying(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def held(source: Path, target: Path) -> None:
        loop.call_soon_threadsafe(begun.set)
        release.wait()
        copy_tree(source, target)

    monkeypatch.setattr(qdrant_service.edge_store, "copy_tree", held)
    store = await filled(folder)
    await begun.wait()
    write = asyncio.create_task(store.upsert("images", points(0, 1, version=1)))
    filtered = asyncio.create_task(store.search("images", vector(7), limit=1, conditions=parse_filter({"version": 0})))
    assert [hit.id for hit in await store.search("images", vector(7), limit=1)] == [7]
    await asyncio.sleep(0.1)
    assert not write.done()
    assert not filtered.done()
    release.set()
    await write
    assert [hit.id for hit in await filtered] == [7]
    await until_indexed(store)
    assert await versions(store, range(2)) == {0: 1, 1: 0}
    await store.close()


async def test_how_an_index_is_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the engine is asked: a collection in which its own ways miss neighbours would take minutes to fill."""
    asked: list[tuple[bool, int]] = []
    real = edge.SearchParams

    def params(*, exact: bool, hnsw_ef: int) -> edge.SearchParams:
        asked.append((exact, hnsw_ef))
        return real(exact=exact, hnsw_ef=hnsw_ef)

    monkeypatch.setattr(edge, "SearchParams", params)
    store = await filled(folder)
    await until_indexed(store)
    filtered = parse_filter({"version": 0})
    for limit, conditions in ((10, ()), (500, ()), (10, filtered)):
        assert len(await store.search("images", vector(7), limit=limit, conditions=conditions)) == limit
    assert asked == [(False, 400), (False, 500), (True, 400)]
    await store.close()


async def test_points_without_index_call_for_another(folder: Path) -> None:
    store = await filled(folder)
    await until_indexed(store)
    first = folders(folder)
    await store.upsert("images", points(0, POINTS, version=1))  # in place of those in the index
    await until_indexed(store)

    async def built_again() -> bool:
        return folders(folder) != first and len(folders(folder)) == 1

    await until(built_again)
    assert await versions(store, range(POINTS)) == dict.fromkeys(range(POINTS), 1)
    await store.close()


async def test_writes_under_way_are_answered_through_the_swap(folder: Path) -> None:
    """Writers that never pause, past several builds: each is acknowledged, and none is lost."""
    store = await filled(folder)
    ends = asyncio.Event()
    written = {}

    async def write(first: int) -> None:
        version = 0
        while not ends.is_set():
            version += 1
            ids = range(first, first + 20)
            await store.upsert("images", points(first, first + 20, version))
            written.update(dict.fromkeys(ids, version))

    async with asyncio.TaskGroup() as group:
        for first in range(0, 80, 20):
            group.create_task(write(first))
        seen = set()

        async def moved() -> bool:
            seen.add(store._shards["images"].path)
            return len(seen) == 3

        await until(moved)
        ends.set()
    assert await versions(store, range(80)) == written
    await store.close()


async def test_a_write_that_waits_for_the_disk_is_acknowledged_after_the_swap(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, begun, release = Held(monkeypatch), threading.Event(), threading.Event()
    store = await filled(folder)
    await build.begun.wait()
    live, flush = store._logs["images"], LogSync._flush_log

    def held(log: LogSync) -> None:
        if log is live:
            begun.set()
            release.wait()
        flush(log)

    monkeypatch.setattr(LogSync, "_flush_log", held)
    write = asyncio.create_task(store.upsert("images", points(0, 1, version=1)))
    await asyncio.to_thread(begun.wait)
    build.release.set()
    await until_indexed(store)
    assert not write.done()
    release.set()
    await write
    assert await versions(store, range(2)) == {0: 1, 1: 0}
    await store.close()


async def test_a_log_whose_shard_was_replaced_has_nothing_left_to_flush(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    gone = LogSync(tmp_path / "gone", store._syncing)
    with pytest.raises(CollectionNotFound):
        await gone.flushed()
    gone.retire()
    await gone.flushed()
    await store.close()


async def test_an_index_that_cannot_be_built_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    builds = []

    async def fail(copy: Path, config: CollectionConfig) -> None:
        builds.append(copy)
        raise IndexFailed("status -9: ")

    monkeypatch.setattr(qdrant_service.edge_store, "build_index", fail)
    store = await filled(folder)

    async def told() -> bool:
        return "no index for images until the next start: status -9" in caplog.text

    await until(told)
    await asyncio.sleep(0.2)
    assert len(builds) == 1
    assert len(folders(folder)) == 1
    assert not builds[0].exists()
    assert (await store.collection("images")).status == "green"
    await store.upsert("images", points(0, 10, version=1))
    assert await versions(store, range(20)) == dict.fromkeys(range(20), 0) | dict.fromkeys(range(10), 1)
    await store.close()


async def test_the_program_says_what_it_could_not_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IndexFailed, match="status 1: "):
        await build_index(tmp_path / "file", CollectionConfig("images", DIM, "euclid"))


async def test_no_copy_is_made_on_a_disk_without_room_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = await opened(folder)
    await store.create_collection(CollectionConfig("images", DIM, "euclid"))
    size = qdrant_service.edge_disk.tree_size(store._shards["images"].path)
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    monkeypatch.setattr(qdrant_service.edge_disk, "MIN_FREE_BYTES", free - 2 * size)
    await store.upsert("images", points(0, POINTS))

    async def told() -> bool:
        return "an index of images needs three times the collection's size" in caplog.text

    await until(told)
    assert len(folders(folder)) == 1
    await store.upsert("images", points(0, 10, version=1))
    await store.close()


async def test_a_collection_deleted_meanwhile_stays_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Held(monkeypatch)
    store = await filled(folder)
    await build.begun.wait()
    await store.delete_collection("images")
    await store.create_collection(CollectionConfig("images", DIM, "cosine"))
    build.release.set()

    async def tidy() -> bool:
        return len(folders(folder)) == 1

    await until(tidy)
    info = await store.collection("images")
    assert (info.points_count, info.config.distance, info.status) == (0, "cosine", "green")
    await store.close()


async def test_a_store_that_closes_ends_the_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Held(monkeypatch)
    store = await filled(folder)
    await build.begun.wait()
    build.release.set()

    def builders() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if "qdrant_service.edge_index" in child.cmdline()]

    async def started() -> bool:
        return bool(builders())

    await until(started)
    await store.close()
    assert not builders()
    assert len(folders(folder)) == 1
    store = await opened(folder)
    assert len(await versions(store, range(POINTS))) == POINTS
    await store.close()


def test_a_builder_whose_service_died_first_touches_nothing(folder: Path) -> None:
    stranger = 1 if os.getpid() != 1 else 2
    command = [sys.executable, "-m", "qdrant_service.edge_index", str(stranger), str(folder), str(DIM), "cosine"]
    path = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=path, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (1, "")
    assert not folder.exists()


async def test_no_write_is_acknowledged_once_it_is_unknown_which_files_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = await filled(folder)

    def fail(registry: Registry, config: CollectionConfig, copy: Path) -> None:
        registry._entries[config.name] = (config, copy.name)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Registry, "move", fail)

    async def told() -> bool:
        return "no index for images" in caplog.text

    await until(told)
    with pytest.raises(ServiceUnavailable) as refused:
        await store.upsert("images", points(0, 1, version=1))
    assert "restart it" in refused.value.detail
    assert len(await versions(store, range(POINTS))) == POINTS
    assert len(folders(folder)) == 2, "both are kept"
    await store.close()
