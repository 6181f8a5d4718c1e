"""How much the containers take, as tables past pytest's capture: images on disk, memory at rest and under load."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import httpx2

from containers import SERVICES, Containers, Report
from scenes import webp

_IN_FLIGHT = 8
_REQUESTS = 64
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def test_images_share_what_they_can(stack: Containers, report: Report) -> None:
    """`docker system df` counts what several images hold once, as the disk does."""
    described = json.loads(stack.run("docker", "system", "df", "--verbose", "--format", "{{json .Images}}"))
    images = {image["Repository"]: image for image in described}
    rows = {service: images[f"{stack.project}-{service}"] for service in SERVICES}
    report(
        table(
            ("image", "size", "of it its own"),
            ((service, row["Size"], row["UniqueSize"]) for service, row in rows.items()),
        )
    )
    assert all(row["SharedSize"] != "0B" for row in rows.values())


def test_memory_at_rest_and_under_load(stack: Containers, api: httpx2.Client, report: Report) -> None:
    stack.down()
    stack.up()
    stack.wait_ready()
    at_rest = memory(stack)
    picture = webp(4, (1920, 1080))

    def analyse(_: int) -> dict[str, object]:
        answer = api.post("/analyze/all/file", files={"file": ("p", picture)})
        assert answer.status_code == 200, answer.text
        errors: dict[str, object] = answer.json()["errors"]
        return errors

    most = dict(at_rest)
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        answers = [pool.submit(analyse, number) for number in range(_REQUESTS)]
        while not all(answer.done() for answer in answers):
            most = {service: max(most[service], now) for service, now in memory(stack).items()}
    assert [answer.result() for answer in answers] == [{}] * _REQUESTS
    limits = {service: int(stack.of(service)["HostConfig"]["Memory"]) for service in SERVICES}
    report(
        f"/analyze/all/file with 1920 x 1080 pixels, {_IN_FLIGHT} in flight, {_REQUESTS} in all; bundled models\n"
        + table(
            ("container", "at rest", "most under load", "limit"),
            (
                (service, *(f"{amount[service] / 2**20:.0f} MiB" for amount in (at_rest, most, limits)))
                for service in SERVICES
            ),
        )
    )
    for service in SERVICES:
        assert 0 < at_rest[service] <= most[service] < limits[service]
        assert (stack.of(service)["RestartCount"], stack.of(service)["State"]["OOMKilled"]) == (0, False)


def memory(stack: Containers) -> Mapping[str, int]:
    """Bytes that each service's container uses now, by the engine's reckoning: without the page cache."""
    ids = {stack.containers(service)[0]: service for service in SERVICES}
    lines = stack.run("docker", "stats", "--no-stream", "--no-trunc", "--format", "{{json .}}", *ids).decode()
    rows = [json.loads(line) for line in lines.splitlines()]
    return {ids[row["ID"]]: as_bytes(row["MemUsage"].split(" / ")[0]) for row in rows}


def as_bytes(text: str) -> int:
    number = text.rstrip("BKMGi")
    return round(float(number) * _UNITS[text.removeprefix(number)])


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
