"""`docs/security.md` from the tests' own figures: what `make security` does after its test run.

A test marked `security` calls `record_property("section/row/column", value)`; each section becomes a table. What was
skipped or failed stands at the top of the page, so that nobody takes a figure that is missing for a zero.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree

_HEAD = """\
# Security, measured

Made by `make security` from the tests themselves; [SECURITY.md](../SECURITY.md) says what is protected from whom, and
which tests hold each claim. A dash is a figure that does not exist; a zero was counted.
"""


class Malformed(Exception):
    """A property is no figure, or two tests claim the same cell."""


@dataclass(slots=True)
class Report:
    """Of `runs` test runs; `sections[section][row][column]` is the value as text.

    `skipped` and `failed` name tests, skipped with reason.
    """

    passed: int = 0
    runs: int = 1
    sections: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def read(*files: str) -> Report:
    """What JUnit files of pytest hold, of one run or of several that share the tests. Raises `Malformed`."""
    report = Report(runs=len(files))
    # the files were written by the test runs just now
    for case in chain.from_iterable(ElementTree.fromstring(xml).iter("testcase") for xml in files):  # noqa: S314
        name = f"{case.get('classname', '').removeprefix('tests.')}.{case.get('name', '')}"
        if (skipped := case.find("skipped")) is not None:
            report.skipped.setdefault(skipped.get("message", ""), []).append(name)
        elif case.find("failure") is not None or case.find("error") is not None:
            report.failed.append(name)
        else:
            report.passed += 1
        for key, value in _properties(case):
            parts = [part.strip() for part in key.split("/")]
            if len(parts) != 3 or not all(parts):
                raise Malformed(f"{name}: the property {key!r} is not section/row/column")
            section, row, column = parts
            cells = report.sections.setdefault(section, {}).setdefault(row, {})
            if column in cells:
                raise Malformed(f"{name}: {key!r} is recorded twice")
            cells[column] = value
    return report


def _properties(case: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for element in case.iterfind("properties/property"):
        yield element.get("name", ""), element.get("value", "")


def render(report: Report, *, machine: str, date: str) -> str:
    """The page."""
    parts = [_HEAD, f"Run on {date}: {machine}. {report.passed} tests passed{_of_runs(report.runs)}.\n"]
    if report.failed:
        parts.append("**FAILED**, so that the figures below are not to be trusted:\n")
        parts.append("\n".join(f"- `{name}`" for name in report.failed) + "\n")
    if report.skipped:
        parts.append("**NOT RUN on this machine:**\n")
        parts.append("\n".join(_skip_line(reason, names) for reason, names in sorted(report.skipped.items())) + "\n")
    parts += [_table(section, rows) for section, rows in sorted(report.sections.items())]
    return "\n".join(parts)


def _of_runs(count: int) -> str:
    return f", in {count} test runs that share the tests" if count > 1 else ""


def _skip_line(reason: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"- `{names[0]}`{more}: {reason or 'no reason given'}"


def _table(section: str, rows: dict[str, dict[str, str]]) -> str:
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [f"## {section}\n", f"| | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    lines += [f"| {row} | {' | '.join(cells.get(column, '-') for column in columns)} |" for row, cells in rows.items()]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Processor, cores, memory, kernel and Python, without the machine's name."""
    model = platform.processor() or platform.machine()
    for line in _lines_of("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{model}, {os.cpu_count()} cores, {memory}, {system}, Python {platform.python_version()}"


def _lines_of(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return []


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("junit", type=Path, nargs="+", help="the test runs' --junitxml files")
    parser.add_argument("--page", type=Path, help="where the page goes (default: the terminal)")
    arguments = parser.parse_args()
    try:
        report = read(*(path.read_text("utf-8") for path in arguments.junit))
    except Malformed as exc:
        print(f"security_report: {exc}", file=sys.stderr)
        return 1
    page = render(report, machine=machine(), date=datetime.now(UTC).strftime("%Y-%m-%d"))
    if arguments.page is None:
        print(page, end="")
    else:
        arguments.page.write_text(page, "utf-8")
    for reason, names in report.skipped.items():
        print(f"NOT RUN: {len(names)} tests: {reason}", file=sys.stderr)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
