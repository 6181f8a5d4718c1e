"""Small BLIP models with random weights: some write captions of many lengths, some loop."""

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

SIDE = 32
MOST_TOKENS = 24
START, END = 1, 2
WORDS = "a the red blue boat bird house sea sky sun moon on over under and of with at in by old new big tiny far near"
PIECES = ("##s", "##ed", "##ing", "##er", "##ly", "##y", "##al", "##ic")
VOCABULARY = ("[PAD]", "[DEC]", "[SEP]", "[UNK]", "[CLS]", "[MASK]", *WORDS.split(), *PIECES)


def make_network(*, spread: float = 0.2, end_bias: float = 1.3) -> BlipForConditionalGeneration:
    """A wide spread makes it loop, a high bias of the end makes captions short."""
    text = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": MOST_TOKENS, "bos_token_id": START,
        "eos_token_id": END, "sep_token_id": END, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": 8,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1 or name.endswith("bias"):
                    parameter.normal_(0, spread)
            network.text_decoder.cls.predictions.bias[END] = end_bias
    network.eval()
    return network


def write_folder(network: BlipForConditionalGeneration, folder: Path) -> Path:
    """The network as the hub keeps models: weights, configuration and processor."""
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(VOCABULARY)}, bos_token="[DEC]")
    processor = BlipProcessor(BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer)
    processor.save_pretrained(folder)
    network.save_pretrained(folder)
    return folder
