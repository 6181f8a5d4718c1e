"""The multipart twins of `/analyze`: the same fields, with a `file` in place of the `url`."""

from typing import Annotated

from visionstack.forms import NO_NULL, PictureFile
from visionstack.schemas import AllOptions, BlipOptions, ClipOptions, TagList, YoloOptions


class ClipForm(ClipOptions):
    file: PictureFile
    tags: Annotated[TagList | None, NO_NULL] = None


class BlipForm(BlipOptions):
    file: PictureFile


class YoloForm(YoloOptions):
    file: PictureFile


class AllForm(AllOptions):
    file: PictureFile
