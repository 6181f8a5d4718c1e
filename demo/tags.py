"""Writes the vocabulary of the bundled models as a tags file."""

from __future__ import annotations

from pathlib import Path

from world_words import SYNONYMS

HEAD = """\
# What the bundled demo models can tell apart: one tag a line, `[facet]` opens a group,
# and `tag = synonym, synonym` gives other words for the same thing.
"""


def write_tags(path: Path) -> None:
    """One group per facet, in the order of `SYNONYMS`."""
    blocks = [HEAD]
    for facet, tags in SYNONYMS.items():
        lines = [f"{tag} = {', '.join(others)}" if others else tag for tag, others in tags.items()]
        blocks.append(f"[{facet}]\n" + "\n".join(lines) + "\n")
    path.write_text("\n".join(blocks))
