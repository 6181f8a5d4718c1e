"""What the vector service reads from its environment."""

from pydantic import Field, SecretStr

from visionstack.settings import CommaSeparated, ServiceSettings


class QdrantServiceSettings(ServiceSettings):
    # empty: the embedded store
    qdrant_url: str = Field("", pattern=r"^(https?://[^\s/?#@]+[^\s?#]*)?$")
    qdrant_api_key: SecretStr | None = None
    qdrant_path: str = Field("data/qdrant", min_length=1)
    # the embedded store: points that a search compares one by one before they get an index; 0: never
    qdrant_index_after: int = Field(20_000, ge=0)
    # one call to the store, and one embedding by the CLIP service
    store_timeout_s: float = Field(10.0, gt=0, le=600)
    clip_url: CommaSeparated = ("http://clip:8000",)
    clip_timeout_s: float = Field(30.0, gt=0, le=600)
