"""What a container may do, seen from its inside: files, privileges, networks, secrets, layers."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx2
import psutil
import pytest

from containers import MODELS, SERVICES, Containers
from scenes import webp

_LOOK_AROUND = """
import json, os, pathlib
def write(path):
    try:
        pathlib.Path(path).write_text("x")
    except OSError as exc:
        return exc.strerror
    return "written"
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "uid": os.getuid(),
    "writes": {path: write(path) for path in ("/x", "/app/x", "/opt/venv/x", "/usr/local/x", "/tmp/x")},
    "capabilities": status["CapEff"], "bounding": status["CapBnd"], "no_new_privs": status["NoNewPrivs"],
    "first": open("/proc/1/comm").read().strip(),
}))
"""


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_fenced_in(stack: Containers, service: str) -> None:
    described = stack.of(service)
    seen = json.loads(stack.python(described["Id"], _LOOK_AROUND))
    assert seen["uid"] == 10001
    for path, outcome in seen["writes"].items():
        assert outcome == ("written" if path == "/tmp/x" else "Read-only file system"), path  # noqa: S108
    assert int(seen["capabilities"], 16) == int(seen["bounding"], 16) == 0
    assert seen["no_new_privs"].strip() == "1"
    assert seen["first"] in ("docker-init", "tini")
    host = described["HostConfig"]
    assert host["Memory"] > 0
    assert 0 < host["PidsLimit"] <= 512


def test_only_the_gateway_publishes_a_port(stack: Containers) -> None:
    for service in SERVICES:
        published = [port for port, bound in stack.of(service)["NetworkSettings"]["Ports"].items() if bound]
        assert published == (["8000/tcp"] if service == "gateway" else []), service


def test_the_gateways_metrics_are_there_for_other_containers_alone(stack: Containers, api: httpx2.Client) -> None:
    (container,) = stack.containers("qdrant-svc")
    read = "import urllib.request as r; print(r.urlopen('http://gateway:8001/metrics', timeout=5).read().decode())"
    assert "vision_result_cache_bytes" in stack.python(container, read)
    assert api.get("/metrics").status_code == 404


# -- Networks ----------------------------------------------------------------------------------------------------------

# Of each address and port on its input: whether it can be reached from the container.
_CONNECT = """
import json, socket, sys
reached = {}
for address, port in json.load(sys.stdin):
    try:
        socket.create_connection((address, port), timeout=2).close()
        reached[address] = True
    except OSError:
        reached[address] = False
print(json.dumps(reached))
"""


def reached(stack: Containers, service: str, places: list[tuple[str, int]]) -> set[str]:
    (container,) = stack.containers(service)
    answer: dict[str, bool] = json.loads(stack.python(container, _CONNECT, stdin=json.dumps(places).encode()))
    return {address for address, was_reached in answer.items() if was_reached}


def addresses(stack: Containers, service: str) -> dict[str, str]:
    """The service's address in each network of the project, by the network's name."""
    networks = stack.of(service)["NetworkSettings"]["Networks"]
    return {name.removeprefix(f"{stack.project}_"): str(network["IPAddress"]) for name, network in networks.items()}


@contextmanager
def listening_everywhere() -> Iterator[int]:
    """A port on all IPv4 addresses of this machine, as services of a host often listen."""
    server = HTTPServer(("0.0.0.0", 0), BaseHTTPRequestHandler)  # noqa: S104 - what must not be reached
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def addresses_of_this_machine() -> list[str]:
    interfaces = psutil.net_if_addrs()
    return [
        address.address
        for name, assigned in interfaces.items()
        for address in assigned
        if address.family == socket.AF_INET and name != "lo"
    ]


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "gateway"])
def test_there_is_no_way_out_of_the_internal_network(stack: Containers, service: str) -> None:
    """The gateway stands in both networks; seen from inside, what it listens on in the other one is the outside."""
    gateway = addresses(stack, "gateway")
    outside = (gateway["internet"], 8000)
    assert reached(stack, "gateway", [outside]) == {outside[0]}
    assert set(addresses(stack, service)) == {"internal"}
    assert reached(stack, service, [(gateway["internal"], 8000), outside]) == {gateway["internal"]}


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "gateway"])
def test_there_is_no_way_to_the_host(stack: Containers, service: str) -> None:
    """Neither by the address that a bridge usually has in its own network, nor by any other of the host's."""
    network = json.loads(stack.run("docker", "network", "inspect", f"{stack.project}_internal"))[0]
    # newer engines give the network no gateway at all
    bridges = [config["Gateway"] for config in network["IPAM"]["Config"] if config.get("Gateway")]
    here = addresses_of_this_machine()
    assert not set(bridges) & set(here)
    with listening_everywhere() as port:
        places = [(address, port) for address in (*bridges, *here)]
        # the port is open, and the place from which it can be reached proves it
        assert stack.gateway_address() in reached(stack, "gateway", places)
        assert reached(stack, service, places) == set()


_DEFAULT_ROUTE = """
import socket
for line in open("/proc/net/route").read().splitlines()[1:]:
    interface, destination, gateway = line.split()[:3]
    if destination == "00000000":
        print(socket.inet_ntoa(bytes.fromhex(gateway)[::-1]))
"""


def test_the_gateways_way_out_leads_through_the_other_network(stack: Containers) -> None:
    (gateway,) = stack.containers("gateway")
    assert stack.python(gateway, _DEFAULT_ROUTE).split() == [stack.gateway_address()]


# -- Secrets and layers ------------------------------------------------------------------------------------------------


def test_a_service_sees_only_its_own_secrets(stack: Containers) -> None:
    for service in SERVICES:
        environment = dict(entry.split("=", 1) for entry in stack.of(service)["Config"]["Env"])
        assert ("API_KEY" in environment) == (service == "gateway"), service
        assert "HUGGINGFACE_TOKEN" not in environment or service in ("clip", "blip")


def test_the_models_share_one_torch_layer(stack: Containers) -> None:
    base = shared([stack.layers("gateway"), stack.layers("qdrant-svc")])
    # the user and torch
    assert shared([stack.layers(service) for service in MODELS]) >= base + 2
    (container,) = stack.containers("clip")
    assert stack.python(container, "import torch; print(torch.__file__)").strip() == "/opt/torch/torch/__init__.py"


def shared(stacks: list[list[str]]) -> int:
    """How many layers from the bottom are the same in all."""
    return next((at for at, row in enumerate(zip(*stacks, strict=False)) if len(set(row)) > 1), min(map(len, stacks)))


def test_a_picture_of_eight_thousand_pixels(api: httpx2.Client) -> None:
    """33 million pixels pass the decoder's processes, the memory limit and the tmpfs."""
    answer = api.post("/analyze/all/file", files={"file": ("p.webp", webp(3, (7680, 4320)))})
    assert answer.status_code == 200, answer.text
    assert answer.json()["errors"] == {}
    assert answer.json()["image"] == {"width": 7680, "height": 4320, "format": "webp"}
