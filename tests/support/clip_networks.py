"""A small CLIP of random weights, what loads it, and open_clip itself to compare with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clip_service.model import ClipModel, Item, Key
from clip_service.settings import ClipSettings

Pixels = npt.NDArray[np.uint8]

# 77 positions, as in CLIP's own models, so that there is padding to skip
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
# not the defaults, so that a preprocessing of one's own would be seen
PREPROCESSING = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "shortest",
}
TAGS = "castle = fortress\nsea\n[style]\nsurreal\n"


def save_model(folder: Path, *, seed: int, architecture: dict[str, Any] = ARCHITECTURE) -> Path:
    folder.mkdir()
    config = {"model_cfg": architecture, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    network = open_clip.CLIP(**architecture)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", seed=7)


@pytest.fixture(scope="module")
def tags_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tags") / "tags.txt"
    path.write_text(TAGS)
    return path


def make_settings(folder: Path | str, tags_file: Path, cache_dir: Path, **more: Any) -> ClipSettings:
    values = {"precision": "fp32", "threads": 1, "clip_tags_file": tags_file, "cache_dir": cache_dir}
    return ClipSettings.model_validate({"clip_model": str(folder), **values, **more})


def load(settings: ClipSettings) -> ClipModel:
    model = ClipModel(settings)
    model.load()
    return model


@pytest.fixture(scope="module")
def model(folder: Path, tags_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return load(make_settings(folder, tags_file, tmp_path_factory.mktemp("cache")))


class Bare:
    """open_clip called directly."""

    def __init__(self, name: str, pretrained: str | None = None) -> None:
        self.network, _, self.preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        self.network.eval()
        self.tokenize = open_clip.get_tokenizer(name)

    def images(self, pictures: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            rows = [
                self.network.encode_image(self.preprocess(Image.fromarray(pixels))[None], normalize=True)
                for pixels in pictures
            ]
        result: npt.NDArray[np.float32] = torch.cat(rows).numpy()
        return result

    def texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            rows = [self.network.encode_text(self.tokenize([text]), normalize=True) for text in texts]
        result: npt.NDArray[np.float32] = torch.cat(rows).numpy()
        return result


@pytest.fixture(scope="module")
def bare(folder: Path) -> Bare:
    return Bare(f"local-dir:{folder}")


def make_pictures(sizes: Sequence[tuple[int, int]], seed: int = 1) -> list[Pixels]:
    """Smooth random pictures of these (height, width)."""
    random = np.random.default_rng(seed)
    return [
        np.asarray(
            Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
        )
        for height, width in sizes
    ]


PICTURES = make_pictures([(40, 60), (60, 40), (32, 32), (1, 1), (7, 300), (400, 31), (480, 640)])
TEXTS = [
    "a castle by the sea",
    "x",
    "",
    "Ein Schloß am Meer \N{CASTLE}",
    "word " * 200,
    "a photo of a very old red car",
]

BOTH: tuple[tuple[Key, Sequence[Item]], ...] = (("image", PICTURES), ("text", TEXTS))
