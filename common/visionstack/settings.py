"""Settings from environment variables: typed, frozen, read once by each service's `main.py`.

An empty variable counts as unset (Compose passes `${VAR:-}` as an empty string). A value that does not parse stops the
start with one line per variable that says what is wrong.
"""

import sys
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .inflight import Capacity

MiB = 1024 * 1024


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]

# What a network runs on. OpenVINO is for CPUs.
Runtime = Literal["torch", "openvino"]

ImageFormat = Literal["jpeg", "png", "webp", "gif", "avif"]


class ServiceSettings(BaseSettings):
    """What every service reads."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore")

    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # requests that are worked on at once, and what they may hold together
    max_in_flight: int = Field(128, ge=1, le=100_000)
    max_in_flight_bytes: int = Field(512 * MiB, ge=MiB)
    # from a request's arrival to its answer
    request_timeout_s: float = Field(90.0, gt=0, le=3600)

    @property
    def capacity(self) -> Capacity:
        """A new one: for each app its own."""
        return Capacity(max_requests=self.max_in_flight, max_bytes=self.max_in_flight_bytes)


class ImageSettings(ServiceSettings):
    """The limits of what a picture may cost; read wherever pictures are decoded."""

    max_image_bytes: int = Field(25 * MiB, ge=1024)
    max_image_pixels: int = Field(50_000_000, ge=1024, le=1_000_000_000)
    image_formats: Annotated[tuple[ImageFormat, ...], NoDecode, BeforeValidator(_split_commas), Field(min_length=1)] = (
        "jpeg",
        "png",
        "webp",
        "gif",
        "avif",
    )
    decode_timeout_s: float = Field(5.0, gt=0, le=600)


class ModelSettings(ImageSettings):
    """What every model service reads besides its own model's name."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda|cuda:\d+)$")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # 0: all cores divided by the number of model services that share them
    threads: int = Field(0, ge=0, le=1024)
    cpu_shared_by: int = Field(1, ge=1, le=64)
    max_batch: int = Field(32, ge=1, le=1024)
    max_queue: int = Field(128, ge=1, le=100_000)
    predict_timeout_s: float = Field(60.0, gt=0, le=3600)


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def load_settings(settings_class: type[SettingsT]) -> SettingsT:
    """Read the environment; on a bad value print one line per variable and end the process with status 2."""
    try:
        return settings_class()
    except ValidationError as exc:
        print(f"{settings_class.__module__.partition('.')[0]}: cannot start:", file=sys.stderr)
        for error in exc.errors(include_input=False, include_url=False, include_context=False):
            name = str(error["loc"][0]).upper() if error["loc"] else "settings"
            message = error["msg"].removeprefix("Value error, ")
            print(f"  {name}: {message}", file=sys.stderr)
        raise SystemExit(2) from None
