"""The blip service. Run it with `uvicorn main:app`; another captioning model goes in here, in place of `BlipModel`."""

from blip_service.app import create_app
from blip_service.model import BlipModel
from blip_service.settings import BlipSettings
from visionstack.settings import load_settings
from visionstack.web import configure_logging

settings = load_settings(BlipSettings)
configure_logging("blip", log_format=settings.log_format, log_level=settings.log_level)
app = create_app(settings, BlipModel(settings))
