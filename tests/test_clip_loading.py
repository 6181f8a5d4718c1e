"""Where a CLIP model may come from, and what is said of one that cannot be loaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clip_networks import ARCHITECTURE, PICTURES, TEXTS, Bare, load, make_settings, save_model
from clip_networks import folder as folder
from clip_networks import model as model
from clip_networks import tags_file as tags_file
from clip_service.model import ClipModel
from visionstack.model_service import ModelLoadError


def test_a_local_folder_may_be_given_in_every_way(
    folder: Path, tags_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ClipModel
) -> None:
    monkeypatch.chdir(folder.parent)

    for name in ("tiny", "./tiny", f"local-dir:{folder}", "local-dir:tiny", "tiny/open_clip_model.safetensors"):
        loaded = load(make_settings(name, tags_file, tmp_path))
        assert loaded.identity == model.identity
        np.testing.assert_allclose(loaded.predict("text", ["a castle"]), model.predict("text", ["a castle"]), atol=1e-6)


def test_the_identity_is_equal_for_equal_weights_only(
    model: ClipModel, folder: Path, tags_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    copy = Path(shutil.copytree(folder, tmp_path / "a" / "tiny"))
    (tmp_path / "b").mkdir()
    other = save_model(tmp_path / "b" / "tiny", seed=8)

    assert model.identity.startswith("tiny-")
    assert load(make_settings(copy, tags_file, tmp_path / "cache")).identity == model.identity
    assert load(make_settings(other, tags_file, tmp_path / "cache")).identity != model.identity


def test_a_known_name_with_a_file_of_weights(folder: Path, tags_file: Path, tmp_path: Path, model: ClipModel) -> None:
    config = tmp_path / "VisionStack-Test.json"
    config.write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(config)
    weights = folder / "open_clip_model.safetensors"

    loaded = ClipModel(make_settings("VisionStack/Test", tags_file, tmp_path / "cache", clip_pretrained=str(weights)))
    info = loaded.load()

    assert info.name == "VisionStack-Test"
    assert loaded.identity.startswith("VisionStack-Test/open_clip_model-")
    expected = Bare("VisionStack-Test", str(weights))  # without the folder's preprocessing
    np.testing.assert_allclose(loaded.predict("image", PICTURES), expected.images(PICTURES), atol=1e-5)
    np.testing.assert_allclose(loaded.predict("text", TEXTS), model.predict("text", TEXTS), atol=1e-5)

    with pytest.raises(ModelLoadError, match=r"^CLIP_PRETRAINED=none is neither a file nor known weights"):
        load(make_settings("VisionStack-Test", tags_file, tmp_path / "cache", clip_pretrained="none"))


@pytest.mark.timeout(300)  # a process that imports torch and transformers anew
def test_a_hub_model_downloads_once_and_its_refusals_say_what_to_do(folder: Path) -> None:
    root = Path(__file__).parent.parent
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "common"), str(root / "clip")])

    done = subprocess.run(
        [sys.executable, str(root / "tests/support/clip_hub.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for name in ("gated", "unknown"):
        assert "HUGGINGFACE_TOKEN" in results[name]
        assert "\n" not in results[name]
    assert results["online"][0] == "hf-hub:here/model"
    assert results["hub gone"] == results["cached"] == results["online"]
    assert results["asked again"] == 0, "a hub that hangs would hold the start for minutes"
    assert results["tokens"] == ["", "Bearer hf_secret"]
    assert "open_clip_model.safetensors: 100%" in done.stderr, "the download's progress is not to be seen"


class _Trap:
    """Unpickled, it would end the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (42,)


def test_what_cannot_be_loaded_stops_the_start_with_one_line(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    (tmp_path / "empty").mkdir()
    unarmed = copy("no weights")
    (unarmed / "open_clip_model.safetensors").unlink()
    cut = copy("cut weights")
    os.truncate(cut / "open_clip_model.safetensors", 1000)
    pickled = copy("pickled weights")
    (pickled / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": _Trap()}, pickled / "open_clip_pytorch_model.bin")
    foreign = copy("foreign weights")
    save_file({"weight": torch.zeros(3)}, foreign / "open_clip_model.safetensors")
    two = copy("two weights")
    shutil.copy(two / "open_clip_model.safetensors", two / "other.safetensors")
    greedy = copy("greedy")
    text_cfg = ARCHITECTURE["text_cfg"] | {"tokenizer_kwargs": {"trust_remote_code": True}}
    (greedy / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE | {"text_cfg": text_cfg}}))

    for name, sentence in {
        "ViT-Z-99": "neither a local folder nor a model that open_clip knows",
        str(tmp_path / "empty"): "no open_clip_config.json in the folder",
        str(unarmed): "the folder holds no weights",
        str(cut): "cannot be loaded: ",
        str(pickled): "cannot be loaded: ",
        str(foreign): "cannot be loaded: ",
        str(two / "other.safetensors"): "must be the only weights",
        str(greedy): "wants to run code of its own",
    }.items():
        with pytest.raises(ModelLoadError, match=sentence) as caught:
            load(make_settings(name, tags_file, tmp_path / "cache"))
        assert str(caught.value).startswith("CLIP_MODEL")
        assert "\n" not in str(caught.value)


def test_an_unusable_tags_file_stops_the_start(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"^CLIP_TAGS_FILE: .* does not exist"):
        load(make_settings(folder, tmp_path / "none.txt", tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_stops_the_start(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"^DEVICE=cuda, but no CUDA device"):
        load(make_settings(folder, tags_file, tmp_path, device="cuda"))
