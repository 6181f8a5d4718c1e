"""What the CLIP service reads from its environment."""

from pathlib import Path

from pydantic import Field, SecretStr

from visionstack.settings import ModelSettings, Runtime


class ClipSettings(ModelSettings):
    """`clip_pretrained` is open_clip's tag of the weights, or a file of them; a folder or hub model brings its own."""

    clip_model: str = Field("ViT-B-32", min_length=1)
    clip_pretrained: str = Field("laion2b_s34b_b79k", min_length=1)
    clip_tags_file: Path | None = None
    runtime: Runtime = "torch"
    huggingface_token: SecretStr | None = None
    # keeps the vocabulary's text vectors, so that only the first start computes them
    cache_dir: Path = Path("data/cache")
