"""The gateway: the stack's only public service. Run it with `uvicorn main:app`."""

from gateway_service.app import create_app
from gateway_service.settings import GatewaySettings
from visionstack.settings import load_settings
from visionstack.web import configure_logging

settings = load_settings(GatewaySettings)
configure_logging("gateway", log_format=settings.log_format, log_level=settings.log_level)
app = create_app(settings)
