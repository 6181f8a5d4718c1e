"""The Compose files and Dockerfiles hold what they promise; no engine is needed for this."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_stack import ROOT

OWN = ("gateway", "clip", "blip", "yolo", "qdrant-svc")
MODELS = ("clip", "blip", "yolo")
FOLDERS = {"qdrant-svc": "qdrant"}
FILES = ("docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.offline.yml")
# the first with each choice of the others
COMBINATIONS = [
    [FILES[0], *others] for count in range(len(FILES)) for others in itertools.combinations(FILES[1:], count)
]


class Loader(yaml.SafeLoader):
    """Compose's own tags are read as what they wrap."""


def _wrapped(loader: Loader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


Loader.add_constructor("!override", _wrapped)


def compose(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.load((ROOT / name).read_text(), Loader=Loader)  # noqa: S506 - a SafeLoader
    return parsed


BASE = compose("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = BASE["services"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_keeps_to_the_schema_of_compose(name: str, tmp_path: Path) -> None:
    parsed = tmp_path / f"{name}.json"
    parsed.write_text(json.dumps(compose(name)))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(parsed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_services_are_the_guides() -> None:
    assert set(SERVICES) == {*OWN, "qdrant"}
    assert "version" not in BASE
    assert BASE["name"] == "vision-stack"


@pytest.mark.parametrize("name", sorted({*OWN, "qdrant"}))
def test_every_container_is_fenced_in(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"] == "30s"
    assert 0 < service["pids_limit"] <= 512
    assert re.search(r"\d+g\}", service["mem_limit"])
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}
    assert "container_name" not in service
    assert "privileged" not in service


def test_only_the_gateway_publishes_a_port() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway"]
    assert SERVICES["gateway"]["ports"] == ["${GATEWAY_BIND:-0.0.0.0}:${GATEWAY_PORT:-8000}:8000"]


def test_only_what_must_reaches_the_internet() -> None:
    assert BASE["networks"]["internal"] == {
        "internal": True,
        "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"},
    }
    reach = {name for name, service in SERVICES.items() if "internet" in service["networks"]}
    assert reach == {"gateway", *MODELS}
    offline = compose("docker-compose.offline.yml")["services"]
    assert all(offline[name]["networks"] == ["internal"] for name in MODELS)


def test_secrets_go_only_where_they_are_needed() -> None:
    def holders(variable: str) -> set[str]:
        return {name for name, service in SERVICES.items() if f"${{{variable}" in json.dumps(service["environment"])}

    assert holders("API_KEY") == {"gateway"}
    assert holders("HUGGINGFACE_TOKEN") == {"clip", "blip"}
    assert holders("QDRANT_API_KEY") == {"qdrant-svc", "qdrant"}
    assert ":?" in SERVICES["gateway"]["environment"]["API_KEY"]


def test_the_gateways_metrics_are_not_published() -> None:
    port = SERVICES["gateway"]["environment"]["METRICS_PORT"]
    assert port != "8000"
    assert SERVICES["gateway"]["ports"] == ["${GATEWAY_BIND:-0.0.0.0}:${GATEWAY_PORT:-8000}:8000"]


def test_qdrant_keeps_to_itself() -> None:
    service = SERVICES["qdrant"]
    assert re.fullmatch(r"qdrant/qdrant:v1\.\d+\.\d+-unprivileged", service["image"])
    environment = service["environment"]
    assert environment["QDRANT__TELEMETRY_DISABLED"] == "true"
    assert environment["QDRANT__SERVICE__ENABLE_CORS"] == "false"
    assert environment["QDRANT__SERVICE__ENABLE_SNAPSHOT_URL_RECOVERY"] == "false"
    assert "QDRANT__SERVICE__API_KEY" in environment
    assert "vectors:/qdrant/storage" in service["volumes"]


def test_weights_survive_a_rebuild() -> None:
    assert all(SERVICES[name]["volumes"] == ["models:/models"] for name in MODELS)
    assert "models" in BASE["volumes"]


def test_dependants_wait_until_what_they_need_is_healthy() -> None:
    healthy = {"condition": "service_healthy"}
    assert SERVICES["gateway"]["depends_on"] == dict.fromkeys(("clip", "blip", "yolo", "qdrant-svc"), healthy)
    assert SERVICES["qdrant-svc"]["depends_on"]["clip"] == healthy
    assert all("depends_on" not in SERVICES[name] for name in MODELS)


def test_the_gpu_file_only_adds_the_gpu() -> None:
    services = compose("docker-compose.gpu.yml")["services"]
    assert set(services) == set(MODELS)
    for service in services.values():
        assert set(service) == {"deploy", "environment"}
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == [["gpu"]] or device["capabilities"] == ["gpu"]
        assert service["environment"] == {"DEVICE": "${DEVICE:-cuda}"}


def test_every_setting_of_compose_stands_in_the_example() -> None:
    example = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for name in FILES:
        used = set(re.findall(r"\$\{([A-Z0-9_]+)", (ROOT / name).read_text()))
        assert used <= example, f"{name}: {sorted(used - example)}"


def dockerfile(service: str) -> str:
    return (ROOT / FOLDERS.get(service, service) / "Dockerfile").read_text()


@pytest.mark.parametrize("service", OWN)
def test_the_linter_finds_nothing(service: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    path = ROOT / FOLDERS.get(service, service) / "Dockerfile"
    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("service", OWN)
def test_images_run_as_nobody_in_particular_and_check_themselves(service: str) -> None:
    text = dockerfile(service)
    final = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE).count("python:3.13-slim") == 2
    assert "\nUSER 10001\n" in final
    assert "uv" not in re.sub("uvicorn", "", final)
    assert 'CMD ["python", "-S", "-m", "visionstack.healthcheck"]' in final
    assert '\nCMD ["python", "-m", "visionstack.serve"]\n' in final
    assert "--require-hashes" in text
    assert "curl" not in text
    assert "://" not in text
    folder = FOLDERS.get(service, service)
    assert (
        text.index(f"COPY {folder}/requirements.txt")
        < text.index("COPY common /app")
        < text.index(f"COPY {folder} /app")
    )


def test_the_three_models_share_their_torch_layer() -> None:
    """The engine reuses a stage whose text is the same to the letter."""
    stages = {dockerfile(name).split("\n", 1)[1].split("FROM uv AS dependencies")[0] for name in MODELS}
    assert len(stages) == 1
    copies = {re.search(r"RUN useradd.*?COPY --from=torch[^\n]*", dockerfile(name), re.DOTALL)[0] for name in MODELS}  # type: ignore[index]
    assert len(copies) == 1


@pytest.mark.parametrize("files", COMBINATIONS, ids=lambda files: "+".join(Path(name).stem for name in files))
def test_compose_accepts_every_combination(files: list[str]) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("SKIPPED LOUDLY: docker compose is not on this machine, so it could not read the Compose files")
    command = [docker, "compose", *(part for name in files for part in ("-f", name)), "config", "--format", "json"]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": "/usr/bin:/usr/local/bin", "HOME": str(Path.home()), "API_KEY": "k"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert set(services) == ({*OWN} if "docker-compose.offline.yml" in files else {*OWN, "qdrant"})
    for name, service in services.items():
        # what one file fences in, no other opens
        assert service["read_only"] is service["init"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert ("ports" in service) == (name == "gateway"), name
        assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"} & set(service), name
    if "docker-compose.offline.yml" in files:
        assert services["qdrant-svc"]["environment"]["QDRANT_URL"] == ""
        assert all(list(services[name]["networks"]) == ["internal"] for name in MODELS)
    has_gpu = {name for name, service in services.items() if "devices" in json.dumps(service.get("deploy", {}))}
    assert has_gpu == ({*MODELS} if "docker-compose.gpu.yml" in files else set())
