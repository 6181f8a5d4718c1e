"""Random operations of the vector service beside a dictionary that says what must be there, restarts included.

Against the embedded store, the server adapter and any server in `QDRANT_TEST_URL`. The dictionary is written from the
contract alone: identities are lists of spellings, filters are evaluated on the metadata, scores are numpy's.
"""

import asyncio
import json
import os
import random
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qdrant_service.embedder import EmbeddingModel
from qdrant_service.service import VectorService
from qdrant_service.store import VectorStore
from store_kit import KINDS, UUID, fast_folder, make_store
from visionstack.errors import CollectionExists, CollectionNotFound, PointNotFound, ServiceUnavailable
from visionstack.schemas import (
    CreateCollectionRequest,
    DeletePointsRequest,
    Distance,
    Embedding,
    SearchVectorRequest,
    UpsertVectorRequest,
)

T = TypeVar("T")

# Each line is one point: all that it may be called.
SPELLINGS: list[list[int | str]] = [
    [0, "0"], [7, "7"], [2**64 - 1, str(2**64 - 1)], ["07"], ["-1"], [str(2**64)],
    [UUID, UUID.upper(), UUID.replace("-", ""), f"urn:uuid:{UUID}", f"{{{UUID}}}"],
    ["img-1"], ["a/b"], [".."], ["\u00e9"], ["e\u0301"], [" "],
]  # fmt: skip
TEXTS = [spellings[0] for spellings in SPELLINGS if len(spellings) == 1]
DISTANCES: list[tuple[int, Distance]] = [(3, "cosine"), (3, "dot"), (5, "euclid"), (2, "manhattan")]

IDS = st.tuples(st.sampled_from(SPELLINGS), st.randoms(use_true_random=False)).map(lambda pair: pair[1].choice(pair[0]))
NUMBERS = st.sampled_from([-3, 0, 1, 1.0, 2, 0.5, -1.5, 2**53 + 1, 2**60, 0.1 + 0.2])
SCALARS = NUMBERS | st.booleans() | st.none() | st.sampled_from(["x", "y", "1", "true", ""])
VALUES = SCALARS | st.lists(SCALARS, max_size=3)
WORDS = st.sampled_from(["x", "y", "z"])
METADATA = st.fixed_dictionaries(
    # few values in every point, so that filters find something
    {"word": WORDS, "flag": st.booleans(), "n": NUMBERS},
    optional={
        "a": VALUES,
        "deep": st.fixed_dictionaries({"b": VALUES}, optional={"c": st.fixed_dictionaries({"d": VALUES})}),
        "deep.b": VALUES,  # a key with a dot is not a path
        "odd key": VALUES,
    },
)
# None of the numbers has as many digits as a bound and is equal to it: the server may read that bound a last place off.
BOUNDS = st.sampled_from([-2, 0, 1, 1.5, 2**59])
RANGES = st.dictionaries(st.sampled_from(["gte", "lte", "gt", "lt"]), BOUNDS, min_size=1)
ANY_FILTER = st.dictionaries(
    st.sampled_from(["a", "deep.b", "deep.c.d", "odd key", "missing"]),
    SCALARS | st.lists(SCALARS, min_size=1, max_size=3) | RANGES,
    max_size=1,
)
FILTERS = st.one_of(
    st.fixed_dictionaries({"flag": st.booleans()}),
    st.fixed_dictionaries({"word": WORDS | st.lists(WORDS, min_size=1, max_size=2)}),
    st.fixed_dictionaries({"n": NUMBERS | RANGES}, optional={"word": WORDS, "flag": st.booleans()}),
    ANY_FILTER,
)
COMPONENTS = st.lists(st.integers(-8, 8).map(float), min_size=5, max_size=5).filter(lambda v: any(v[:2]))


class NoEmbedder:
    """Every vector here is the caller's own."""

    async def embed_image(self, data: bytes, content_type: str) -> Embedding:
        raise ServiceUnavailable

    async def embed_text(self, text: str) -> Embedding:
        raise ServiceUnavailable

    async def describe(self) -> EmbeddingModel:
        raise ServiceUnavailable

    async def aclose(self) -> None: ...


@dataclass
class Kept:
    id: int | str
    vector: np.ndarray
    metadata: dict[str, Any]


@dataclass
class Expected:
    """A collection; its points by their first spelling."""

    dim: int
    distance: Distance
    points: dict[int | str, Kept] = field(default_factory=dict)

    def scores(self, query: np.ndarray) -> dict[int | str, float]:
        def score(vector: np.ndarray) -> float:
            match self.distance:
                case "euclid":
                    return float(np.linalg.norm(vector - query))
                case "manhattan":
                    return float(np.abs(vector - query).sum())
            return float(vector @ query)

        return {kept.id: score(kept.vector) for kept in self.points.values()}

    def as_kept(self, vector: list[float]) -> np.ndarray:
        kept = np.array(vector[: self.dim])
        return kept / np.linalg.norm(kept) if self.distance == "cosine" else kept


def fits(metadata: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(_fits(_at(metadata, key.split(".")), condition) for key, condition in wanted.items())


def _at(value: Any, path: list[str]) -> list[Any]:
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return []
        value = value[part]
    return value if isinstance(value, list) else [value]


def _fits(values: list[Any], condition: Any) -> bool:
    if isinstance(condition, dict):
        compare: dict[str, Callable[[float, float], bool]] = {
            "gte": lambda x, y: x >= y, "lte": lambda x, y: x <= y, "gt": lambda x, y: x > y, "lt": lambda x, y: x < y,
        }  # fmt: skip
        numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        return any(all(compare[name](number, bound) for name, bound in condition.items()) for number in numbers)
    options = condition if isinstance(condition, list) else [condition]
    return any(_same(value, option) for value in values for option in options)


def _same(value: Any, option: Any) -> bool:
    return isinstance(value, bool) == isinstance(option, bool) and bool(value == option)


def exact(value: object) -> str:
    """Tells 1 from 1.0 and 0.0 from -0.0, which `==` does not."""
    return json.dumps(value, sort_keys=True)


def first_spelling(id: int | str) -> int | str:
    return next(spellings[0] for spellings in SPELLINGS if any(type(s) is type(id) and s == id for s in spellings))


class ServiceModel(RuleBasedStateMachine):
    """Subclasses name the store."""

    kind = ""
    collections: dict[str, Expected]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(os.environ["STORE_MODEL_FOLDER"]) / uuid.uuid4().hex
        self.folder.mkdir()
        self.prefix = f"t-{uuid.uuid4().hex[:12]}-"
        self.collections = {}
        self.store: VectorStore
        self._start()

    def teardown(self) -> None:
        for name in self.collections:
            self.run(self.service.delete_collection(name))
        self.run(self.store.close())
        self.runner.close()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    def _start(self) -> None:
        self.store = make_store(self.kind, self.folder)
        self.run(self.store.open())
        self.service = VectorService(self.store, NoEmbedder())

    @initialize(points=st.lists(st.tuples(IDS, COMPONENTS, METADATA), min_size=8, max_size=8))
    def first(self, points: list[tuple[int | str, list[float], dict[str, Any]]]) -> None:
        self.create(1)
        self.create(0)
        for number, point in enumerate(points):
            self.upsert(number, *point)

    def _some(self, number: int) -> tuple[str, Expected]:
        """One of the collections there are."""
        return list(self.collections.items())[number % len(self.collections)]

    @rule(number=st.integers(0, 3))
    def create(self, number: int) -> None:
        dim, distance = DISTANCES[number % len(DISTANCES)]
        name = f"{self.prefix}{number}"
        _, created = self.run(
            self.service.create_collection(CreateCollectionRequest(name=name, vector_dim=dim, distance=distance))
        )
        assert created == (name not in self.collections)
        self.collections.setdefault(name, Expected(dim, distance))
        with pytest.raises(CollectionExists):
            self.run(self.service.create_collection(CreateCollectionRequest(name=name, vector_dim=dim + 1)))

    @precondition(lambda self: len(self.collections) > 1)
    @rule(number=st.integers(0, 5))
    def drop(self, number: int) -> None:
        name, _ = self._some(number)
        self.run(self.service.delete_collection(name))
        del self.collections[name]
        with pytest.raises(CollectionNotFound):
            self.run(self.service.collection(name))

    @rule(number=st.integers(0, 5), id=IDS, vector=COMPONENTS, metadata=METADATA)
    def upsert(self, number: int, id: int | str, vector: list[float], metadata: dict[str, Any]) -> None:
        name, expected = self._some(number)
        key = first_spelling(id)
        request = UpsertVectorRequest(vector=vector[: expected.dim], id=id, metadata=metadata, collection=name)
        answer = self.run(self.service.upsert_vector(request, request.vector))
        assert answer.original_id == (id if key in TEXTS else None)
        kept = metadata | ({"_original_id": id} if key in TEXTS else {})
        expected.points[key] = Kept(answer.id, expected.as_kept(vector), kept)
        assert len({point.id for point in expected.points.values()}) == len(expected.points)

    @rule(number=st.integers(0, 5), ids=st.lists(IDS, min_size=1, max_size=4))
    def delete(self, number: int, ids: list[int | str]) -> None:
        name, expected = self._some(number)
        keys = {first_spelling(id) for id in ids} & set(expected.points)
        answer = self.run(self.service.delete(DeletePointsRequest(ids=ids, collection=name)))
        assert answer.deleted == len(keys)
        for key in keys:
            del expected.points[key]

    @rule(number=st.integers(0, 5), id=IDS, by_original=st.booleans())
    def read(self, number: int, id: int | str, by_original: bool) -> None:
        name, expected = self._some(number)
        ask = self.service.point_by_original_id if by_original else self.service.point
        kept = expected.points.get(first_spelling(id))
        if kept is None:
            with pytest.raises(PointNotFound):
                self.run(ask(name, str(id), with_vector=True))
            return
        found = self.run(ask(name, str(id), with_vector=True))
        assert found.id == kept.id
        assert found.vector == pytest.approx(kept.vector, abs=1e-6)
        assert exact(found.metadata) == exact(kept.metadata)

    @rule(
        number=st.integers(0, 5),
        query=COMPONENTS,
        wanted=FILTERS,
        limit=st.integers(1, 12),
        threshold=st.none() | st.sampled_from([-0.37, 0.37, 3.37]),
    )
    def search(
        self, number: int, query: list[float], wanted: dict[str, Any], limit: int, threshold: float | None
    ) -> None:
        name, expected = self._some(number)
        request = SearchVectorRequest(
            vector=query[: expected.dim],
            limit=limit,
            filter_metadata=wanted,
            score_threshold=threshold,
            collection=name,
        )
        hits = self.run(self.service.search_vector(request, request.vector))
        metadata = {kept.id: kept.metadata for kept in expected.points.values()}
        scores = expected.scores(expected.as_kept(query))
        nearest_first = expected.distance in ("euclid", "manhattan")
        allowed = [
            score
            for id, score in scores.items()
            if fits(metadata[id], wanted)
            and (threshold is None or (score <= threshold if nearest_first else score >= threshold))
        ]
        assert [hit.score for hit in hits] == pytest.approx(
            sorted(allowed, reverse=not nearest_first)[:limit], rel=1e-5, abs=1e-5
        )
        for hit in hits:
            assert hit.score == pytest.approx(scores[hit.id], rel=1e-5, abs=1e-5)
            assert exact(hit.metadata) == exact(metadata[hit.id])
            assert fits(hit.metadata, wanted)

    @precondition(lambda self: self.kind == "edge")
    @rule()
    def restart(self) -> None:
        self.run(self.store.close())
        self._start()

    @invariant()
    def counts(self) -> None:
        found = [one for one in self.run(self.service.collections()) if one.name.startswith(self.prefix)]
        assert {one.name: (one.vector_dim, one.distance, one.points_count) for one in found} == {
            name: (expected.dim, expected.distance, len(expected.points)) for name, expected in self.collections.items()
        }


@pytest.mark.security
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_the_service_behaves_as_its_model(
    kind: str, thorough: bool, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """SEED=… repeats a run."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
    print(f"SEED={seed}")
    runs, steps = (20, 100) if thorough else (8, 40)

    class Model(ServiceModel):
        pass

    Model.kind = kind
    hypothesis.seed(seed)(Model)
    case = Model.TestCase
    case.settings = settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        # not shrunk, which takes minutes: the seed repeats it
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    with fast_folder() as folder:
        monkeypatch.setenv("STORE_MODEL_FOLDER", str(folder))
        case("runTest").debug()
    record_property(f"Durability/model test, {kind}/operations", runs * steps)
    record_property(f"Durability/model test, {kind}/wrong", 0)
