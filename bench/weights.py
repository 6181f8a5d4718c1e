"""The real architectures with random weights, written as files that the services load like any others.

The arithmetic is that of the published models, so speed is too; what they say about a picture is noise. Where random
numbers would change what is computed, they are set so that they do not: YOLO's norms fit real pictures, so that it
finds a plausible number of boxes, and BLIP's captions depend on the position in the text, so that they do not loop.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from photos import photo

# ViT-B-32 under the name that open_clip knows
CLIP_NAME = "ViT-B-32"
# of Salesforce/blip-image-captioning-base
_BLIP_TEXT: dict[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "encoder_hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "bos_token_id": 30522,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sep_token_id": 102,
}
_BLIP_VISION: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 384,
    "patch_size": 16,
}
_BLIP_LAYER_SCALE = 0.3
_BLIP_START = "[DEC]"
_BLIP_MEAN, _BLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_YOLO_SIDE = 640
# places of a picture that look like an object, at most, before overlaps are dropped; the logit of a confidence of 0.25
_YOLO_CANDIDATES = 40
_YOLO_LOGIT = -1.1


@dataclass(frozen=True, slots=True)
class Weights:
    clip: Path
    blip: Path
    yolo: Path


def make_weights(folder: Path) -> Weights:
    """The three models below `folder`; what is there already stays."""
    weights = Weights(folder / "vit-b-32.safetensors", folder / "blip-base", folder / "yolo11n.pt")
    folder.mkdir(parents=True, exist_ok=True)
    if not weights.clip.exists():
        _make_clip(weights.clip)
    if not (weights.blip / "config.json").exists():
        _make_blip(weights.blip)
    if not weights.yolo.exists():
        _make_yolo(weights.yolo)
    return weights


def _make_clip(path: Path) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model(CLIP_NAME, load_weights=False)
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)
    partial.rename(path)


def _make_blip(folder: Path) -> None:
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    config = BlipConfig(text_config=_BLIP_TEXT, vision_config=_BLIP_VISION, image_text_hidden_size=256)
    model: Any = BlipForConditionalGeneration(config)
    with torch.no_grad():
        # its own spread of 1e-10 would make the tower's answer the same for every picture
        for parameter in model.vision_model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.04)
        # Words that depend on their place above all: otherwise the head, tied to the embeddings, repeats the last one
        # for ever, and the service searches again where `generate` leaves a loop as it is.
        model.text_decoder.bert.embeddings.position_embeddings.weight.normal_(std=1.0)
        for layer in model.text_decoder.bert.encoder.layer:
            for part in (layer.attention, layer.crossattention, layer):
                part.output.dense.weight *= _BLIP_LAYER_SCALE
    side = {"height": _BLIP_VISION["image_size"], "width": _BLIP_VISION["image_size"]}
    images = BlipImageProcessor(size=side, image_mean=_BLIP_MEAN, image_std=_BLIP_STD)
    tokenizer: Any = BertTokenizer(vocab=_words(), bos_token=_BLIP_START, model_max_length=512)
    model.generation_config.update(bos_token_id=30522, eos_token_id=102, pad_token_id=0)
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)


def _words() -> dict[str, int]:
    """As many made-up words as BERT has, with its special tokens where it has them."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 30522: _BLIP_START, 30523: "[ENC]"}
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    made_up = ("".join(parts) for length in (2, 3) for parts in itertools.product(syllables, repeat=length))
    return {special.get(index) or next(made_up): index for index in range(_BLIP_TEXT["vocab_size"])}


def _make_yolo(path: Path) -> None:
    import torch

    from yolo_service.checkpoint import prepare_ultralytics

    prepare_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    network: Any = DetectionModel("yolo11n.yaml", verbose=False)
    _fit_to_pictures(network)
    network.names = {index: f"class{index}" for index in range(80)}
    network.task = "detect"
    content = {"epoch": -1, "model": network.half(), "ema": None, "train_args": {"imgsz": _YOLO_SIDE, "task": "detect"}}
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.rename(path)


def _fit_to_pictures(network: Any) -> None:
    """Running means and variances of real pictures, and about as many objects as a trained network finds in one."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    pictures = np.stack([np.asarray(photo(_YOLO_SIDE, _YOLO_SIDE, seed)) for seed in range(12)])
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255

    logits: list[torch.Tensor] = []

    def spread(conv: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        """One scale for all of a branch; what comes out is kept."""
        scale = 1 / output.std()
        conv.weight *= scale
        conv.bias.copy_((conv.bias - output.mean()) * scale)
        logits.append((output - output.mean()) * scale)
        return logits[-1]

    with torch.no_grad():
        network.train()(batch)
        convolutions = [branch[-1] for branch in network.model[-1].cv3]
        for convolution in convolutions:
            torch.nn.init.normal_(convolution.weight)
        hooks = [convolution.register_forward_hook(spread) for convolution in convolutions]
        network.eval()(batch)
        for hook in hooks:
            hook.remove()
        best = torch.cat([branch.amax(1).flatten(1) for branch in logits], 1).sort(dim=1, descending=True).values
        for convolution in convolutions:
            convolution.bias += _YOLO_LOGIT - best[:, _YOLO_CANDIDATES].max()


if __name__ == "__main__":
    import sys

    print(json.dumps({name: str(getattr(make_weights(Path(sys.argv[1])), name)) for name in Weights.__slots__}))
