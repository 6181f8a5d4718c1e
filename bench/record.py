"""One run's numbers on disk, so that its parts can be measured one at a time.

A run is what was measured on one machine since one boot, in one mode and within some hours. Anything else begins a new
run: numbers of two runs never meet in one table. Each part names the state of the files that it measured.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LONGEST_S = 5 * 3600


class Record:
    """`header` says what a run is (see `machine.describe`); equal headers are one run."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path = path
        self.header = dict(header)
        self.parts: dict[str, dict[str, Any]] = {}

    @classmethod
    def open(cls, path: Path, header: Mapping[str, Any]) -> "Record":
        """The run in the file if it is this one, else an empty one; the file changes with `put` only."""
        if path.exists():
            found = cls.of_file(path)
            begun = min((part["began"] for part in found.parts.values()), default=0)
            if found.header == dict(header) and time.time() - begun < _LONGEST_S:
                return found
        return cls(path, header)

    @classmethod
    def of_file(cls, path: Path) -> "Record":
        """The run in the file, whichever it is. Raises `OSError` where there is none."""
        found = json.loads(path.read_text())
        record = cls(path, found["header"])
        record.parts = found["parts"]
        return record

    def put(self, name: str, part: Mapping[str, Any]) -> None:
        """Keep a part that was measured, in place of an earlier one of that name."""
        self.parts[name] = dict(part)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"header": self.header, "parts": self.parts}, indent=1, sort_keys=True) + "\n"
        partial = self._path.with_suffix(".partial")
        partial.write_text(content)
        partial.rename(self._path)

    @property
    def samples(self) -> dict[str, list[float]]:
        return {name: values for part in self.parts.values() for name, values in part["samples"].items()}

    @property
    def missing(self) -> dict[str, str]:
        """Peers that do not run here, and why."""
        return {peer: reason for part in self.parts.values() for peer, reason in part["missing"].items()}
