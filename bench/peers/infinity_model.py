"""Writes a random model of ViT-B-32's architecture in the form that infinity loads, with its own transformers."""

import json
import sys
from pathlib import Path

import torch
from transformers import (  # type: ignore[attr-defined]
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizerFast,
)
from transformers.models.clip.tokenization_clip import bytes_to_unicode  # type: ignore[attr-defined]

START, END = "<|startoftext|>", "<|endoftext|>"


def write(folder: Path) -> None:
    """CLIPConfig's defaults are those of openai/clip-vit-base-patch32; the tokenizer knows single letters only."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = list(bytes_to_unicode().values())
    names = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    torch.manual_seed(0)
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)
    CLIPModel(CLIPConfig()).save_pretrained(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
