"""What the hub's errors become, however deep a library has wrapped them."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from visionstack.hub import cached_first, load_errors, prepare_hub
from visionstack.model_service import ModelLoadError

SECRET_ADDRESS = "https://hub.example/here/model/resolve/main/config.json"


def refused(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> Exception:
    response = httpx2.Response(status, request=httpx2.Request("HEAD", SECRET_ADDRESS))
    return kind(f"{status} for {SECRET_ADDRESS}", response=response)


def unreachable() -> Exception:
    error = LocalEntryNotFoundError("An error happened while trying to locate the file")
    error.__cause__ = httpx2.ConnectError("Connection refused")
    return error


def wrapped(error: Exception) -> Exception:
    """As open_clip does it: first without `from`, then with."""
    try:
        try:
            try:
                raise error
            except Exception:
                raise FileNotFoundError("Failed to download file")  # noqa: B904 - that is the point
        except Exception as exc:
            raise RuntimeError("Failed initial load") from exc
    except RuntimeError as exc:
        return exc


def test_only_what_the_cache_lacks_is_asked_for_twice_and_what_is_on_disk_is_not(tmp_path: Path) -> None:
    def loads(name: str, succeeds: Callable[[bool], bool]) -> list[bool]:
        """Whether the hub was out of sight at each attempt."""
        attempts: list[bool] = []

        def load() -> None:
            attempts.append(constants.is_offline_mode())
            if not succeeds(attempts[-1]):
                raise OSError("no such file")

        with contextlib.suppress(OSError):
            cached_first(name, load)
        return attempts

    assert not constants.is_offline_mode()
    assert loads("here/model", lambda offline: True) == [True]
    assert loads("here/model", lambda offline: not offline) == [True, False]
    assert loads(str(tmp_path), lambda offline: False) == [False]
    assert not constants.is_offline_mode()


def sentence(error: Exception) -> str:
    with pytest.raises(ModelLoadError) as caught, load_errors("CLIP_MODEL=x"):
        raise error
    assert caught.value.__cause__ is error
    text = str(caught.value)
    assert text.startswith("CLIP_MODEL=x cannot be loaded: ")
    assert "\n" not in text
    return text.removeprefix("CLIP_MODEL=x cannot be loaded: ")


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (refused(401), "set HUGGINGFACE_TOKEN"),
        (refused(403, GatedRepoError), "set HUGGINGFACE_TOKEN"),
        (refused(404), "does not exist on Hugging Face"),
        (refused(429), "status 429; try again later"),
        (refused(503), "status 503; try again later"),
        (unreachable(), "cannot be reached"),
        (httpx2.ReadTimeout("slow"), "cannot be reached"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (HFValidationError("Repo id must be in the form"), "neither a folder on this disk nor a name"),
    ],
)
def test_the_hubs_errors_say_what_to_do(error: Exception, says: str, wrap: Callable[[Exception], Exception]) -> None:
    text = sentence(wrap(error))

    assert says in text
    assert "hub.example" not in text


def test_other_errors_give_their_first_line() -> None:
    assert sentence(ValueError("\n  the header is cut \n  at byte 7")) == "the header is cut"
    assert sentence(KeyError()) == "KeyError"
    assert len(sentence(ValueError("x" * 5000))) == 300


def test_what_is_already_a_sentence_passes() -> None:
    error = ModelLoadError("CLIP_TAGS_FILE: gone")

    with pytest.raises(ModelLoadError) as caught, load_errors("CLIP_MODEL=x"):
        raise error
    assert caught.value is error


def test_an_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt), load_errors("x"):
        raise KeyboardInterrupt


def test_the_token_goes_where_the_hubs_library_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "its own")
    prepare_hub(None)
    assert os.environ["HF_TOKEN"] == "its own"

    prepare_hub("hf_ours")
    assert os.environ["HF_TOKEN"] == "hf_ours"
