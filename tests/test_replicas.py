"""Two real clip services behind one gateway: both work, and the death of one costs no answer."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from gateway_process import gateway
from local_stack import BUNDLED_MODELS, ROOT, Stack
from scenes import webp
from service_process import ServiceProcess, service_process

_AT_ONCE = 6
_REQUESTS = 24


@pytest.fixture
def second_clip(tmp_path: Path) -> Iterator[ServiceProcess]:
    model = {name: str(ROOT / value) for name, value in BUNDLED_MODELS["CLIP_MODEL"].items()}
    with service_process("clip", model | {"THREADS": "1", "CACHE_DIR": str(tmp_path)}) as process:
        yield process


def pictures_seen(url: str) -> float:
    text = httpx2.get(f"{url}/metrics", trust_env=False).text
    return float(
        next(line for line in text.splitlines() if line.startswith("vision_inference_images_total")).split()[1]
    )


def test_both_work_and_the_death_of_one_costs_no_answer(stack: Stack, second_clip: ServiceProcess) -> None:
    stack.wait_ready(60)
    urls = (f"http://127.0.0.1:{stack.port('clip')}", second_clip.url)
    with gateway(stack, CLIP_URL=",".join(urls)) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
        expected = client.post("/analyze/clip/file", files={"file": ("p", webp(5))}).json()

        def ask(_: int) -> tuple[int, bool]:
            answer = client.post("/analyze/clip/file", files={"file": ("p", webp(5))})
            return answer.status_code, [tag["tag"] for tag in answer.json()] == [tag["tag"] for tag in expected]

        def shares(of: Iterator[tuple[int, bool]]) -> list[float]:
            before = [pictures_seen(url) for url in urls]
            assert Counter(of) == {(200, True): _REQUESTS}
            return [pictures_seen(url) - seen for url, seen in zip(urls, before, strict=True)]

        # by one client, whose connection is kept alive, one after the other and at once
        assert min(shares(map(ask, range(_REQUESTS)))) >= 1
        assert min(shares(pool.map(ask, range(_REQUESTS)))) >= _REQUESTS / 4

        answers = pool.map(ask, range(4 * _REQUESTS))
        first = [next(answers) for _ in range(_AT_ONCE)]
        second_clip.process.kill()
        assert Counter([*first, *answers]) == {(200, True): 4 * _REQUESTS}
        assert client.get("/health").json()["services"]["clip"]["status"] == "ok"
