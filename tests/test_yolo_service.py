"""The yolo service: its route, its answers under load, and its process."""

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
import torch
from PIL import Image

from problems import assert_problem
from service_process import free_port
from visionstack.model_service import PPM_TYPE
from visionstack.schemas import Detection
from yolo_networks import CLASS_NAMES, SIDE, assert_alike, blocks, make_network, write_checkpoint
from yolo_service.app import create_app
from yolo_service.model import DetectionTask, YoloModel
from yolo_service.settings import YoloSettings

YOLO_FOLDER = Path(__file__).resolve().parents[1] / "yolo"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The order of summation depends on the threads, and more of them only wait on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(make_network("yolo11n"), tmp_path_factory.mktemp("checkpoint") / "blocks.pt")


@asynccontextmanager
async def serving(checkpoint: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, YoloModel]]:
    settings = YoloSettings(yolo_model=str(checkpoint), device="cpu", precision="fp32", threads=1)
    model = YoloModel(settings)
    app = create_app(settings, model)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://yolo", timeout=60) as client,
    ):
        with anyio.fail_after(100):
            while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - readiness is asked for over HTTP
                await anyio.sleep(0.01)
        yield client, model


@pytest.fixture
async def service(checkpoint: Path, anyio_backend: str) -> AsyncIterator[tuple[httpx2.AsyncClient, YoloModel]]:
    async with serving(checkpoint) as running:
        yield running


def as_file(pixels: Any, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def detections(response: httpx2.Response) -> list[Detection]:
    assert response.status_code == 200, response.text
    return [Detection.model_validate(found) for found in response.json()]


def detect(model: YoloModel, pixels: Any, conf: float = 0.25) -> list[Detection]:
    return model.predict(model.batch_key(pixels), [DetectionTask(pixels, conf)])[0]


@pytest.mark.anyio
async def test_raw_pixels_and_a_file_get_the_models_answer(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, model = service
    pixels = blocks(240, 320)
    raw = await client.post("/analyze", content=as_file(pixels, "PPM"), headers={"content-type": PPM_TYPE})
    file = await client.post("/analyze", content=as_file(pixels, "PNG"))
    assert_alike(detections(raw), detect(model, pixels))
    assert file.json() == raw.json()
    first = raw.json()[0]
    assert list(first) == ["class", "confidence", "bbox"]
    assert first["class"] in CLASS_NAMES.values()


@pytest.mark.anyio
async def test_boxes_are_those_of_the_upright_picture(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, model = service
    upright = blocks(320, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it clockwise
    lying = upright.swapaxes(0, 1)[::-1].copy()
    response = await client.post("/analyze", content=as_file(lying, "PNG", exif=exif))
    assert_alike(detections(response), detect(model, upright))


@pytest.mark.anyio
async def test_conf_cuts_the_list(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, _ = service
    body = as_file(blocks(240, 320), "PNG")
    everything = detections(await client.post("/analyze?conf=0", content=body))
    assert len(everything) == 300
    assert [d.confidence for d in everything] == sorted((d.confidence for d in everything), reverse=True)
    for conf in (0.25, 0.3, 0.8, 1):
        cut = detections(await client.post("/analyze", params={"conf": conf}, content=body))
        assert cut == [d for d in everything if d.confidence > conf]
    assert (await client.post("/analyze", content=body)).json() == (
        await client.post("/analyze?conf=0.25", content=body)
    ).json()


@pytest.mark.anyio
@pytest.mark.parametrize("query", ["conf=-0.1", "conf=1.1", "conf=nan", "conf=much", "confidence=0.5"])
async def test_a_query_that_cannot_be_used(service: tuple[httpx2.AsyncClient, YoloModel], query: str) -> None:
    client, _ = service
    response = await client.post(f"/analyze?{query}", content=as_file(blocks(32, 32), "PNG"))
    problem = assert_problem(response, 422, "invalid_request")
    assert problem["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.anyio
async def test_a_body_that_is_no_picture(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, _ = service
    assert_problem(await client.post("/analyze", content=b"GIF89 not really"), 415, "unsupported_media_type")
    assert_problem(await client.post("/analyze"), 422, "invalid_image")


@pytest.mark.anyio
async def test_answers_under_load_are_those_of_single_requests(
    service: tuple[httpx2.AsyncClient, YoloModel],
) -> None:
    client, _ = service
    bodies = [as_file(blocks(160 + 32 * (i % 3), 320, i), "PPM") for i in range(8)]
    answers: dict[int, Any] = {}

    async def ask(number: int) -> Any:
        conf = (0.1, 0.4, 0.7)[number % 3]
        headers = {"content-type": PPM_TYPE}
        response = await client.post("/analyze", params={"conf": conf}, content=bodies[number % 8], headers=headers)
        assert response.status_code == 200
        return response.json()

    async def ask_and_note(number: int) -> None:
        answers[number] = await ask(number)

    singly = [await ask(number) for number in range(24)]
    assert len({str(answer) for answer in singly}) == 24  # a mix-up would be seen
    async with anyio.create_task_group() as group:
        for number in range(48):
            group.start_soon(ask_and_note, number)
    for number in range(48):
        assert answers[number] == singly[number % 24]


@pytest.mark.anyio
async def test_readyz_names_the_model(service: tuple[httpx2.AsyncClient, YoloModel]) -> None:
    client, _ = service
    state = (await client.get("/readyz")).json()
    assert state.items() >= {"status": "ok", "model": "blocks.pt", "device": "cpu", "precision": "fp32"}.items()


# --- the process --------------------------------------------------------------------------------------------------


def start(port: int, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)]
    settings = {"DEVICE": "cpu", "PRECISION": "fp32", "THREADS": "1", "LOG_FORMAT": "console"} | environment
    return subprocess.Popen(command, cwd=YOLO_FOLDER, env=os.environ | settings, stderr=subprocess.PIPE, text=True)


def test_main_serves_the_checkpoint_of_its_environment(checkpoint: Path) -> None:
    port = free_port()
    process = start(port, YOLO_MODEL=str(checkpoint))
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            deadline = time.monotonic() + 100
            while True:
                assert process.poll() is None
                assert time.monotonic() < deadline
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx2.TransportError:
                    pass
                time.sleep(0.05)
            found = detections(client.post("/analyze", content=as_file(blocks(SIDE, SIDE), "PNG")))
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode in (0, -15)
    model = YoloModel(YoloSettings(yolo_model=str(checkpoint), device="cpu", precision="fp32", threads=1))
    model.load()
    assert_alike(found, detect(model, blocks(SIDE, SIDE)))
    assert len(found) > 5


def test_main_ends_with_one_clear_line_when_there_is_no_such_checkpoint() -> None:
    process = start(free_port(), YOLO_MODEL="no-such-model.pt")
    _, log = process.communicate(timeout=120)
    assert process.returncode == 1
    [line] = [line for line in log.splitlines() if "[error" in line]
    assert "YOLO_MODEL=no-such-model.pt is neither a file nor the name of a checkpoint" in line
    assert "Traceback" not in log
