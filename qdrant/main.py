"""The vector service. Run it with `uvicorn main:app`; another store goes in here, in place of these two."""

from pathlib import Path

from qdrant_service.app import create_app
from qdrant_service.edge_store import QdrantEdgeStore
from qdrant_service.embedder import ClipEmbedder
from qdrant_service.server_store import QdrantServerStore
from qdrant_service.settings import QdrantServiceSettings
from qdrant_service.store import VectorStore
from visionstack.peers import Peer
from visionstack.settings import load_settings
from visionstack.web import configure_logging

settings = load_settings(QdrantServiceSettings)
configure_logging("qdrant-svc", log_format=settings.log_format, log_level=settings.log_level)

store: VectorStore
if settings.qdrant_url:
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    store = QdrantServerStore(settings.qdrant_url, api_key=key, timeout_s=settings.store_timeout_s)
else:
    store = QdrantEdgeStore(
        Path(settings.qdrant_path), timeout_s=settings.store_timeout_s, index_after=settings.qdrant_index_after
    )

app = create_app(settings, store, ClipEmbedder(Peer("clip", settings.clip_url, timeout_s=settings.clip_timeout_s)))
