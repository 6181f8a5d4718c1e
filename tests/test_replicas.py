"""Two real yolo services behind one gateway: both work, and the death of one costs no answer."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from gateway_process import gateway
from local_stack import BUNDLED_MODELS, ROOT, Stack
from scenes import webp
from service_process import ServiceProcess, service_process

_AT_ONCE = 6
_REQUESTS = 24


@pytest.fixture
def second_yolo() -> Iterator[ServiceProcess]:
    model = {name: str(ROOT / value) for name, value in BUNDLED_MODELS["YOLO_MODEL"].items()}
    with service_process("yolo", model | {"THREADS": "1"}) as process:
        yield process


def pictures_seen(url: str) -> float:
    text = httpx2.get(f"{url}/metrics", trust_env=False).text
    return float(
        next(line for line in text.splitlines() if line.startswith("vision_inference_images_total")).split()[1]
    )


@pytest.mark.alone
def test_both_work_and_the_death_of_one_costs_no_answer(stack: Stack, second_yolo: ServiceProcess) -> None:
    stack.wait_ready(60)
    urls = (f"http://127.0.0.1:{stack.port('yolo')}", second_yolo.url)
    with gateway(stack, YOLO_URL=",".join(urls)) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
        expected = client.post("/analyze/yolo/file", files={"file": ("p", webp(5))}).json()

        def ask(_: int) -> tuple[int, bool]:
            answer = client.post("/analyze/yolo/file", files={"file": ("p", webp(5))})
            return answer.status_code, [box["class"] for box in answer.json()] == [box["class"] for box in expected]

        def shares(of: Iterator[tuple[int, bool]]) -> list[float]:
            before = [pictures_seen(url) for url in urls]
            assert Counter(of) == {(200, True): _REQUESTS}
            return [pictures_seen(url) - seen for url, seen in zip(urls, before, strict=True)]

        # by one client, whose connection is kept alive, one after the other and at once
        assert min(shares(map(ask, range(_REQUESTS)))) >= 1
        assert min(shares(pool.map(ask, range(_REQUESTS)))) >= _REQUESTS / 8

        answers = pool.map(ask, range(4 * _REQUESTS))
        first = [next(answers) for _ in range(_AT_ONCE)]
        second_yolo.process.kill()
        assert Counter([*first, *answers]) == {(200, True): 4 * _REQUESTS}
        assert client.get("/health").json()["services"]["yolo"]["status"] == "ok"
