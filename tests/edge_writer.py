"""A process that writes into an embedded store until it is killed: `edge_writer.py FOLDER`.

It prints `written ID` once an upsert is acknowledged, `deleting ID` before a deletion and `deleted ID` once that is
acknowledged.
"""

import asyncio
import sys
from pathlib import Path

from qdrant_service.edge_store import QdrantEdgeStore
from qdrant_service.store import CollectionConfig, NewPoint

WRITERS = 4


async def write(store: QdrantEdgeStore, writer: int) -> None:
    i = 0
    while True:
        id = writer * 1_000_000 + i
        await store.upsert("images", [NewPoint(id, [float(writer), float(i), 0.0, 1.0], {"i": i}, f"w{writer}-{i}")])
        print("written", id, flush=True)
        i += 1
        if i % 7 == 0:
            print("deleting", id - 3, flush=True)
            await store.delete("images", [id - 3])
            print("deleted", id - 3, flush=True)


async def main(folder: Path) -> None:
    store = QdrantEdgeStore(folder, timeout_s=30)
    await store.open()
    await store.create_collection(CollectionConfig("images", 4, "euclid"))
    await asyncio.gather(*(write(store, writer) for writer in range(1, WRITERS + 1)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
