"""The CLIP model: loading it by open_clip's own means, and encoding pictures, texts and tags with it.

It owns the weights, the tokenizer and the vectors of the vocabulary's tags, which it keeps on disk between starts.
Ranking is `tagging.py`'s, HTTP is `app.py`'s. All methods run in the one thread that owns the model.
"""

import hashlib
import io
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionstack.device import choose_device, choose_precision, precision_name, set_threads
from visionstack.hub import cached_first, load_errors, prepare_hub
from visionstack.model_service import ModelInfo, ModelLoadError, Pixels
from visionstack.openvino_runtime import compile_network, refuse_other_devices

from .settings import ClipSettings
from .tagging import Matrix, Vector, means_of_groups, unit
from .vocabulary import VocabularyError, VocabularyTag, default_prompts, load_vocabulary

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# "image": pixels; "text": a text as it is; "tag": a caller's own tag, which gets the sentences of the vocabulary's.
Key = Literal["image", "text", "tag"]
Item = Pixels | str
# preprocessed pictures of shape (n, 3, height, width) to their features of shape (n, dimension)
_Tower = Callable[["torch.Tensor"], "torch.Tensor"]

_CONFIG = "open_clip_config.json"
# what open_clip looks for in a local folder
_WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth")
_TEXT_BATCH = 64
# what two runtimes may differ by in one space
_LEAST_COSINE = 0.9995
_REMEMBERED_TAGS = 4096
# Scaled to 224 pixels on its short side, a picture of 1 x 1,000,000 pixels would take 150 GB. What a centre crop to
# this aspect ratio takes away, CLIP's own centre crop takes away too.
_MAX_ASPECT_RATIO = 64


class ClipModel:
    """Keys and items of `predict`: see `Key`. Every result is a unit vector, float32, of CLIP's dimension.

    After `load`: `identity` names the space of the vectors (equal only for equal weights), `tags` and `tag_vectors` are
    the vocabulary and its vectors, row by row, and `logit_scale` is the model's own temperature for their cosines.
    """

    identity: str
    tags: tuple[str, ...]
    tag_vectors: Matrix
    logit_scale: float

    _model: Any
    _preprocess: Callable[[Image.Image], "torch.Tensor"]
    _tokenize: Callable[[list[str]], "torch.Tensor"]
    _device: "torch.device"
    _dtype: "torch.dtype"

    def __init__(self, settings: ClipSettings) -> None:
        self._settings = settings
        self._remembered: OrderedDict[str, Vector] = OrderedDict()

    def load(self) -> ModelInfo:
        """Load weights and vocabulary. Raises `ModelLoadError` with one sentence that says what to do."""
        settings = self._settings
        try:
            vocabulary = load_vocabulary(settings.clip_tags_file)
        except VocabularyError as exc:
            raise ModelLoadError(str(exc)) from exc
        token = settings.huggingface_token
        prepare_hub(token.get_secret_value() if token else None)
        self._threads = set_threads(settings)
        self._device = choose_device(settings.device)
        self._dtype = choose_precision(settings.precision, self._device)
        with load_errors(f"CLIP_MODEL={settings.clip_model}"):
            source = cached_first(settings.clip_model.removeprefix("local-dir:"), self._load_source)
            dim = len(self._encode_texts(["a photo"])[0])
        self.identity = source.identity
        self.tags = tuple(tag.name for tag in vocabulary)
        self.tag_vectors = self._vocabulary_vectors(vocabulary, source, dim)
        return ModelInfo(
            name=source.title,
            device=str(self._device),
            precision=precision_name(self._dtype),
            runtime=settings.runtime,
        )

    def warm_up(self) -> None:
        """Let the kernels be chosen and the memory be taken before the first request."""
        self.predict("image", [np.zeros((480, 640, 3), np.uint8)])

    def predict(self, key: Key, items: Sequence[Item]) -> list[Vector]:
        """One vector for each item; the key says what the items are."""
        match key:
            case "image":
                return list(self._encode_images([item for item in items if not isinstance(item, str)]))
            case "text":
                return list(self._encode_texts([item for item in items if isinstance(item, str)]))
            case "tag":
                return self._encode_tags([item for item in items if isinstance(item, str)])

    def _load_source(self) -> "_Source":
        source = _find_source(self._settings.clip_model, self._settings.clip_pretrained)
        self._load_model(source)
        return source

    def _load_model(self, source: "_Source") -> None:
        import open_clip

        _refuse_remote_code(open_clip.get_model_config(source.name))
        # unlike create_model_and_transforms, this one fails instead of going on with random weights
        model, self._preprocess = open_clip.create_model_from_pretrained(source.name, pretrained=source.pretrained)
        self._tokenize = open_clip.get_tokenizer(source.name)
        self.logit_scale = model.logit_scale.exp().item()  # before the cast: bf16 rounds 100 to a half
        self._model = model.eval().requires_grad_(False).to(device=self._device)
        if self._settings.runtime == "openvino":
            self._see = self._tower_on_openvino()
            del self._model.visual  # OpenVINO has its own copy
        self._model.to(dtype=self._dtype)
        if self._settings.runtime == "torch":
            self._see = self._tower_on_torch()
        self._skips_padding = (
            isinstance(model, open_clip.CLIP) and model.attn_mask is not None and model.text_pool_type == "argmax"
        )

    def _tower_on_torch(self) -> "_Tower":
        import torch

        from visionstack.cuda_graphs import replayed

        from .packing import pack_tower

        see: _Tower = self._model.encode_image
        if self._device.type == "cpu":
            pack_tower(self._model.visual)
        elif self._device.type == "cuda":
            example = self._preprocess(Image.new("RGB", (64, 64)))[None].to(device=self._device, dtype=self._dtype)
            with torch.inference_mode():
                see = replayed(see, example, self._settings.max_batch)
        return lambda inputs: see(inputs.to(device=self._device, dtype=self._dtype))

    def _tower_on_openvino(self) -> "_Tower":
        """Raises `ModelLoadError` where its vectors would not be torch's."""
        import open_clip
        import torch

        refuse_other_devices(self._device)
        if not isinstance(self._model, open_clip.CLIP | open_clip.CustomTextCLIP):
            raise ModelLoadError("RUNTIME=openvino runs open_clip's CLIP models alone; set RUNTIME=torch.")
        noise = np.random.default_rng(0).integers(0, 256, (2, 480, 640, 3), np.uint8)
        examples = torch.stack([self._preprocess(Image.fromarray(pixels)) for pixels in noise])
        run = compile_network(
            self._model.visual,
            examples,
            (-1, *examples.shape[1:]),
            precision=precision_name(self._dtype),
            threads=self._threads,
        )

        def see(inputs: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(run(inputs.numpy())[0])

        with torch.inference_mode():
            expected, given = (_unit_vectors(tower(examples)) for tower in (self._model.encode_image, see))
        cosine = float((expected * given).sum(axis=1).min())
        logger.info("the image tower on OpenVINO: cosine to torch's vectors %.6f", cosine)
        if cosine < _LEAST_COSINE:
            raise ModelLoadError(
                f"RUNTIME=openvino gives other vectors than torch (cosine {cosine:.4f}); set RUNTIME=torch."
            )
        return see

    def _encode_images(self, pictures: Sequence[Pixels]) -> Matrix:
        import torch

        inputs = torch.stack([self._preprocess(_not_too_long(Image.fromarray(pixels))) for pixels in pictures])
        with torch.inference_mode():
            return _unit_vectors(self._see(inputs))

    def _encode_texts(self, texts: Sequence[str]) -> Matrix:
        import torch

        tokens = self._tokenize(list(texts))
        # by length, so that a batch holds little padding
        order = torch.argsort(tokens.argmax(dim=-1), stable=True)
        with torch.inference_mode():
            batches = [order[start : start + _TEXT_BATCH] for start in range(0, len(order), _TEXT_BATCH)]
            features = torch.cat([self._encode_tokens(tokens[rows]) for rows in batches])
        vectors = np.empty(features.shape, np.float32)
        vectors[order.numpy()] = _unit_vectors(features)
        return vectors

    def _encode_tokens(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """`encode_text`, without the positions that only pad, which take four fifths of its time.

        The attention is causal and the vector is read at the text's last token, so nothing behind that can matter.
        """
        import torch

        model = self._model
        if not self._skips_padding:
            features: torch.Tensor = model.encode_text(tokens.to(self._device))
            return features
        ends = tokens.argmax(dim=-1)  # the end of text has the highest id
        length = int(ends.max()) + 1
        tokens = tokens[:, :length].to(self._device)
        hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
        hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
        last: torch.Tensor = model.ln_final(hidden)[torch.arange(len(tokens)), ends]
        projection: torch.nn.Linear | torch.Tensor | None = model.text_projection
        if projection is None:
            return last
        return last @ projection if isinstance(projection, torch.Tensor) else projection(last)

    def _encode_tags(self, tags: Sequence[str]) -> list[Vector]:
        new = [tag for tag in dict.fromkeys(tags) if tag not in self._remembered]
        if new:
            for tag, vector in zip(new, self._encode_ensembles([default_prompts(tag) for tag in new]), strict=True):
                self._remembered[tag] = vector
        for tag in tags:
            self._remembered.move_to_end(tag)
        vectors = [self._remembered[tag] for tag in tags]
        while len(self._remembered) > _REMEMBERED_TAGS:
            self._remembered.popitem(last=False)
        return vectors

    def _encode_ensembles(self, ensembles: Sequence[Sequence[str]]) -> Matrix:
        vectors = self._encode_texts([prompt for prompts in ensembles for prompt in prompts])
        return means_of_groups(vectors, [len(prompts) for prompts in ensembles])

    def _vocabulary_vectors(self, vocabulary: Sequence[VocabularyTag], source: "_Source", dim: int) -> Matrix:
        """From the cache, or computed and then kept there."""
        prompts = [tag.prompts for tag in vocabulary]
        inputs = json.dumps([source.name, source.pretrained, source.digest, precision_name(self._dtype), prompts])
        path = self._settings.cache_dir / f"clip-tags-{hashlib.sha256(inputs.encode()).hexdigest()[:32]}.bin"
        vectors = _read_cache(path, (len(vocabulary), dim))
        if vectors is None:
            logger.info("computing the vectors of %d tags; the next start finds them in %s", len(vocabulary), path)
            vectors = self._encode_ensembles(prompts)
            _write_cache(path, vectors)
        return vectors


@dataclass(frozen=True, slots=True)
class _Source:
    """A model in open_clip's words, and in ours. `digest` changes with whatever the vectors depend on."""

    name: str
    pretrained: str | None
    title: str
    identity: str
    digest: str


def _find_source(model: str, pretrained: str) -> _Source:
    """Where `CLIP_MODEL` and `CLIP_PRETRAINED` lead: a hub repository, a local folder, or one of open_clip's names.

    Downloads the weights if they are not in the cache: open_clip would hide why it could not get them.
    """
    import open_clip

    if model.startswith("hf-hub:"):
        checkpoint = open_clip.download_pretrained({"hf_hub": model.removeprefix("hf-hub:").rstrip("/") + "/"})
        return _Source(model, None, model, model, _digest([Path(checkpoint)]))

    known = model.replace("/", "-")  # open_clip takes ViT-B/32 for ViT-B-32
    path = Path(model.removeprefix("local-dir:"))
    if known not in open_clip.list_models() or (path / _CONFIG).is_file():
        return _local_source(path)

    if weights := open_clip.get_pretrained_cfg(known, pretrained):
        digest = _digest([Path(open_clip.download_pretrained(weights))])
        return _Source(known, pretrained, known, f"{known}/{pretrained}", digest)
    file = Path(pretrained)
    if not file.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(known)) or "none"
        raise ModelLoadError(
            f"CLIP_PRETRAINED={pretrained} is neither a file nor known weights of {known}; known are: {tags}."
        )
    digest = _digest([file])
    return _Source(known, str(file), known, f"{known}/{file.stem}-{digest[:8]}", digest)


def _local_source(path: Path) -> _Source:
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    if not path.exists():
        raise ModelLoadError(
            f"CLIP_MODEL={path} is neither a local folder nor a model that open_clip knows; a hub model starts with "
            "hf-hub:."
        )
    if not (folder / _CONFIG).is_file():
        raise ModelLoadError(
            f"CLIP_MODEL={path}: there is no {_CONFIG} in the folder. For weights alone, set CLIP_MODEL to the name of "
            "their architecture and CLIP_PRETRAINED to their file."
        )
    weights = sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS_SUFFIXES)
    if not weights:
        raise ModelLoadError(f"CLIP_MODEL={path}: the folder holds no weights, such as open_clip_model.safetensors.")
    if path.is_file() and weights != [path.resolve()]:
        raise ModelLoadError(f"CLIP_MODEL={path}: a file must be the only weights in its folder.")
    digest = _digest([*sorted(folder.glob("*.json")), *weights])
    return _Source(f"local-dir:{folder}", None, folder.name, f"{folder.name}-{digest[:8]}", digest)


def _digest(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def _refuse_remote_code(config: dict[str, Any] | None) -> None:
    # open_clip hands these on to AutoTokenizer, which would then run code of the repository
    if config and config.get("text_cfg", {}).get("tokenizer_kwargs", {}).get("trust_remote_code"):
        raise ModelLoadError(
            "CLIP_MODEL: this model wants to run code of its own (trust_remote_code), which is refused."
        )


def _not_too_long(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    longest = min(width, height) * _MAX_ASPECT_RATIO
    if max(width, height) <= longest:
        return picture
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return picture.crop((left, top, width - left, height - top))


def _unit_vectors(features: "torch.Tensor") -> Matrix:
    vectors: npt.NDArray[np.float32] = features.float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise FloatingPointError("its vectors overflow in this precision; set PRECISION=fp32.")
    return unit(vectors)


def _read_cache(path: Path, shape: tuple[int, int]) -> Matrix | None:
    """The vectors in a file that `_write_cache` wrote; None where there are none, or they are damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    checksum, content = data[:32], data[32:]
    if hashlib.sha256(content).digest() != checksum:
        logger.warning("%s is damaged; computing it again", path)
        return None
    vectors: Matrix = np.load(io.BytesIO(content), allow_pickle=False)
    return vectors if vectors.shape == shape and vectors.dtype == np.float32 else None


def _write_cache(path: Path, vectors: Matrix) -> None:
    """All or nothing: a start that is killed here, or another service's, never leaves half a file."""
    content = io.BytesIO()
    np.save(content, vectors, allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            file.write(hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())
        os.replace(file.name, path)
    except OSError as exc:
        logger.warning("the vectors of the tags cannot be kept, so every start will compute them: %s", exc)
