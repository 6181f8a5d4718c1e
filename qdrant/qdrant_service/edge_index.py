"""Builds the index of a collection in the embedded store.

    python -m qdrant_service.edge_index PARENT_PID FOLDER DIM DISTANCE

A program of its own, because the engine holds the interpreter's lock for the whole build, minutes at 100,000 points.
FOLDER is a copy of the collection's files that nobody else has open. It gives way to everything else on the machine,
and does not outlive the service that wants it.
"""

import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import cast

import qdrant_edge as edge

from visionstack.schemas import Distance

from .edge_shard import DISTANCES
from .store import CollectionConfig

_PR_SET_PDEATHSIG = 1
# KB of vectors from which on a segment gets an index: whoever starts this has decided that it should
_THRESHOLD_KB = 1


class IndexFailed(Exception):
    """The text says what the program said."""


async def build_index(folder: Path, config: CollectionConfig) -> None:
    """Run the program and wait for it; it is killed where this is cancelled. Raises `IndexFailed`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        str(os.getpid()),
        str(folder),
        str(config.vector_dim),
        config.distance,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise IndexFailed(f"status {process.returncode}: {said.decode(errors='replace')[-2000:]}")


def main(parent: int, folder: str, dim: str, distance: Distance) -> None:
    _give_way(parent)
    vectors = edge.EdgeVectorParams(size=int(dim), distance=DISTANCES[distance])
    optimizers = edge.EdgeOptimizersConfig(indexing_threshold=_THRESHOLD_KB, default_segment_number=1)
    shard = edge.EdgeShard.load(folder, edge.EdgeConfig(vectors=vectors, optimizers=optimizers))
    shard.optimize()
    shard.flush()
    shard.close()


def _give_way(parent: int) -> None:
    os.nice(19)
    if sys.platform == "linux":
        # the copy of a service that died is removed when it starts again
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:  # it died before the request stood
        raise SystemExit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], cast("Distance", sys.argv[4]))
