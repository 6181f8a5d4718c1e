"""The servers that the clip service is compared with, each in an environment of its own and as its users run it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from processes import BENCH, DATA, Server, free_port, peer_python, run_program, versions
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


def infinity(session: Session, precision: str) -> Peer:
    """With its torch engine and batches of up to 32; pictures travel as data addresses, its only way for bytes."""
    python, port = peer_python("infinity"), free_port()
    model = DATA / "weights/infinity-vit-b-32"
    if not (model / "model.safetensors").exists():
        run_program([str(python), str(BENCH / "peers/infinity_model.py"), str(model)])
    command = [str(python.parent / "infinity_emb"), "v2", "--model-id", str(model), "--served-model-name", "clip"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--engine", "torch", "--device", "cpu"]
    command += ["--dtype", {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision], "--batch-size", "32"]
    settings = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    server = Server("infinity", command, port=port, settings=settings, probe="/health")
    found = versions(python, ["infinity-emb", "transformers", "torch"])
    return Peer("infinity", server, {"url": f"{server.url}/embeddings", "body": "infinity"}, found)


PEERS: tuple[tuple[str, Callable[[Session, str], Peer]], ...] = (
    ("naive FastAPI", naive_fastapi),
    ("LitServe", litserve),
    ("infinity", infinity),
)
