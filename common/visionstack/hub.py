"""Loading models from the Hugging Face hub: its environment before, and its errors after, in one sentence each.

It owns neither the download nor the cache: huggingface_hub does both.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.error import URLError

from .model_service import ModelLoadError

T = TypeVar("T")

logger = logging.getLogger(__name__)

_LONGEST_REASON = 300


def prepare_hub(token: str | None) -> None:
    """Set what huggingface_hub reads when it is imported; call this before anything imports it.

    Without a terminal its progress bars are off, and a start that downloads for minutes would look like one that hangs:
    they are switched on, at a pace that a log can bear.
    """
    if token:
        os.environ["HF_TOKEN"] = token
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_POSITION", "-1")
        os.environ.setdefault("TQDM_MININTERVAL", "5")


def cached_first(name: str, load: Callable[[], T]) -> T:
    """What `load` makes of the local cache alone or, if that lacks something, with the hub.

    A hub that cannot be reached costs the libraries a dozen attempts with pauses, minutes in all, though everything is
    in the cache. So they only learn that there is one when there is no other way. `name` is the model's; what lies on
    this disk under it is loaded as it is.
    """
    if Path(name).exists():
        return load()
    try:
        with _hub_out_of_sight():
            return load()
    except ModelLoadError:
        raise
    except Exception as exc:
        logger.info("%s is not in the local cache; downloading it", name)
        logger.debug("the cache does not do", exc_info=exc)
    return load()


@contextmanager
def _hub_out_of_sight() -> Iterator[None]:
    from huggingface_hub import constants

    # read at each request; the variable of that name only when it is imported
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def load_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises while it loads `what` (as in `BLIP_MODEL=name`) into a `ModelLoadError`."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as exc:
        raise ModelLoadError(f"{what} cannot be loaded: {_reason(exc)}") from exc


def _reason(exc: BaseException) -> str:
    """What to do about it. Libraries wrap the hub's errors in their own, so the whole chain is searched."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    chain = list(_chain(exc))
    if any(isinstance(error, HFValidationError) for error in chain):
        return "it is neither a folder on this disk nor a name that the Hugging Face hub could have (owner/name)."
    statuses = [error.response.status_code for error in chain if isinstance(error, HfHubHTTPError)]
    if any(status in (401, 403) for status in statuses):
        # The hub answers 401 for a name that does not exist, too.
        return (
            "Hugging Face does not give it out. Check its name; if it is gated or private, set HUGGINGFACE_TOKEN to a "
            "valid token of an account that may read it (for a gated model: after accepting its terms on its page)."
        )
    if any(status >= 500 or status == 429 for status in statuses):
        return f"Hugging Face answered with status {statuses[0]}; try again later."
    if any(isinstance(error, OfflineModeIsEnabled) for error in chain):
        return "it is not in the local cache, and HF_HUB_OFFLINE forbids to download it."
    if any(isinstance(error, LocalEntryNotFoundError | URLError | ConnectionError) for error in chain) or any(
        _is_transport_error(error) for error in chain
    ):
        return (
            "Hugging Face cannot be reached, and it is not in the local cache. Check the network and its proxy "
            "settings, or name a local folder instead."
        )
    if 404 in statuses or any(isinstance(error, EntryNotFoundError) for error in chain):
        return "it, or a file that it needs, does not exist on Hugging Face. Check its name."
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines[0] if lines else type(exc).__name__)[:_LONGEST_REASON]


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_transport_error(error: BaseException) -> bool:
    # huggingface_hub has changed its HTTP library more than once, and each has this class
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)
