"""The yolo service. Run it with `uvicorn main:app`; another detector goes in here, in place of `YoloModel`."""

from visionstack.settings import load_settings
from visionstack.web import configure_logging
from yolo_service.app import create_app
from yolo_service.model import YoloModel
from yolo_service.settings import YoloSettings

settings = load_settings(YoloSettings)
configure_logging("yolo", log_format=settings.log_format, log_level=settings.log_level)
app = create_app(settings, YoloModel(settings))
