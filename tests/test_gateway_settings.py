"""What the gateway reads from the environment, and how keys are judged."""

from pathlib import Path

import pytest
from fastapi import Request
from limits import parse
from pydantic import ValidationError

from gateway_service.auth import Gate
from gateway_service.settings import GatewaySettings
from visionstack.errors import RateLimited, Unauthorized


def settings(monkeypatch: pytest.MonkeyPatch, **environment: str) -> GatewaySettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return GatewaySettings()


def test_defaults_are_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    read = settings(monkeypatch, API_KEY="k")
    assert read.keys == ("k",)
    assert (read.rate_limit, read.fetch_timeout_s, read.fetch_max_redirects) == ("6000/minute", 10, 3)
    assert (read.max_image_bytes, read.max_image_pixels) == (25 * 1024 * 1024, 50_000_000)
    assert read.fetch_allow_ports == {80, 443, 8080, 8443}
    assert read.image_formats == ("jpeg", "png", "webp", "gif", "avif")
    assert (read.decode_timeout_s, read.receive_timeout_s) == (5, 30)


def test_an_empty_rate_limit_is_none_and_any_other_empty_value_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    read = settings(monkeypatch, API_KEY="k", RATE_LIMIT="", FETCH_TIMEOUT_S="")
    assert (read.rate_limit, read.key_rate, read.fetch_timeout_s) == (None, None, 10)


def test_keys_come_from_both_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("c\nd,  e\n\n")
    assert settings(monkeypatch, API_KEY="a, b,a", API_KEY_FILE=str(tmp_path / "keys")).keys == (
        "a",
        "b",
        "c",
        "d",
        "e",
    )


def test_a_missing_key_file_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="API_KEY_FILE cannot be read"):
        settings(monkeypatch, API_KEY_FILE=str(tmp_path / "none"))


def test_keys_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sesame" not in repr(settings(monkeypatch, API_KEY="sesame"))


def request_with(key: bytes | None, address: str = "203.0.113.9") -> Request:
    headers = [] if key is None else [(b"x-api-key", key)]
    return Request({"type": "http", "headers": headers, "client": (address, 1), "method": "GET", "path": "/"})


def gate(key_rate: str | None = None, failed_rate: str | None = None) -> Gate:
    return Gate(
        ["alpha", "beta"],
        key_rate=parse(key_rate) if key_rate else None,
        failed_key_rate=parse(failed_rate) if failed_rate else None,
    )


@pytest.mark.anyio
async def test_any_of_the_keys_and_nothing_else_passes() -> None:
    for right in (b"alpha", b"beta"):
        await gate().admit(request_with(right))
    for wrong in (None, b"", b"alph", b"alphaa", b"ALPHA", "älpha".encode(), b"\xff\xfe", b"alpha,beta"):
        with pytest.raises(Unauthorized):
            await gate().admit(request_with(wrong))


@pytest.mark.anyio
async def test_each_key_has_its_own_limit() -> None:
    limited = gate(key_rate="2/hour")
    for _ in range(2):
        await limited.admit(request_with(b"alpha"))
    with pytest.raises(RateLimited) as caught:
        await limited.admit(request_with(b"alpha"))
    assert 0 < (caught.value.retry_after or 0) <= 3600
    await limited.admit(request_with(b"beta"))


@pytest.mark.anyio
async def test_wrong_keys_are_limited_by_address_and_never_lock_a_right_one_out() -> None:
    limited = gate(failed_rate="2/hour")
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await limited.admit(request_with(b"guess"))
    with pytest.raises(RateLimited):
        await limited.admit(request_with(b"guess"))
    with pytest.raises(Unauthorized):
        await limited.admit(request_with(b"guess", address="203.0.113.10"))
    await limited.admit(request_with(b"alpha"))
