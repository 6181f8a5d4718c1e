"""The detector behind the service: upright RGB pixels in, detections out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionstack.device import choose_device, choose_precision, precision_name, set_threads
from visionstack.model_service import ModelInfo, Pixels
from visionstack.openvino_runtime import refuse_other_devices
from visionstack.schemas import Detection

from .checkpoint import load_checkpoint, prepare_ultralytics
from .detections import to_detections
from .network import Network
from .settings import YoloSettings

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class DetectionTask:
    """A picture, uint8 RGB of shape (height, width, 3), and the confidence that a detection must exceed."""

    pixels: Pixels
    conf: float


class YoloModel:
    """A checkpoint of ultralytics that finds upright boxes: its detect, segment and pose networks, and RT-DETR."""

    def __init__(self, settings: YoloSettings) -> None:
        self._settings = settings

    def load(self) -> ModelInfo:
        threads = set_threads(self._settings)
        prepare_ultralytics()
        name = self._settings.yolo_model
        device = choose_device(self._settings.device)
        checkpoint = load_checkpoint(name, self._settings.weights_dir)
        # Less than fp32 moves boxes by up to half a pixel, and what lies at the threshold comes or goes: by order only.
        precision = "fp32" if self._settings.precision == "auto" else self._settings.precision
        dtype = choose_precision(precision, device)
        if self._settings.runtime == "openvino":
            refuse_other_devices(device)
            self._network = Network.on_openvino(name, checkpoint, device, dtype, threads)
        else:
            self._network = Network(name, checkpoint, device, dtype)
        self._class_names = checkpoint.class_names
        return ModelInfo(
            name=Path(name).name,
            device=str(device),
            precision=precision_name(self._network.dtype),
            runtime=self._network.runtime,
            # one picture fills a CPU: in a batch, the first would only wait for the last
            max_batch=1 if device.type == "cpu" else None,
        )

    def warm_up(self) -> None:
        side = self._network.side
        self.predict((side, side), [DetectionTask(np.full((side, side, 3), 114, np.uint8), 0.25)])

    def batch_key(self, pixels: Pixels) -> Shape:
        """The network's input shape for a picture; pictures of equal keys fit one batch. Any thread may call it."""
        return self._network.input_shape(pixels)

    def predict(self, key: Shape, items: Sequence[DetectionTask]) -> list[list[Detection]]:
        # The lowest threshold serves all: only a higher confidence suppresses a box, so what lies over a threshold does
        # not depend on what lies under it.
        found = self._network.detect([item.pixels for item in items], min(item.conf for item in items))
        return [
            to_detections(
                rows[rows[:, 4] > item.conf],
                self._class_names,
                width=item.pixels.shape[1],
                height=item.pixels.shape[0],
            )
            for rows, item in zip(found, items, strict=True)
        ]
