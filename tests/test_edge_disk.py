"""Going through a shard's files while the engine gives one of them its name."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qdrant_service import edge_disk
from qdrant_service.edge_disk import copy_tree, sync_tree, tree_size
from visionstack.errors import CollectionNotFound


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    folder = tmp_path / "shard"
    (folder / "wal").mkdir(parents=True)
    (folder / "segments").mkdir()
    (folder / "segments" / "vectors").write_bytes(b"v" * 10_000)
    (folder / "wal" / "open-1").write_bytes(b"1" * 10_000)
    (folder / "wal" / "tmp-open-2").write_bytes(b"2" * 10_000)
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


FINAL = {"segments/vectors", "wal/open-1", "wal/open-2"}


def renaming_first(shard: Path, function: Callable[..., Any], seen: list[Path]) -> Callable[..., Any]:
    """`function`, but before it is called for the new file, that has its name; `seen` takes what it was called for."""

    def renamed(path: Any, *more: Any) -> Any:
        if Path(path).name == "tmp-open-2":
            (shard / "wal" / "tmp-open-2").rename(shard / "wal" / "open-2")
        result = function(path, *more)
        seen.append(Path(path))
        return result

    return renamed


def test_every_file_is_flushed_under_its_last_name(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(edge_disk, "_flush", renaming_first(shard, edge_disk._flush, flushed))
    sync_tree(shard)
    assert {shard / name for name in FINAL} | {shard, shard / "wal", shard / "segments", shard.parent} == set(flushed)
    latest_first = flushed[::-1]
    assert latest_first.index(shard / "wal") < latest_first.index(shard / "wal" / "open-2")


def test_a_copy_has_every_file_once(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Path] = []
    monkeypatch.setattr(shutil, "copy2", renaming_first(shard, shutil.copy2, copied))
    target = tmp_path / "copy"
    target.mkdir()
    copy_tree(shard, target)
    assert names(target) == FINAL
    assert (target / "wal" / "open-2").read_bytes() == b"2" * 10_000


def test_the_size_is_that_of_all_files(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = tree_size(shard)
    walk = Path.rglob

    def renamed(folder: Path, pattern: str) -> Iterator[Path]:
        found = list(walk(folder, pattern))
        (shard / "wal" / "tmp-open-2").rename(shard / "wal" / "open-2")
        monkeypatch.setattr(Path, "rglob", walk)
        return iter(found)

    monkeypatch.setattr(Path, "rglob", renamed)
    assert tree_size(shard) == size > 30_000


def test_what_is_deleted_meanwhile_is_told_as_such(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deleted(source: str, target: str) -> str:
        shutil.rmtree(shard)
        raise FileNotFoundError(source)

    monkeypatch.setattr(shutil, "copy2", deleted)
    with pytest.raises(CollectionNotFound):
        copy_tree(shard, tmp_path / "copy")


def test_a_file_that_is_never_there_is_an_error(shard: Path) -> None:
    (shard / "wal" / "dangling").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="does not hold still"):
        sync_tree(shard)


def test_a_copy_that_fails_for_another_reason_fails(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: str) -> str:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(shutil.Error, match="No space left"):
        copy_tree(shard, tmp_path / "copy")
