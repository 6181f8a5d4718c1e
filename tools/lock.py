"""The locks: every `requirements.txt` made from its `requirements.in`.

All of them come out of one common resolution, because `make run` installs them into one environment. Known pins are
kept; `--upgrade` takes the newest versions. `--check` only says whether the pins still fit; it does not look at hashes,
since a release may gain files. torch stays out of them all (see `common/overrides.txt`).
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SERVICES = ("gateway", "clip", "blip", "yolo", "qdrant")
SOURCES: Mapping[str, Sequence[str]] = {
    **{f"{name}/requirements.txt": ("common/pyproject.toml", f"{name}/requirements.in") for name in SERVICES},
    "tools/requirements.txt": ("tools/requirements.in",),
    "tests/requirements.txt": ("tests/requirements.in",),
}
_OVERRIDES = "common/overrides.txt"
_UNREACHABLE = ("failed to fetch", "error sending request", "network was disabled")


class IndexUnreachable(Exception):
    """The package index did not answer, so nothing can be said about the locks."""


class ResolutionFailed(Exception):
    """The requirements contradict each other; the text is the resolver's explanation."""


def pins(text: str) -> list[str]:
    """The pinned requirements of a lock with their markers, without hashes and comments."""
    lines = (line.split(" \\")[0].strip() for line in text.splitlines() if line[:1].isalnum())
    return sorted(line for line in lines if "==" in line)


def resolve(locks: Mapping[str, str], *, upgrade: bool = False, hashes: bool = True) -> dict[str, str]:
    """The text that each lock should have, given the texts that they have now."""
    with tempfile.TemporaryDirectory() as directory:
        common = Path(directory, "all.txt")
        if not upgrade:
            common.write_text("\n".join(sorted({pin for text in locks.values() for pin in pins(text)})) + "\n")
        _compile(dict.fromkeys(source for sources in SOURCES.values() for source in sources), common)
        resolved = {}
        for lock, sources in SOURCES.items():
            # uv prefers the versions that its output file already names
            output = Path(directory, "one.txt")
            output.write_text(common.read_text())
            _compile(sources, output, *(["--generate-hashes"] if hashes else []))
            resolved[lock] = output.read_text()
        return resolved


def _compile(sources: Iterable[str], output: Path, *options: str) -> None:
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    # one version of a package for all Python versions: what is tested with one runs with another
    command += ["--fork-strategy", "fewest", "--override", _OVERRIDES, "--custom-compile-command", "make lock"]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", *command, *options, "--output-file", str(output), *sources],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        unreachable = any(sign in done.stderr.lower() for sign in _UNREACHABLE)
        raise (IndexUnreachable if unreachable else ResolutionFailed)(done.stderr.strip())


def differences(now: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """One line for each pin that a lock lacks or has too much."""
    found = []
    for lock, text in wanted.items():
        have, want = set(pins(now.get(lock, ""))), set(pins(text))
        found += [f"{lock}: {pin} is missing" for pin in sorted(want - have)]
        found += [f"{lock}: {pin} is not needed" for pin in sorted(have - want)]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the locks, or check that they still fit.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--check", action="store_true", help="change nothing; fail when a lock does not fit")
    group.add_argument("--upgrade", action="store_true", help="take the newest versions that the inputs allow")
    options = parser.parse_args(arguments)

    now = {lock: path.read_text() for lock in SOURCES if (path := ROOT / lock).exists()}
    try:
        wanted = resolve(now, upgrade=options.upgrade, hashes=not options.check)
    except ResolutionFailed as exc:
        print(exc, file=sys.stderr)
        return 1
    except IndexUnreachable as exc:
        if not options.check:
            print(exc, file=sys.stderr)
            return 1
        print("SKIPPED: the package index cannot be reached, so the locks were NOT compared with their inputs.")
        return 0
    if options.check:
        drift = differences(now, wanted)
        print("\n".join([*drift, "Run `make lock`."]) if drift else "The locks fit their inputs.")
        return 1 if drift else 0
    for lock, text in wanted.items():
        (ROOT / lock).write_text(text)
        print(f"{lock}: {len(pins(text))} packages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
