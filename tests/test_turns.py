"""With several workers a test that is `alone` overlaps with no other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import turns

_CONFTEST = """
from turns import pytest_runtest_protocol as pytest_runtest_protocol
"""
_TESTS = """
import json, os, time
from pathlib import Path
import pytest

def run(name):
    began = time.monotonic()
    time.sleep(0.2)
    line = [name, began, time.monotonic(), os.environ["PYTEST_XDIST_WORKER"]]
    Path(__file__).with_name(f"{name}.json").write_text(json.dumps(line))

@pytest.mark.parametrize("number", range(3))
def test_shared(number):
    run(f"FILE-{number}")

@pytest.mark.alone
def test_alone():
    run("FILE-alone")
"""


def test_alone_is_alone(tmp_path: Path) -> None:
    # a copy, since locks are by file, and this test itself holds those of the suite while it waits for these tests
    shutil.copy(turns.__file__, tmp_path)
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone\n")
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(_TESTS.replace("FILE", name))
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "2", "--dist", "loadfile"]
    command += ["-p", "no:schemathesis", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr

    runs = [json.loads(path.read_text()) for path in tmp_path.glob("*-*.json")]
    assert len(runs) == 8
    assert len({worker for *_, worker in runs}) == 2
    for name, began, ended, _ in runs:
        if name.endswith("alone"):
            assert [other[0] for other in runs if other[1] < ended and began < other[2]] == [name]
