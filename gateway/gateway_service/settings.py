"""What the gateway reads from the environment."""

import ipaddress
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from limits import RateLimitItem, parse
from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from visionstack.machine import available_cores
from visionstack.settings import CommaSeparated, ImageSettings, MiB
from visionstack.urlguard import FetchPolicy

# What examples carry in place of a key: a stack that starts with one of these is open to everybody who read them.
_PLACEHOLDERS = frozenset({"your_api_key_here", "<your-api-key>", "changeme", "changethis"})


def _networks(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())


def _ports(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _unless_emptied(variable: str, default: str) -> str | None:
    """An empty variable counts as unset everywhere, but for a limit it is how one says that there is none."""
    return None if os.environ.get(variable) == "" else default


class GatewaySettings(ImageSettings):
    """The gateway's settings; every field is an environment variable of the same name in capitals."""

    api_key: SecretStr = SecretStr("")
    api_key_file: Path | None = None

    # 0: served nowhere
    metrics_port: int = Field(0, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"

    clip_url: CommaSeparated = ("http://clip:8000",)
    blip_url: CommaSeparated = ("http://blip:8000",)
    yolo_url: CommaSeparated = ("http://yolo:8000",)
    qdrant_svc_url: CommaSeparated = ("http://qdrant-svc:8000",)
    clip_timeout_s: float = Field(30.0, gt=0, le=3600)
    blip_timeout_s: float = Field(60.0, gt=0, le=3600)
    yolo_timeout_s: float = Field(30.0, gt=0, le=3600)
    qdrant_timeout_s: float = Field(30.0, gt=0, le=3600)

    fetch_allow_networks: Annotated[
        tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...], NoDecode, BeforeValidator(_networks)
    ] = ()
    fetch_allow_ports: Annotated[
        frozenset[Annotated[int, Field(ge=1, le=65535)]], NoDecode, BeforeValidator(_ports), Field(min_length=1)
    ] = frozenset({80, 443, 8080, 8443})
    fetch_max_redirects: int = Field(3, ge=0, le=20)
    fetch_timeout_s: float = Field(10.0, gt=0, le=300)

    # 0: one per core
    decode_workers: int = Field(0, ge=0, le=256)
    # 0: a quarter of the memory that the container or the machine has
    decode_memory_bytes: int = Field(0, ge=0)
    # 0: none are kept
    result_cache_bytes: int = Field(64 * MiB, ge=0)
    receive_timeout_s: float = Field(30.0, gt=0, le=3600)
    max_json_bytes: int = Field(8 * MiB, ge=1024)
    batch_timeout_s: float = Field(120.0, gt=0, le=3600)
    rate_limit: str | None = Field(default_factory=lambda: _unless_emptied("RATE_LIMIT", "6000/minute"))
    failed_key_limit: str | None = Field(default_factory=lambda: _unless_emptied("FAILED_KEY_LIMIT", "10/minute"))

    @field_validator("rate_limit", "failed_key_limit")
    @classmethod
    def _parses_as_rate(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse(value)
            except ValueError:
                raise ValueError("write a rate such as 6000/minute, or leave it empty for none") from None
        return value

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        if not self.keys:
            raise ValueError("API_KEY is not set; put API_KEY=<a long random text> into .env (openssl rand -hex 32)")
        for placeholder in _PLACEHOLDERS.intersection(self.keys):
            raise ValueError(f"API_KEY is still the placeholder {placeholder!r}; choose a random one")
        return self

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """All valid keys: of `API_KEY` and of the file that `API_KEY_FILE` names (one per line or comma separated)."""
        text = self.api_key.get_secret_value()
        if self.api_key_file is not None:
            try:
                text += "," + self.api_key_file.read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                raise ValueError("API_KEY_FILE cannot be read") from None
        return tuple(dict.fromkeys(key.strip() for key in text.replace("\n", ",").split(",") if key.strip()))

    @property
    def key_rate(self) -> RateLimitItem | None:
        return parse(self.rate_limit) if self.rate_limit else None

    @property
    def failed_key_rate(self) -> RateLimitItem | None:
        return parse(self.failed_key_limit) if self.failed_key_limit else None

    @property
    def fetch_policy(self) -> FetchPolicy:
        return FetchPolicy(
            allow_networks=self.fetch_allow_networks,
            allow_ports=self.fetch_allow_ports,
            max_redirects=self.fetch_max_redirects,
        )

    @property
    def decoders(self) -> int:
        return self.decode_workers or available_cores()
