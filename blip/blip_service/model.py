"""The captioning model: loading it, and captions for batches of pictures.

All methods run in the one thread that owns the model, and torch is imported in it: `load` must be the first. The
networks are `network`'s, the search for tokens is `decoding`'s, what makes a text a caption is `captions`'.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from visionstack.device import choose_device, choose_precision, precision_name, set_threads
from visionstack.hub import cached_first, load_errors, prepare_hub
from visionstack.model_service import ModelInfo, ModelLoadError, Pixels
from visionstack.schemas import Caption

from .captions import Selection
from .settings import BlipSettings

if TYPE_CHECKING:
    import torch
    from transformers import BertTokenizer, BlipImageProcessor, BlipProcessor

    from .decoding import Candidate, NoLoops
    from .network import TextDecoder, VisionTower

logger = logging.getLogger(__name__)

# Beams of all pictures together; with more, memory grows and a beam gets hardly cheaper.
_MAX_ROWS = 64
# How often a picture whose captions loop or read the same gets twice as many beams.
_MORE_ROUNDS = 3


class CaptionKey(NamedTuple):
    """What the pictures of a batch have in common: how many captions, and of how many tokens at most."""

    variants: int
    max_length: int


class BlipModel:
    """Any model of transformers' `BlipForConditionalGeneration`, from Hugging Face or a local folder."""

    _device: "torch.device"
    _dtype: "torch.dtype"
    _image_processor: "BlipImageProcessor"
    _tokenizer: "BertTokenizer"
    _vision: "VisionTower"
    _decoder: "TextDecoder"
    _no_loops: "NoLoops"
    _start: int
    _end: int

    def __init__(self, settings: BlipSettings) -> None:
        self._settings = settings

    def load(self) -> ModelInfo:
        """Read or download the weights. Raises `ModelLoadError` with one line that says what to do."""
        settings = self._settings
        token = settings.huggingface_token
        prepare_hub(token.get_secret_value() if token else None)
        # transformers would ask a public service to convert weights that are not safetensors
        os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
        set_threads(settings)
        self._device = choose_device(settings.device)
        self._dtype = choose_precision(settings.precision, self._device)
        with load_errors(f"BLIP_MODEL={settings.blip_model}"):
            self._load(settings.blip_model)
        folder = Path(settings.blip_model)
        return ModelInfo(
            name=folder.resolve().name if folder.is_dir() else settings.blip_model,
            device=str(self._device),
            precision=precision_name(self._dtype),
        )

    def _load(self, name: str) -> None:
        import torch

        from .decoding import NoLoops
        from .network import TextDecoder, VisionTower

        model, processor = cached_first(name, partial(self._read, name))
        self._image_processor, self._tokenizer = processor.image_processor, processor.tokenizer
        # transformers may keep single tensors in the file's own precision
        model = model.eval().requires_grad_(False).to(device=self._device, dtype=self._dtype)
        text = model.config.text_config
        self._start, self._end = text.bos_token_id, text.sep_token_id
        with torch.inference_mode():
            self._vision = VisionTower(model, self._settings.max_batch)
            self._decoder = TextDecoder(model.text_decoder)
        textless = {*self._tokenizer.all_special_ids, *range(len(self._tokenizer), text.vocab_size)} - {self._end}
        self._no_loops = NoLoops(end=self._end, textless=torch.tensor(sorted(textless), device=self._device))

    def _read(self, name: str) -> tuple[Any, "BlipProcessor"]:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        options: dict[str, Any] = {"trust_remote_code": False}
        # The weights first: the processor's errors hide why the hub did not give it.
        loaded: Any = BlipForConditionalGeneration.from_pretrained(
            name, dtype=self._dtype, output_loading_info=True, **options
        )
        model, report = loaded
        if lacking := len(report["missing_keys"]) + len(report["mismatched_keys"]):
            raise ModelLoadError(
                f"BLIP_MODEL={name} is no BLIP captioning model: {lacking} of the network's weights are not in it."
            )
        processor = BlipProcessor.from_pretrained(name, **options)
        tokenizer = processor.tokenizer
        if len(tokenizer) == len(tokenizer.all_special_ids):  # transformers makes an empty one where there is no file
            raise OSError("its tokenizer has no vocabulary")
        return model, processor

    def warm_up(self) -> None:
        """Let the kernels be chosen and the memory be taken before the first request."""
        blank = np.zeros((480, 640, 3), np.uint8)
        with load_errors(f"BLIP_MODEL={self._settings.blip_model}"):
            self.predict(CaptionKey(variants=1, max_length=5), [blank])
            self.predict(CaptionKey(variants=3, max_length=5), [blank])

    def predict(self, key: CaptionKey, items: Sequence[Pixels]) -> list[list[Caption]]:
        """Captions for each picture, the best first, from one pass of the vision tower.

        One caption is the greedy one, several are those of as many beams. Only where these loop or read the same, more
        are searched for, with twice the beams and loops forbidden; those that are good stay.
        """
        import torch

        selections = [Selection(key.variants) for _ in items]
        with torch.inference_mode():
            pictures = self._vision(self._pixels(items))
            for more in range(1 + _MORE_ROUNDS):
                lacking = [index for index, selection in enumerate(selections) if not selection.complete]
                if not lacking:
                    break
                found = self._search(pictures[lacking] if more else pictures, key, more)
                for index, candidates in zip(lacking, found, strict=True):
                    selections[index].add((self._text(candidate), candidate.mean_log_prob) for candidate in candidates)
        captions = [selection.captions() for selection in selections]
        if not all(captions):
            raise FloatingPointError("its scores overflow in this precision; set PRECISION=fp32.")
        return captions

    def _pixels(self, items: Sequence[Pixels]) -> "torch.Tensor":
        import torch

        # One by one: a batch of equal sizes takes another path, which may round differently.
        pixels = [self._image_processor(Image.fromarray(item), return_tensors="pt")["pixel_values"] for item in items]
        return torch.cat(pixels).to(device=self._device, dtype=self._dtype)

    def _search(self, pictures: "torch.Tensor", key: CaptionKey, more: int) -> Iterator[list["Candidate"]]:
        from .decoding import beam_search, greedy

        beams = key.variants << more
        length = min(key.max_length, self._decoder.most_tokens)
        for part in pictures.split(max(1, _MAX_ROWS // beams)):
            if beams == 1:
                yield from greedy(self._decoder, part, start=self._start, end=self._end, max_tokens=length)
            else:
                yield from beam_search(
                    self._decoder,
                    part,
                    start=self._start,
                    end=self._end,
                    max_tokens=length,
                    beams=beams,
                    constraint=self._no_loops if more else None,
                )

    def _text(self, candidate: "Candidate") -> str:
        text = self._tokenizer.decode(candidate.tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text
