"""One collection in the embedded engine: the store's terms in the engine's, and back.

Nothing here knows of threads or of other collections; all methods of one `Shard` are called one at a time.
"""

import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import qdrant_edge as edge

from visionstack.schemas import Distance

from .clauses import (
    Boolean,
    Clause,
    IndexKind,
    Integers,
    Keywords,
    Null,
    Numbers,
    Term,
    Times,
    clauses_of,
    time_paths,
    wanted_indexes,
)
from .edge_disk import has_space
from .filters import Condition
from .payload import ORIGINAL_ID_KEY, decode, encode
from .store import (
    MAX_DEMANDED_INDEXES,
    CollectionConfig,
    CollectionInfo,
    NewPoint,
    ScoredPoint,
    StoredPoint,
    dimension_mismatch,
)

logger = logging.getLogger(__name__)

# An index is built in one go: 0.6 s at this many points. Larger collections belong on a server.
_MAX_POINTS_TO_INDEX = 50_000
# The engine's log of writes ends only here. Without it a start after a kill repeats every write since the last stop;
# with it the pause is 20 to 80 ms each time.
_FLUSH_EVERY = 1000
# Candidates that a search in the index keeps. The engine's own 100 find 96 of 100 neighbours among 100,000 points.
_SEARCHED = 400

DISTANCES: dict[Distance, edge.Distance] = {
    "cosine": edge.Distance.Cosine,
    "dot": edge.Distance.Dot,
    "euclid": edge.Distance.Euclid,
    "manhattan": edge.Distance.Manhattan,
}
_INDEXES: dict[IndexKind, edge.PayloadSchemaType] = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "bool": edge.PayloadSchemaType.Bool,
    "float": edge.PayloadSchemaType.Float,
}


class Shard:
    """`path` is the folder of the engine's files."""

    def __init__(self, config: CollectionConfig, path: Path, shard: edge.EdgeShard) -> None:
        self.config = config
        self.path = path
        self._shard = shard
        self._unflushed = 0
        self._unindexable: set[str] = set()
        self.indexing = False
        # since the last index, or the start
        self._upserted = 0
        # the ids written since `track_changes`
        self._changed: set[int | str] | None = None

    @classmethod
    def create(cls, config: CollectionConfig, folder: Path) -> "Shard":
        vectors = edge.EdgeVectorParams(size=config.vector_dim, distance=DISTANCES[config.distance])
        # the shard has one segment, so that more threads would only wait
        engine = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=vectors, max_search_threads=1))
        shard = cls(config, folder, engine)
        shard._create_index(ORIGINAL_ID_KEY, "keyword")
        shard.flush()
        return shard

    @classmethod
    def load(cls, config: CollectionConfig, folder: Path) -> "Shard":
        """After a kill or a power failure, with the writes that only the engine's log holds."""
        shard = cls(config, folder, edge.EdgeShard.load(str(folder)))
        shard.flush()
        return shard

    def close(self) -> None:
        self._shard.close()

    def flush(self) -> None:
        self._shard.flush()
        self._unflushed = 0

    def info(self) -> CollectionInfo:
        return CollectionInfo(self.config, self._shard.info().points_count, "yellow" if self.indexing else "green")

    def unindexed(self) -> tuple[int, int]:
        """About how many points every search compares one by one, and how many points there are.

        The engine counts as indexed what was since deleted or written anew, so that these are counted here.
        """
        info = self._shard.info()
        points: int = info.points_count
        return max(points - info.indexed_vectors_count, min(self._upserted, points)), points

    def upsert(self, points: Sequence[NewPoint]) -> None:
        for point in points:
            self._check_length(point.vector)
        self._shard.update(
            edge.UpdateOperation.upsert_points(
                [
                    edge.Point(
                        id=point.id,
                        vector=list(point.vector),
                        payload=encode(point.metadata, point.original_id, mirror_booleans=True),
                    )
                    for point in points
                ]
            )
        )
        self._upserted += len(points)
        self._written([point.id for point in points])

    def search(self, vector: Sequence[float], limit: int, conditions: Sequence[Condition]) -> list[ScoredPoint]:
        self._check_length(vector)
        clauses = clauses_of(conditions, mirrored_booleans=True)
        self._prepare_indexes(clauses)
        found = self._shard.query(
            edge.QueryRequest(
                query=edge.Query.Nearest(list(vector)),
                filter=_filter(clauses),
                limit=limit,
                with_payload=True,
                with_vector=False,
                # a graph walked past what a filter leaves out misses neighbours: what passes is compared one by one
                params=edge.SearchParams(exact=bool(clauses), hnsw_ef=max(_SEARCHED, limit)),
            )
        )
        return [ScoredPoint(_plain_id(point.id), point.score, decode(point.payload)) for point in found]

    def retrieve(self, point_id: int | str, with_vector: bool) -> StoredPoint | None:
        return _first(self._shard.retrieve([point_id], True, with_vector))

    def find(self, clause: Clause, with_vector: bool) -> StoredPoint | None:
        found, _ = self._shard.scroll(
            edge.ScrollRequest(limit=1, filter=_filter([clause]), with_payload=True, with_vector=with_vector)
        )
        return _first(found)

    def delete(self, point_ids: Sequence[int | str]) -> int:
        found = [record.id for record in self._shard.retrieve(list(set(point_ids)), False, False)]
        if found:
            self._shard.update(edge.UpdateOperation.delete_points(found))
            self._written(list(map(_plain_id, found)))
        return len(found)

    def track_changes(self, *, on: bool = True) -> None:
        """From now on, for `carry_changes`."""
        self._changed = set() if on else None

    def carry_changes(self, copy: "Shard", limit: int) -> bool:
        """Repeat on a copy up to `limit` of the changes since it was made; whether that were all."""
        assert self._changed is not None
        ids = [self._changed.pop() for _ in range(min(limit, len(self._changed)))]
        records = self._shard.retrieve([*ids], True, True)
        kept = [edge.Point(record.id, cast("list[float]", record.vector), record.payload) for record in records]
        gone = set(ids) - {_plain_id(record.id) for record in records}
        if kept:
            copy._shard.update(edge.UpdateOperation.upsert_points(kept))
            copy._upserted += len(kept)
        if gone:
            copy._shard.update(edge.UpdateOperation.delete_points(list(gone)))
        return not self._changed

    def _check_length(self, vector: Sequence[float]) -> None:
        if len(vector) != self.config.vector_dim:
            raise dimension_mismatch(self.config.name, self.config.vector_dim, len(vector))

    def _written(self, ids: Sequence[int | str]) -> None:
        if self._changed is not None:
            self._changed.update(ids)
        self._unflushed += len(ids)
        if self._unflushed >= _FLUSH_EVERY:
            self.flush()

    def _prepare_indexes(self, clauses: Sequence[Clause]) -> None:
        if not clauses:
            return
        info = self._shard.info()
        kinds = {path: index.data_type for path, index in info.payload_schema.items()}
        for path in time_paths(clauses):
            self._unindexable.add(path)
            if kinds.get(path) == edge.PayloadSchemaType.Float:
                self._shard.update(edge.UpdateOperation.delete_field_index(path))
                del kinds[path]
        if info.points_count > _MAX_POINTS_TO_INDEX or not has_space(self.path):
            return
        for path, kind in wanted_indexes(clauses).items():
            blocked = kind == "float" and path in self._unindexable
            if path not in kinds and not blocked and len(kinds) <= MAX_DEMANDED_INDEXES:
                logger.info("indexing %s of %s as %s", path, self.config.name, kind)
                self._create_index(path, kind)
                kinds[path] = _INDEXES[kind]

    def _create_index(self, path: str, kind: IndexKind) -> None:
        self._shard.update(edge.UpdateOperation.create_field_index(path, _INDEXES[kind]))


def _first(records: Sequence[edge.Record]) -> StoredPoint | None:
    for record in records:
        vector = cast("list[float] | None", record.vector)  # shards are made with one unnamed vector
        return StoredPoint(_plain_id(record.id), decode(record.payload), vector)
    return None


def _plain_id(point_id: int | str | uuid.UUID) -> int | str:
    return point_id if isinstance(point_id, int) else str(point_id)


def _filter(clauses: Sequence[Clause]) -> edge.Filter | None:
    if not clauses:
        return None
    return edge.Filter(must=[edge.Filter(should=[_condition(term) for term in clause]) for clause in clauses])


def _condition(term: Term) -> edge.FieldCondition | edge.IsNullCondition:
    match term:
        case Keywords(path, values):
            return edge.FieldCondition(path, match=edge.MatchAny(list(values)))
        case Integers(path, numbers):
            return edge.FieldCondition(path, match=edge.MatchAny(list(numbers)))
        case Boolean(path, value):
            return edge.FieldCondition(path, match=edge.MatchValue(value))
        case Null(path):
            return edge.IsNullCondition(path)
        case Numbers(path, gte, lte, gt, lt):
            return edge.FieldCondition(path, range=edge.RangeFloat(gte=gte, lte=lte, gt=gt, lt=lt))
        case Times(path):
            bounds = {name: getattr(term, name) for name in ("gte", "lte", "gt", "lt")}
            return edge.FieldCondition(
                path,
                range=edge.RangeDateTime(**{name: bound and bound.isoformat() for name, bound in bounds.items()}),
            )
