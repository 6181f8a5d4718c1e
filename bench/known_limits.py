"""Why targets that are missed are missed: what was tried, where the time goes, and the limit we believe in.

A reason explains a miss and never excuses it: the target still counts as missed.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

_FILE = Path(__file__).resolve().parent / "known_limits.toml"


def read_limits(path: Path = _FILE) -> Mapping[str, str]:
    """Reasons by the key of their target."""
    entries = tomllib.loads(path.read_text("utf-8")).get("limit", [])
    return {entry["target"]: " ".join(entry["reason"].split()) for entry in entries}
