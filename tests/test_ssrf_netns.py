"""The guarded download, unmodified, in a network namespace where every address of the world answers.

Whatever the answer says, what decides is the wire: no vector may make the fetcher so much as knock at an address that
is not public. Runs where the system lets a process have namespaces of its own; elsewhere it is skipped, and
`test_fetch_vectors` is the weaker proof.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netns.scripted_host import png
from netns.vectors import OWN, VECTORS, Record, Vector, complaints, escapes

# the one run behind all of these tests, five seconds of it by design
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[1]
# with and without the right to make namespaces outright
_UNSHARE = (["unshare", "--net", "--mount"], ["unshare", "--user", "--map-root-user", "--net", "--mount"])


@functools.cache
def namespace_command() -> tuple[list[str], str]:
    """How to start a process in namespaces of its own, or an empty list and the reason why not."""
    missing = [tool for tool in ("unshare", "ip", "mount") if shutil.which(tool) is None]
    if missing:
        return [], f"this machine has no {' and no '.join(missing)} (util-linux, iproute2)"
    reason = ""
    # what the real run does first, so that a half permission is found here
    probe = "mount --bind /etc/hosts /etc/hosts && ip link set lo up && ip -6 route add local ::/0 dev lo"
    for command in _UNSHARE:
        done = subprocess.run([*command, "sh", "-c", probe], capture_output=True, text=True)
        if done.returncode == 0:
            return command, ""
        reason = done.stderr.strip()
    return [], f"this machine does not let a process have a network namespace of its own: {reason}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened inside: `controls` and `records`."""
    command, why_not = namespace_command()
    if not command:
        pytest.skip(f"SSRF PROOF NOT RUN: {why_not}")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT / "common"), str(ROOT / "tests/support")]))
    done = subprocess.run(
        [*command, sys.executable, "-m", "netns.inside", str(tmp_path_factory.mktemp("netns"))],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_traps_close_on_an_unguarded_client(report: dict[str, Any]) -> None:
    seen = report["controls"]
    assert seen["rebinding"] == ["93.184.216.34", "127.0.0.1"]
    assert seen["fetched"] == len(png(64, 64))
    assert seen["fetch"] == [["10.0.0.5", 80]]
    assert seen["knocks"] == [["169.254.169.254", 6333], ["fd00:ec2::254", 6333]]


def record_of(vector: Vector, report: dict[str, Any]) -> Record:
    record = Record(**report["records"][vector["id"]])
    record.connections = [(address, port) for address, port in record.connections]
    return record


@pytest.mark.parametrize("vector", [*VECTORS, *OWN], ids=lambda vector: vector["id"])
def test_vector(vector: Vector, report: dict[str, Any]) -> None:
    assert complaints(vector, record_of(vector, report)) == []


@pytest.mark.security
@pytest.mark.parametrize("grouping", ["category", "stage"])
def test_no_vector_of_any_class_escapes(
    report: dict[str, Any], grouping: str, record_property: Callable[[str, object], None]
) -> None:
    groups: dict[str, list[Vector]] = defaultdict(list)
    for vector in [*VECTORS, *OWN]:
        groups[vector.get(grouping, "found here")].append(vector)
    escaped, wrong = 0, 0
    for group, vectors in sorted(groups.items()):
        here = sum(bool(escapes(vector, record_of(vector, report))) for vector in vectors)
        wrong_here = sum(bool(complaints(vector, record_of(vector, report))) for vector in vectors)
        row = f"Image URLs by {grouping}/{group}"
        record_property(f"{row}/tried", len(vectors))
        record_property(f"{row}/forbidden connections", here)
        record_property(f"{row}/wrong answers", wrong_here)
        escaped, wrong = escaped + here, wrong + wrong_here
    assert (escaped, wrong) == (0, 0)


def test_public_hosts_were_reached(report: dict[str, Any]) -> None:
    """A fetcher that refused everything would pass most vectors."""
    fetched = [name for name, record in report["records"].items() if record["size"]]
    assert len(fetched) > 40
    assert {tuple(attempt) for name in fetched for attempt in report["records"][name]["connections"]} >= {
        ("93.184.216.34", 80), ("93.184.216.34", 443), ("2001:4860:4860::8888", 80),
    }  # fmt: skip
