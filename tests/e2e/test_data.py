"""The vectors' volume: it outlives the containers, and can be backed up and restored."""

from pathlib import Path

import httpx2
import pytest

from containers import Containers
from points import assert_found, upsert


def test_vectors_survive_down_and_up(stack: Containers, api: httpx2.Client, collection: str) -> None:
    for number in range(20):
        assert upsert(api, collection, number).status_code == 200
    stack.down()
    assert stack.containers() == []
    stack.up()
    for number in range(20):
        assert_found(api, collection, number)


def test_vectors_come_back_from_a_backup(
    stack: Containers, api: httpx2.Client, collection: str, tmp_path: Path
) -> None:
    for number in range(20):
        assert upsert(api, collection, number).status_code == 200
    backup = tmp_path / "vectors.tar"
    stack.run("deploy/backup", str(backup), timeout_s=300)
    # the store runs again, and what comes now is not in the backup
    assert_found(api, collection, 3)
    assert upsert(api, collection, 500).status_code == 200
    stack.compose("rm", "--stop", "--force", "qdrant-svc")
    stack.run("docker", "volume", "rm", f"{stack.project}_embedded")
    stack.run("deploy/restore", str(backup), timeout_s=300)
    stack.wait_ready()
    for number in range(20):
        assert_found(api, collection, number)
    assert api.get("/vectors/points/500", params={"collection": collection}).status_code == 404


def test_a_broken_backup_deletes_nothing(
    stack: Containers, api: httpx2.Client, collection: str, tmp_path: Path
) -> None:
    assert upsert(api, collection, 1).status_code == 200
    broken = tmp_path / "vectors.tar"
    broken.write_bytes(b"not an archive" * 1000)
    with pytest.raises(AssertionError, match="ended with 2"):
        stack.run("deploy/restore", str(broken))
    assert_found(api, collection, 1)
