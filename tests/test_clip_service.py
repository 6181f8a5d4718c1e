"""The CLIP service's routes, with a small model of random weights, compared with open_clip itself."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import httpx2
import numpy as np
import pytest
from PIL import Image

from clip_networks import PICTURES, Bare, Pixels, make_pictures, make_settings
from clip_networks import bare as bare
from clip_networks import folder as folder
from clip_networks import tags_file as tags_file
from clip_service.app import create_app
from clip_service.model import ClipModel, Item, Key
from clip_service.settings import ClipSettings
from clip_service.tagging import Vector, rank_tags
from visionstack.model_service import PPM_TYPE


@asynccontextmanager
async def serving(
    settings: ClipSettings, model: ClipModel | None = None
) -> AsyncIterator[tuple[httpx2.AsyncClient, ClipModel]]:
    model = model or ClipModel(settings)
    app = create_app(settings, model)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://clip", timeout=60) as client,
    ):
        with anyio.fail_after(60):
            while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - HTTP is all that tells
                await anyio.sleep(0.01)
        yield client, model


@pytest.fixture
async def service(
    folder: Path, tags_file: Path, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[tuple[httpx2.AsyncClient, ClipModel]]:
    async with serving(make_settings(folder, tags_file, tmp_path)) as running:
        yield running


def as_file(pixels: Pixels, format: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


PICTURE = PICTURES[0]
PNG = as_file(PICTURE, "PNG")
PPM = as_file(PICTURE, "PPM")


def scores(tags: Sequence[str], confidences: Sequence[float]) -> list[dict[str, object]]:
    return [
        {"tag": tag, "confidence": pytest.approx(confidence, abs=1e-5)}
        for tag, confidence in zip(tags, confidences, strict=True)
    ]


@pytest.mark.anyio
async def test_analyze_ranks_the_vocabulary(service: tuple[httpx2.AsyncClient, ClipModel], bare: Bare) -> None:
    client, model = service
    expected = rank_tags(bare.images([PICTURE])[0], model.tags, model.tag_vectors, model.logit_scale, 3)

    for body, content_type in ((PNG, "image/png"), (PPM, PPM_TYPE)):
        response = await client.post("/analyze", content=body, headers={"Content-Type": content_type})
        assert response.status_code == 200
        assert response.json() == scores(*zip(*expected, strict=True))
    limited = await client.post("/analyze", params={"limit": 1}, content=PPM, headers={"Content-Type": PPM_TYPE})
    assert limited.json() == scores([expected[0][0]], [expected[0][1]])


@pytest.mark.anyio
async def test_a_callers_own_tags_come_back_as_sent_each_once(
    service: tuple[httpx2.AsyncClient, ClipModel], bare: Bare
) -> None:
    client, model = service
    tags = ["Dog", "dogs", "dog", "red, green & blue", "dog"]
    vectors = np.stack(model.predict("tag", tags[:4]))
    expected = rank_tags(bare.images([PICTURE])[0], tags[:4], vectors, model.logit_scale, 100)

    in_query = await client.post("/analyze", params={"tags": tags, "limit": 100}, content=PNG)
    in_form = await client.post(
        "/analyze/tags", data={"tags": tags, "limit": "100"}, files={"file": ("p.ppm", PPM, PPM_TYPE)}
    )

    assert in_query.json() == in_form.json() == scores(*zip(*expected, strict=True))
    assert sum(tag["confidence"] for tag in in_form.json()) == pytest.approx(1, abs=1e-6)


@pytest.mark.anyio
async def test_a_thousand_tags_fit_though_the_queue_is_short(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    tags = [f"thing {number} \N{CASTLE}{'x' * 100}" for number in range(1000)]

    async with serving(make_settings(folder, tags_file, tmp_path, max_queue=8)) as (client, _):
        response = await client.post(
            "/analyze/tags", data={"tags": tags, "limit": "100"}, files={"file": ("p.png", PNG, "image/png")}
        )
        too_many = await client.post(
            "/analyze/tags", data={"tags": [*tags, "one more"]}, files={"file": ("p.png", PNG, "image/png")}
        )

    assert response.status_code == 200
    assert len({tag["tag"] for tag in response.json()} & set(tags)) == 100
    assert (too_many.status_code, too_many.json()["code"]) == (422, "invalid_request")


class SlowWithTags(ClipModel):
    """Each tag fits into the time that a caller waits, but not all of them."""

    def predict(self, key: Key, items: Sequence[Item]) -> list[Vector]:
        if key == "tag":
            time.sleep(0.1)
        return super().predict(key, items)


@pytest.mark.anyio
async def test_tags_that_take_too_long_together_are_given_up(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    settings = make_settings(folder, tags_file, tmp_path, max_batch=1)

    async with serving(settings, SlowWithTags(settings)) as (client, _):
        response = await client.post(
            "/analyze",
            params={"tags": [f"thing {number}" for number in range(30)]},
            content=PPM,
            headers={"Content-Type": PPM_TYPE, "X-Timeout-Ms": "1000"},
        )

    assert (response.status_code, response.json()["code"]) == (504, "upstream_timeout")


@pytest.mark.anyio
async def test_embed_gives_the_unit_vector_and_names_its_space(
    service: tuple[httpx2.AsyncClient, ClipModel], bare: Bare
) -> None:
    client, model = service

    picture = (await client.post("/embed", content=PPM, headers={"Content-Type": PPM_TYPE})).json()
    text = (await client.post("/embed/text", json={"text": "  a castle by the sea "})).json()

    assert (picture["model"], picture["dim"]) == (text["model"], text["dim"]) == (model.identity, 32)
    np.testing.assert_allclose(picture["vector"], bare.images([PICTURE])[0], atol=1e-5)
    np.testing.assert_allclose(text["vector"], bare.texts(["a castle by the sea"])[0], atol=1e-5)


@pytest.mark.anyio
async def test_requests_at_once_do_not_mix(service: tuple[httpx2.AsyncClient, ClipModel], bare: Bare) -> None:
    client, _ = service
    pictures = make_pictures([(20 + number, 40) for number in range(24)], seed=3)
    found: dict[int, list[float]] = {}

    async def embed(number: int) -> None:
        body = as_file(pictures[number], "PPM")
        response = await client.post("/embed", content=body, headers={"Content-Type": PPM_TYPE})
        found[number] = response.json()["vector"]

    async with anyio.create_task_group() as tasks:
        for number in range(len(pictures)):
            tasks.start_soon(embed, number)

    np.testing.assert_allclose([found[number] for number in range(24)], bare.images(pictures), atol=1e-5)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "request_", "status", "code"),
    [
        ("/analyze", {"content": b""}, 422, "invalid_image"),
        ("/analyze", {"content": b"no picture"}, 415, "unsupported_media_type"),
        ("/analyze", {"content": PNG, "params": {"limit": 0}}, 422, "invalid_request"),
        ("/analyze", {"content": PNG, "params": {"limit": 101}}, 422, "invalid_request"),
        ("/analyze", {"content": PNG, "params": {"tags": ["ok", " "]}}, 422, "invalid_request"),
        ("/analyze", {"content": PNG, "params": {"tags": ["x" * 201]}}, 422, "invalid_request"),
        ("/analyze/tags", {"files": {"file": ("p.png", PNG)}}, 422, "invalid_request"),
        ("/analyze/tags", {"data": {"tags": ["a"]}}, 422, "invalid_request"),
        ("/analyze/tags", {"data": {"tags": ["a"]}, "files": {"file": ("p", b"")}}, 422, "invalid_image"),
        ("/embed", {"content": PNG[:60]}, 422, "invalid_image"),
        ("/embed/text", {"json": {"text": " "}}, 422, "invalid_request"),
        ("/embed/text", {"json": {"text": "x", "lang": "en"}}, 422, "invalid_request"),
    ],
)
async def test_bad_requests_are_refused_in_the_stacks_shape(
    service: tuple[httpx2.AsyncClient, ClipModel], path: str, request_: dict[str, Any], status: int, code: str
) -> None:
    client, _ = service

    response = await client.post(path, **request_)

    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.anyio
async def test_readyz_names_the_model(service: tuple[httpx2.AsyncClient, ClipModel]) -> None:
    client, _ = service

    state = (await client.get("/readyz")).json()

    assert {name: state[name] for name in ("status", "model", "device", "precision")} == {
        "status": "ok",
        "model": "tiny",
        "device": "cpu",
        "precision": "fp32",
    }
