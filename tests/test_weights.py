"""`python -m visionstack.weights` in a service's folder, as deploy/weights runs it in a container."""

import os
import subprocess
import sys
from pathlib import Path

from local_stack import ROOT


def weights(service: str, folder: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    given = {"CACHE_DIR": str(folder), "CLIP_TAGS_FILE": str(ROOT / "demo/models/tags.txt"), **settings}
    return subprocess.run(
        [sys.executable, "-m", "visionstack.weights"],
        cwd=ROOT / service,
        env=dict(os.environ) | given,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_model_is_loaded_once_and_what_it_computes_is_kept(tmp_path: Path) -> None:
    done = weights("clip", tmp_path, CLIP_MODEL=str(ROOT / "demo/models/clip"))
    assert (done.returncode, done.stdout) == (0, "clip: everything is there\n"), done.stderr
    assert [path.suffix for path in tmp_path.iterdir()] == [".bin"]


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    done = weights("blip", tmp_path, BLIP_MODEL=str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere cannot be loaded: it is neither a folder on this disk nor a name" in done.stderr
