"""The local runner against tiny services: order, readiness, restarts, refusals and ends, with real processes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import psutil
import pytest

from local_stack import SERVICES, Stack, StackNotRunnable
from run_local import ensure_api_key, read_settings
from service_process import free_port
from supervisor import ServiceSpec, StartFailed, Supervisor

TOOLS = Path(__file__).resolve().parent.parent / "tools"
PATIENCE_S = 30.0

# Ready once the file `ready` is there; writes down each start and each end. `/environment` shows what it was given.
FAKE_SERVER = """
import http.server, json, os, pathlib, signal, sys
here = pathlib.Path.cwd()
def end(*_):
    (here / "ends").open("a").write("end\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if (here / "ready").exists() or self.path != "/readyz" else 503)
        self.end_headers()
        self.wfile.write(json.dumps({"pid": os.getpid(), "environment": dict(os.environ)}).encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
(here / "starts").open("a").write("start\\n")
print("listening", flush=True)
server.serve_forever()
"""

WITH_CHILD = FAKE_SERVER.replace(
    'print("listening"', 'import subprocess; child = subprocess.Popen(["sleep", "600"]); print(f"child {child.pid}"'
)

# What `visionstack.serve` runs in each folder of a fake project: ready at once, and it shows its environment.
FAKE_MAIN = """
import json, os
print("hello from the service")
{extra}
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({{"type": message["type"] + ".complete"}})
            if message["type"] == "lifespan.shutdown":
                return
    body = json.dumps({{"cwd": os.getcwd(), "environment": dict(os.environ)}}).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": body}})
app.openapi = dict
"""


class Log:
    """Collects lines and lets a test wait for one."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._changed = threading.Condition()

    def __call__(self, name: str, line: str) -> None:
        with self._changed:
            self.lines.append((name, line))
            self._changed.notify_all()

    def find(self, pattern: str) -> list[str]:
        return [line for _, line in self.lines if re.search(pattern, line)]

    def wait_for(self, pattern: str) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: self.find(pattern), PATIENCE_S), f"no {pattern!r} in {self.lines}"
        return self.find(pattern)[0]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def get_json(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:  # noqa: S310
        answer: dict[str, object] = json.load(response)
        return answer


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., ServiceSpec]:
    """Makes the spec of a fake server; `script` replaces its code."""

    def make(name: str, *, script: str = FAKE_SERVER, ready: bool = True) -> ServiceSpec:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "server.py").write_text(script)
        if ready:
            (directory / "ready").touch()
        port = free_port()
        return ServiceSpec(name, [sys.executable, "server.py", str(port)], directory, dict(os.environ), port)

    return make


@pytest.fixture
def supervise(log: Log) -> Iterator[Callable[..., Supervisor]]:
    with ExitStack() as stack:

        def start(*specs: ServiceSpec, front: str | None = None) -> Supervisor:
            supervisor = Supervisor(specs, log, front=front)
            stack.callback(supervisor.stop, grace_s=2)
            supervisor.start()
            return supervisor

        yield start


class TestSupervisor:
    def test_ready_means_every_readyz_answers_200(
        self, fake: Callable[..., ServiceSpec], supervise: Callable[..., Supervisor], log: Log
    ) -> None:
        early, late = fake("early"), fake("late", ready=False)
        supervisor = supervise(early, late)
        log.wait_for("early is ready")
        with pytest.raises(TimeoutError, match=r"^not ready yet: late$"):
            supervisor.wait_ready(0.3)
        (late.directory / "ready").touch()
        supervisor.wait_ready(PATIENCE_S)
        assert log.find("late is ready")
        assert ("late", "listening") in log.lines

    def test_a_killed_service_starts_again_on_its_port(
        self, fake: Callable[..., ServiceSpec], supervise: Callable[..., Supervisor], log: Log
    ) -> None:
        spec = fake("clip")
        supervisor = supervise(spec)
        supervisor.wait_ready(PATIENCE_S)
        before = supervisor.pid("clip")
        supervisor.kill("clip")
        assert supervisor.pid("clip") is None
        supervisor.wait_ready(PATIENCE_S)
        assert get_json(f"http://127.0.0.1:{spec.port}/")["pid"] == supervisor.pid("clip") != before
        log.wait_for(r"clip was killed by SIGKILL .*; starting it again in 1 s")
        log.wait_for("clip is ready again")

    def test_the_pause_before_a_restart_doubles(
        self, fake: Callable[..., ServiceSpec], supervise: Callable[..., Supervisor], log: Log
    ) -> None:
        supervisor = supervise(fake("clip"))
        supervisor.wait_ready(PATIENCE_S)
        supervisor.kill("clip")
        supervisor.wait_ready(PATIENCE_S)
        supervisor.kill("clip", signal.SIGTERM)
        log.wait_for("clip ended with status 0; starting it again in 2 s")

    def test_a_service_that_ends_before_it_was_ready_ends_the_start(
        self, fake: Callable[..., ServiceSpec], supervise: Callable[..., Supervisor]
    ) -> None:
        good = fake("gateway")
        bad = fake("clip", script="import sys; print('clip: cannot start:\\n  DEVICE: no such device'); sys.exit(2)")
        supervisor = supervise(good, bad)
        with pytest.raises(StartFailed) as failure:
            supervisor.wait_ready(PATIENCE_S)
        assert str(failure.value) == (
            "clip ended with status 2 before it was ready:\n    clip: cannot start:\n      DEVICE: no such device"
        )
        supervisor.wait_stopped()
        assert supervisor.pid("gateway") is None

    def test_stop_ends_the_front_first_and_lets_all_finish(
        self, fake: Callable[..., ServiceSpec], supervise: Callable[..., Supervisor]
    ) -> None:
        # notes at its own end whether the one behind it still answered
        front_script = FAKE_SERVER.replace(
            "def end(*_):",
            "def end(*_):\n    import urllib.request\n    urllib.request.urlopen(os.environ['BEHIND'], timeout=5)",
        )
        behind, front = fake("behind"), fake("front", script=front_script)
        spec = ServiceSpec(
            "front",
            front.command,
            front.directory,
            {**front.environment, "BEHIND": f"http://127.0.0.1:{behind.port}/"},
            front.port,
        )
        supervisor = supervise(spec, behind, front="front")
        supervisor.wait_ready(PATIENCE_S)
        supervisor.stop()
        assert (front.directory / "ends").read_text() == "end\n"
        assert (behind.directory / "ends").read_text() == "end\n"

    def test_what_ignores_sigterm_is_killed_with_all_it_started(
        self, fake: Callable[..., ServiceSpec], supervise: Callable[..., Supervisor], log: Log
    ) -> None:
        script = FAKE_SERVER.replace(
            "signal.signal(signal.SIGTERM, end)", "signal.signal(signal.SIGTERM, lambda *_: 0)"
        )
        script = script.replace(
            'print("listening"',
            'import subprocess; child = subprocess.Popen(["sleep", "600"]); print(f"child {child.pid}"',
        )
        supervisor = supervise(fake("stubborn", script=script))
        supervisor.wait_ready(PATIENCE_S)
        child = int(log.wait_for("child ").split()[1])
        supervisor.stop(grace_s=0.2)
        assert log.find("stubborn does not end; killing it")
        assert eventually(lambda: not running(child))

    def test_what_a_killed_service_had_started_ends_with_it(
        self, fake: Callable[..., ServiceSpec], supervise: Callable[..., Supervisor], log: Log
    ) -> None:
        supervisor = supervise(fake("gateway", script=WITH_CHILD))
        supervisor.wait_ready(PATIENCE_S)
        child = int(log.wait_for("child ").split()[1])
        supervisor.kill("gateway")
        assert eventually(lambda: not running(child))

    def test_of_a_progress_bar_few_lines_are_shown_and_other_lines_all(
        self, fake: Callable[..., ServiceSpec], supervise: Callable[..., Supervisor], log: Log
    ) -> None:
        script = FAKE_SERVER.replace(
            'print("listening"',
            'for i in range(100): print(f"\\nmodel {i}%|##|\\x1b[A\\r", end="")\n'
            'for i in range(3): print(f"\\x1b[31mline {i}\\x1b[0m")\n'
            'print("listening"',
        )
        supervise(fake("clip", script=script)).wait_ready(PATIENCE_S)
        log.wait_for("listening")
        assert log.find("^model") == ["model 0%|##|"]
        assert log.find("^line") == ["line 0", "line 1", "line 2"]


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the real runner and five services of a few lines."""
    root = tmp_path / "a project"
    shutil.copytree(TOOLS, root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SERVICES:
        (root / name).mkdir()
        (root / name / "main.py").write_text(FAKE_MAIN.format(extra=""))
    for path in ("clip", "blip"):
        (root / "demo/models" / path).mkdir(parents=True)
    for path in ("yolo.pt", "tags.txt"):
        (root / "demo/models" / path).touch()
    return root


class Run:
    """`tools/run_local.py` of a project as a process."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.log = Log()
        self.process = subprocess.Popen(
            [sys.executable, "tools/run_local.py"],
            cwd=root,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.log("", line.rstrip("\n"))

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def wait(self) -> int:
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.log.lines)


@pytest.fixture
def run_in() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(root: Path, **environment: str) -> Run:
        runs.append(Run(root, **environment))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.wait()


class TestCommand:
    def test_from_nothing_to_a_curl_line_that_works_and_to_an_orderly_end(
        self, project: Path, run_in: Callable[..., Run]
    ) -> None:
        port = free_port()
        run = run_in(project, GATEWAY_PORT=str(port))
        curl = run.log.wait_for("^  curl ").strip()
        children = run.children()
        assert len(children) == 5

        env_file = project / ".env"
        key = re.fullmatch(r"API_KEY=([\w-]{43})\n", env_file.read_text())
        assert key is not None
        assert env_file.stat().st_mode & 0o777 == 0o600
        assert f"  export VISION_URL=http://127.0.0.1:{port}\n  export API_KEY={key[1]}\n" in run.text
        assert run.text.count(key[1]) == 2  # there and in the curl line, nowhere else
        assert curl == (
            f"curl -H 'X-API-Key: {key[1]}' -F 'file=@{project}/demo/pictures/boat-at-sunset.webp' "
            f"http://127.0.0.1:{port}/analyze/all/file"
        )
        assert re.search(r"^clip    \| hello from the service$", run.text, re.MULTILINE)

        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0
        assert run.log.find("stopped")
        assert not any(running(pid) for pid in children)

        again = run_in(project, GATEWAY_PORT=str(port))
        again.log.wait_for("^  curl ")
        assert env_file.read_text() == key[0]
        again.process.send_signal(signal.SIGTERM)
        assert again.wait() == 0

    def test_no_orphans_when_the_runner_is_killed(self, project: Path, run_in: Callable[..., Run]) -> None:
        run = run_in(project, GATEWAY_PORT=str(free_port()))
        run.log.wait_for("^  curl ")
        children = run.children()
        assert len(children) == 5
        run.process.kill()
        assert eventually(lambda: not any(running(pid) for pid in children))

    def test_a_port_in_use_is_said_before_anything_starts(self, project: Path, run_in: Callable[..., Run]) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            run = run_in(project, GATEWAY_PORT=str(port))
            assert run.wait() == 2
        me = psutil.Process()
        assert run.text.splitlines()[-1] == (
            f"Port {port} is in use by {me.name()} (process {me.pid}); stop that, or choose another with GATEWAY_PORT=…"
        )
        assert "hello" not in run.text

    def test_a_start_that_fails_names_the_service_and_the_reason(
        self, project: Path, run_in: Callable[..., Run]
    ) -> None:
        refusal = 'import sys; print("yolo: cannot start:\\n  DEVICE: unknown", file=sys.stderr); sys.exit(2)'
        (project / "yolo/main.py").write_text(refusal)
        run = run_in(project, GATEWAY_PORT=str(free_port()))
        assert run.wait() == 1
        assert run.text.endswith(
            "The stack did not start: yolo ended with status 2 before it was ready:\n"
            "    yolo: cannot start:\n      DEVICE: unknown"
        )

    def test_bad_settings_stop_it_in_words(self, project: Path, run_in: Callable[..., Run]) -> None:
        run = run_in(project, GATEWAY_PORT="http")
        assert run.wait() == 2
        assert run.text == "GATEWAY_PORT is 'http'; it must be a number from 1 to 65535."
        assert not (project / ".env").exists()


class TestEnvironment:
    def start(self, project: Path, environment: dict[str, str], log: Log) -> dict[str, dict[str, str]]:
        """What each service of the fake project finds in its environment."""
        with Stack({"PATH": os.environ["PATH"], **environment}, sink=log, root=project) as stack:
            stack.wait_ready(PATIENCE_S)
            seen = {name: get_json(f"http://127.0.0.1:{stack.port(name)}/") for name in SERVICES}
            assert {name: answer["cwd"] for name, answer in seen.items()} == {
                name: str(project / name) for name in SERVICES
            }
            assert stack.url == f"http://127.0.0.1:{stack.port('gateway')}"
            assert stack.key == environment.get("API_KEY", stack.key).split(",")[0]
        found: dict[str, dict[str, str]] = {}
        for name, answer in seen.items():
            assert isinstance(answer["environment"], dict)
            found[name] = answer["environment"]
        return found

    def test_bundled_models_embedded_store_and_each_others_addresses(self, project: Path, log: Log) -> None:
        seen = self.start(
            project,
            {"CLIP_MODEL": "", "API_KEY": "one,two", "QDRANT_PATH": "store", "PYTHONDONTWRITEBYTECODE": "1"},
            log,
        )
        models = project / "demo/models"
        assert seen["clip"]["CLIP_MODEL"] == str(models / "clip")
        assert seen["clip"]["CLIP_TAGS_FILE"] == str(models / "tags.txt")
        assert seen["blip"]["BLIP_MODEL"] == str(models / "blip")
        assert seen["yolo"]["YOLO_MODEL"] == str(models / "yolo.pt")
        assert seen["qdrant"]["QDRANT_PATH"] == str(project / "store")
        assert seen["clip"]["CACHE_DIR"] == str(TOOLS.parent / "data/cache")
        assert seen["yolo"]["CPU_SHARED_BY"] == "3"
        assert "PYTHONDONTWRITEBYTECODE" not in seen["yolo"]
        assert seen["gateway"]["CLIP_URL"] == seen["qdrant"]["CLIP_URL"]
        assert len({seen["gateway"][f"{name}_URL"] for name in ("CLIP", "BLIP", "YOLO", "QDRANT_SVC")}) == 4

    def test_secrets_reach_only_those_who_need_them(self, project: Path, log: Log) -> None:
        given = {"API_KEY": "k", "HUGGINGFACE_TOKEN": "h", "QDRANT_API_KEY": "q"}
        seen = self.start(project, given, log)
        assert {name: sorted(given.keys() & seen[name]) for name in SERVICES} == {
            "gateway": ["API_KEY"],
            "clip": ["HUGGINGFACE_TOKEN"],
            "blip": ["HUGGINGFACE_TOKEN"],
            "yolo": [],
            "qdrant": ["QDRANT_API_KEY"],
        }

    def test_a_model_of_ones_own_and_a_server_are_left_alone(self, project: Path, log: Log) -> None:
        (project / "mine.pt").touch()
        seen = self.start(project, {"YOLO_MODEL": "mine.pt", "QDRANT_URL": "http://q:6333"}, log)
        assert seen["yolo"]["YOLO_MODEL"] == str(project / "mine.pt")
        assert seen["qdrant"]["QDRANT_URL"] == "http://q:6333"
        assert seen["clip"]["CLIP_MODEL"] == str(project / "demo/models/clip")

    def test_models_full_chooses_nothing(self, project: Path, log: Log) -> None:
        seen = self.start(project, {"MODELS": "full"}, log)
        assert not {"CLIP_MODEL", "BLIP_MODEL", "YOLO_MODEL", "CLIP_TAGS_FILE"} & seen["clip"].keys()

    def test_refusals(self, project: Path, log: Log) -> None:
        with pytest.raises(StackNotRunnable, match="MODELS is 'fulll'; it must be demo or full"):
            Stack({"MODELS": "fulll"}, sink=log, root=project)
        (project / "demo/models/yolo.pt").unlink()
        with pytest.raises(StackNotRunnable, match=r"demo/models/yolo\.pt is missing\. Run `make demo-models`"):
            Stack({}, sink=log, root=project)


class TestEnvFile:
    def test_the_environment_wins_over_the_file_unless_empty(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / ".env"
        path.write_text("DEVICE=cpu\nMAX_BATCH=4\nMAX_QUEUE=\n")
        monkeypatch.setenv("MAX_BATCH", "8")
        monkeypatch.setenv("DEVICE", "")
        settings = read_settings(path)
        assert (settings["DEVICE"], settings["MAX_BATCH"]) == ("cpu", "8")
        assert settings["MAX_QUEUE"] == ""

    def test_an_empty_key_is_filled_in_and_the_rest_of_the_file_kept(self, tmp_path: Path) -> None:
        path = tmp_path / ".env"
        path.write_text("# mine\nAPI_KEY=\nDEVICE=cpu\n")
        settings = ensure_api_key(path, read_settings(path))
        assert path.read_text() == f"# mine\nDEVICE=cpu\nAPI_KEY={settings['API_KEY']}\n"
        assert read_settings(path)["API_KEY"] == settings["API_KEY"]

    def test_a_key_in_the_environment_writes_no_file(self, tmp_path: Path) -> None:
        assert ensure_api_key(tmp_path / ".env", {"API_KEY": "mine"}) == {"API_KEY": "mine"}
        assert not (tmp_path / ".env").exists()
