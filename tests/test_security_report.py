"""The security page: every figure in its cell, and nothing that went wrong left out of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from security_report import Malformed, machine, read, render

ROOT = Path(__file__).resolve().parent.parent

OF_ONE_RUN = """
import pytest

@pytest.mark.security
def test_one(record_property):
    record_property("Bombs/webp/tried", 64)
    record_property("Bombs/webp/escaped", 0)

@pytest.mark.security
def test_two(record_property):
    record_property("Bombs/png/tried", 3)

@pytest.mark.security
def test_three():
    pytest.skip("NOT RUN: this machine has no wings")

@pytest.mark.security
def test_four():
    assert ANSWER == 42

def test_unmarked(record_property):
    record_property("Bombs/gif/tried", 1)
"""


def run(folder: Path, answer: int) -> str:
    """The JUnit file of a real run with the project's own settings."""
    (folder / "test_it.py").write_text(f"ANSWER = {answer}\n{OF_ONE_RUN}")
    junit = folder / "junit.xml"
    settings = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *settings, "-m", "security", f"--junitxml={junit}", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == (answer != 42), done.stdout
    return junit.read_text()


def test_a_real_run_becomes_tables(tmp_path: Path) -> None:
    page = render(read(run(tmp_path, 42)), machine="a machine", date="2026-01-02")
    assert "## Bombs\n\n| | tried | escaped |\n|---|---:|---:|\n| webp | 64 | 0 |\n| png | 3 | - |\n" in page
    assert "Run on 2026-01-02: a machine. 3 tests passed." in page
    assert "**NOT RUN on this machine:**\n\n- `test_it.test_three`: NOT RUN: this machine has no wings" in page
    assert "FAILED" not in page
    assert "gif" not in page


def test_a_failed_run_says_so_before_its_figures(tmp_path: Path) -> None:
    page = render(read(run(tmp_path, 41)), machine="a machine", date="2026-01-02")
    assert page.index("**FAILED**") < page.index("- `test_it.test_four`") < page.index("## Bombs")


@pytest.mark.parametrize("names", [["a/b"], ["a/b/c/d"], ["a//c"], ["a/b/c", "a/b/c"]])
def test_a_figure_without_a_cell_of_its_own_is_an_error(names: list[str]) -> None:
    properties = "".join(f'<property name="{name}" value="1"/>' for name in names)
    with pytest.raises(Malformed):
        read(f'<testsuites><testcase name="x"><properties>{properties}</properties></testcase></testsuites>')


def test_the_machine_is_described_without_its_name() -> None:
    assert "cores" in machine()
    assert Path("/etc/hostname").read_text().strip() not in machine()
