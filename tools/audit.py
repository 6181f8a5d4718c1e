"""Known weaknesses of the pinned packages: pip-audit over what the services' locks and the torch pins name.

A finding fails. Where weaknesses cannot be asked for, a loud line says of how many packages, and that fails nothing.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lock import ROOT, SERVICES, pins

LOCKS = (*(f"{name}/requirements.txt" for name in SERVICES), "common/torch.txt")
# One question for each package; where it takes longer, the answer is no part of an everyday check.
_TIME_S = 120


@dataclass(slots=True)
class Audit:
    """By pinned package: what is known of it, and why nothing could be asked."""

    found: dict[str, list[str]] = field(default_factory=dict)
    not_asked: dict[str, str] = field(default_factory=dict)


def audit(packages: Sequence[str]) -> Audit:
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "pins.txt")
        wanted.write_text("\n".join(packages) + "\n")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(wanted), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_S, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            return Audit(not_asked=dict.fromkeys(packages, f"no whole answer within {_TIME_S} seconds"))
    try:
        return read(json.loads(done.stdout))
    except ValueError:  # it ends with words instead where nobody answers
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        return Audit(not_asked=dict.fromkeys(packages, said[-1]))


def read(answer: Mapping[str, Any]) -> Audit:
    """pip-audit's JSON."""
    result = Audit()
    for package in answer["dependencies"]:
        if "skip_reason" in package:
            result.not_asked[package["name"]] = package["skip_reason"]
        elif package["vulns"]:
            result.found[f"{package['name']}=={package['version']}"] = [
                f"{weakness['id']}, mended in {', '.join(weakness['fix_versions']) or 'no version yet'}"
                for weakness in package["vulns"]
            ]
    return result


def main() -> int:
    by_lock = {lock: [pin.split()[0] for pin in pins((ROOT / lock).read_text())] for lock in LOCKS}
    packages = sorted({pin for lock in by_lock.values() for pin in lock})
    result = audit(packages)
    for package, lines in result.found.items():
        where = ", ".join(lock for lock, here in by_lock.items() if package in here)
        print("\n".join(f"{package} ({where}): {line}" for line in lines))
    if result.not_asked:
        reason = next(iter(result.not_asked.values()))
        print(f"NOT AUDITED: {len(result.not_asked)} of {len(packages)} pinned packages, because: {reason}")
    else:
        print(f"{len(packages)} pinned packages audited, {len(result.found)} with known weaknesses.")
    return 1 if result.found else 0


if __name__ == "__main__":
    raise SystemExit(main())
