"""What the blip service reads from its environment."""

from pydantic import Field, SecretStr

from visionstack.settings import ModelSettings


class BlipSettings(ModelSettings):
    """`blip_model` is a name on Hugging Face or a local folder, of BLIP's captioning architecture."""

    blip_model: str = Field("Salesforce/blip-image-captioning-base", min_length=1)
    huggingface_token: SecretStr | None = None
    # the first to queue waits for the whole batch, and the gain is small beyond
    max_batch: int = Field(8, ge=1, le=1024)
