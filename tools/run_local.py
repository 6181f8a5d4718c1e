"""`make run`: the whole stack on this machine, in one terminal, without containers.

Settings come from the environment, then from `.env`; `.env.example` lists them all. See `--help` for those that only
this command reads.
"""

import argparse
import errno
import os
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil
from dotenv import dotenv_values

from local_stack import ROOT, SERVICES, Stack, StackNotRunnable, bind_error
from supervisor import OWN_NAME, StartFailed

_SAMPLE = Path("demo/pictures/boat-at-sunset.webp")
_SIGN_OF_LIFE_S = 30.0
_COLOURS = {name: f"\x1b[{code}m" for name, code in zip((*SERVICES, OWN_NAME), (36, 35, 33, 34, 32, 1), strict=True)}
_RESET = "\x1b[0m"

_HELP = """
settings of this command, from the environment or .env:
  GATEWAY_PORT  the port of the gateway (8000)
  GATEWAY_HOST  the address it listens on (127.0.0.1: this machine only; 0.0.0.0: every address)
  MODELS        demo: the small bundled models (the default); full: CLIP_MODEL, BLIP_MODEL and YOLO_MODEL, or the
                real models where these are not set, downloaded at the first start
  QDRANT_URL    a Qdrant server; without it the embedded store keeps its data in data/qdrant
"""


class TerminalLog:
    """Prints log lines with the service's name in front; one instance serves all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._width = max(map(len, _COLOURS))

    def __call__(self, name: str, text: str) -> None:
        prefix = f"{name:<{self._width}} | "
        if self._colour:
            prefix = f"{_COLOURS[name]}{prefix}{_RESET}"
        self.print("\n".join(prefix + line for line in text.splitlines()))

    def print(self, text: str) -> None:
        try:
            with self._lock:
                print(text, flush=True)
        except OSError:  # the terminal is gone; the services must still be stopped in order
            pass


def read_settings(path: Path) -> dict[str, str]:
    """The environment over the file's values; what is empty there does not hide a value of the file."""
    values = {name: value or "" for name, value in dotenv_values(path).items()} if path.exists() else {}
    return values | {name: value for name, value in os.environ.items() if value or name not in values}


def ensure_api_key(path: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """The settings with an `API_KEY`; where there was none, a random one that `path` now keeps."""
    if settings.get("API_KEY") or settings.get("API_KEY_FILE"):
        return dict(settings)
    key = secrets.token_urlsafe(32)
    old = path.read_text("utf-8").splitlines() if path.exists() else []
    lines = [line for line in old if line.partition("=")[0].strip() != "API_KEY"]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join([*lines, f"API_KEY={key}"]) + "\n")
    print(f"Wrote a random API_KEY to {path.name}.", flush=True)
    return {**settings, "API_KEY": key}


def gateway_port(settings: Mapping[str, str]) -> int:
    """The configured port. Raises `StackNotRunnable` when the value is no port."""
    text = settings.get("GATEWAY_PORT") or "8000"
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise StackNotRunnable(f"GATEWAY_PORT is {text!r}; it must be a number from 1 to 65535.")
    return int(text)


def check_port(host: str, port: int) -> None:
    """Raises `StackNotRunnable` with the way out when the gateway could not listen there."""
    error = bind_error(host, port)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        raise StackNotRunnable(
            f"Port {port} is in use{_by_whom(port)}; stop that, or choose another with GATEWAY_PORT=…"
        )
    if error.errno == errno.EACCES:
        raise StackNotRunnable(f"Port {port} needs privileges; choose one above 1023 with GATEWAY_PORT=…")
    raise StackNotRunnable(f"Nothing can listen on {host}: {error.strerror}; correct GATEWAY_HOST.")


def _by_whom(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:  # not ours to see
        pass
    return ""


def _welcome(stack: Stack, settings: Mapping[str, str], seconds: float) -> str:
    header = shlex.quote(f"X-API-Key: {stack.key}")
    picture = shlex.quote(f"file=@{ROOT / _SAMPLE}")
    models = "the small bundled models (MODELS=full takes the real ones)"
    if settings.get("MODELS") == "full":
        models = "the real models"
    return f"""
The Vision Stack is ready after {seconds:.0f} s, with {models}. Ctrl-C stops it.

  export VISION_URL={stack.url}
  export API_KEY={shlex.quote(stack.key)}

The documentation is at {stack.url}/docs. Try it:

  curl -H {header} -F {picture} {stack.url}/analyze/all/file
"""


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _wait_ready(stack: Stack, log: TerminalLog, started_at: float) -> None:
    while True:
        try:
            stack.wait_ready(_SIGN_OF_LIFE_S)
        except TimeoutError as exc:
            log(OWN_NAME, f"{exc} ({time.monotonic() - started_at:.0f} s)")
        else:
            return


def _stop(stack: Stack, log: TerminalLog) -> None:
    log(OWN_NAME, "stopping; Ctrl-C once more kills what is left")
    try:
        stack.stop()
    except KeyboardInterrupt:
        stack.stop(grace_s=0)
    log(OWN_NAME, "stopped")


def run(env_file: Path, log: TerminalLog) -> int:
    """Run the stack until it is interrupted; returns the exit status. `StackNotRunnable` comes before any start."""
    settings = read_settings(env_file)
    host, port = settings.get("GATEWAY_HOST") or "127.0.0.1", gateway_port(settings)
    check_port(host, port)
    settings = ensure_api_key(env_file, settings)
    started_at = time.monotonic()
    stack = Stack(settings, sink=log, host=host, gateway_port=port)
    log(OWN_NAME, "starting " + ", ".join(SERVICES))
    try:
        stack.start()
        _wait_ready(stack, log, started_at)
        log.print(_welcome(stack, settings, time.monotonic() - started_at))
        stack.wait_stopped()
    except KeyboardInterrupt:
        _stop(stack, log)
        return 0
    except StartFailed as exc:
        print(f"\nThe stack did not start: {exc}", file=sys.stderr)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make run",
        description="Run the whole stack on this machine.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return run(ROOT / ".env", TerminalLog())
    except StackNotRunnable as exc:
        print(exc, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
