"""The servers that the clip service is compared with, each in an environment of its own and as its users run it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from processes import BENCH, Server, free_port, peer_python, versions
from session import Session


@dataclass(frozen=True, slots=True)
class Peer:
    """`target` is where the load generator sends pictures and how (see `load.Target`)."""

    name: str
    server: Server
    target: Mapping[str, Any]
    versions: Mapping[str, str]


def naive_fastapi(session: Session, precision: str) -> Peer:
    """One request at a time in FastAPI's thread pool, in fp32 whatever the processor has: what is written by hand."""
    python, port = peer_python("serving"), free_port()
    command = [str(python), "-m", "uvicorn", "naive_fastapi:app", "--port", str(port), "--no-access-log"]
    settings = {"WEIGHTS": str(session.weights.clip)}
    server = Server("naive-fastapi", command, port=port, folder=BENCH / "peers", settings=settings)
    found = versions(python, ["fastapi", "open_clip_torch", "torch"])
    return Peer("naive FastAPI", server, {"url": f"{server.url}/embed", "body": "form"}, found)


def litserve(session: Session, precision: str) -> Peer:
    """At the stack's precision, with batches of up to 32."""
    python, port = peer_python("serving"), free_port()
    command = [str(python), "litserve_clip.py", str(port)]
    settings = {"WEIGHTS": str(session.weights.clip), "PRECISION": precision}
    server = Server("litserve", command, port=port, folder=BENCH / "peers", settings=settings, probe="/health")
    found = versions(python, ["litserve", "open_clip_torch", "torch"])
    return Peer("LitServe", server, {"url": f"{server.url}/predict", "body": "base64"}, found)


PEERS: tuple[tuple[str, Callable[[Session, str], Peer]], ...] = (
    ("naive FastAPI", naive_fastapi),
    ("LitServe", litserve),
)
