"""A process that writes into an embedded store until it is killed: `edge_writer.py FOLDER PADDING INDEX_AFTER`.

It prints `written ID` once an upsert is acknowledged, `deleting ID` before a deletion and `deleted ID` once that is
acknowledged. PADDING is how many characters of metadata each point gets besides, INDEX_AFTER the store's setting: with
it, the collection gets one index after another.
"""

import asyncio
import sys
from pathlib import Path

from qdrant_service import edge_store
from qdrant_service.edge_store import QdrantEdgeStore
from qdrant_service.store import CollectionConfig, NewPoint, StoredPoint

WRITERS = 4


def stored(id: int, padding: int) -> StoredPoint:
    """What must be there of a point that was written."""
    writer, i = divmod(id, 1_000_000)
    metadata = {"i": i, "padding": "x" * padding, "_original_id": f"w{writer}-{i}"}
    return StoredPoint(id, metadata, [float(writer), float(i), 0.0, 1.0])


async def write(store: QdrantEdgeStore, writer: int, padding: int) -> None:
    i = 0
    while True:
        id = writer * 1_000_000 + i
        metadata = {"i": i, "padding": "x" * padding}
        await store.upsert("images", [NewPoint(id, [float(writer), float(i), 0.0, 1.0], metadata, f"w{writer}-{i}")])
        print("written", id, flush=True)
        i += 1
        if i % 7 == 0:
            print("deleting", id - 3, flush=True)
            await store.delete("images", [id - 3])
            print("deleted", id - 3, flush=True)


async def main(folder: Path, padding: int, index_after: int) -> None:
    edge_store._LOOK_EVERY_S = 0.05
    store = QdrantEdgeStore(folder, timeout_s=30, index_after=index_after)
    await store.open()
    await store.create_collection(CollectionConfig("images", 4, "euclid"))
    await asyncio.gather(*(write(store, writer, padding) for writer in range(1, WRITERS + 1)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
