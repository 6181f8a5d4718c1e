"""The clip service. Run it with `uvicorn main:app`; another model goes in here, in place of `ClipModel`."""

from clip_service.app import create_app
from clip_service.model import ClipModel
from clip_service.settings import ClipSettings
from visionstack.settings import load_settings
from visionstack.web import configure_logging

settings = load_settings(ClipSettings)
configure_logging("clip", log_format=settings.log_format, log_level=settings.log_level)
app = create_app(settings, ClipModel(settings))
