"""A checkpoint's network, ready to run: letterbox, forward pass, and the choice of boxes, made of ultralytics' parts.

Given the same pixels it finds what ultralytics' `predict` finds. That predictor itself is not used: it forces a thread
count on the whole process and knows no bf16. All but `input_shape` belongs to the one thread that runs the model.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from visionstack.model_service import ModelLoadError, Pixels

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# what predict() takes by default
_MAX_IOU = 0.7
_MAX_DETECTIONS = 300

Rows = npt.NDArray[np.float32]


class Network:
    """Raises `ModelLoadError` where the checkpoint's network does not find upright boxes in RGB pictures.

    `dtype` is what was asked for, or fp32 where the network has no decoding that keeps its boxes exact in less.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, device: "torch.device", dtype: "torch.dtype") -> None:
        import torch
        import torchvision  # noqa: F401 - non_max_suppression uses its fast kernel only where it is imported
        from ultralytics.data.augment import LetterBox
        from ultralytics.nn.modules.head import OBB, Detect, Pose, RTDETRDecoder, Segment, YOLOESegment
        from ultralytics.nn.tasks import DetectionModel, PoseModel, SegmentationModel

        network: Any = checkpoint.network
        head = network.model[-1] if hasattr(network, "model") else None
        if not isinstance(head, Detect | RTDETRDecoder) or isinstance(head, OBB):
            raise ModelLoadError(f"YOLO_MODEL={name} does not find objects in upright boxes; name a detection model.")
        if (channels := network.yaml.get("channels", 3)) != 3:
            raise ModelLoadError(f"YOLO_MODEL={name} wants {channels} colour channels; name a model for RGB pictures.")
        if hasattr(network, "end2end"):
            network.end2end = False  # as predict() does: the head that non-maximum suppression follows
        network.fuse(verbose=False)
        if dtype != torch.float32 and type(network) not in (DetectionModel, PoseModel, SegmentationModel):
            logger.warning("%s runs in fp32: its kind of network loses its boxes in less", name)
            dtype = torch.float32
        network.requires_grad_(False).to(device=device, dtype=dtype, memory_format=torch.channels_last)
        if dtype != torch.float32:
            _decode_in_fp32(head)

        self.device, self.dtype = device, dtype
        self._network = network
        # masks and keypoints have channels after the classes; 0 stands for classes alone
        has_more = isinstance(head, Pose | Segment | YOLOESegment)
        self._class_count = len(checkpoint.class_names) if has_more else 0
        self._is_transformer = isinstance(head, RTDETRDecoder)
        stride = max(32, int(network.stride.max())) if hasattr(network, "stride") else 32
        self.side = -(-checkpoint.side // stride) * stride
        # RT-DETR takes the picture stretched to a square, the others the smallest rectangle that holds it
        self._letterbox = LetterBox(
            self.side, auto=not self._is_transformer, scale_fill=self._is_transformer, stride=stride
        )

    def input_shape(self, pixels: Pixels) -> tuple[int, int]:
        """Height and width of the network's input for this picture."""
        fit = self._letterbox.get_params({"img": pixels})
        width, height = fit["new_unpad"]
        return height + fit["top"] + fit["bottom"], width + fit["left"] + fit["right"]

    def detect(self, pictures: Sequence[Pixels], conf: float) -> list[Rows]:
        """What is found in each picture with more confidence than `conf`, best first.

        The pictures are uint8 RGB of shape (height, width, 3) and of one input shape. Rows are x1, y1, x2, y2 in the
        picture's pixels, confidence, class index.
        """
        import torch

        boxed = np.stack([self._letterbox(image=picture) for picture in pictures])
        with torch.inference_mode():
            batch = torch.from_numpy(boxed).to(self.device).permute(0, 3, 1, 2)
            predictions = self._forward(batch.to(self.dtype).div_(255))
            choose = self._best_queries if self._is_transformer else self._suppress
            return [rows.cpu().numpy() for rows in choose(predictions, batch, pictures, conf)]

    def _forward(self, batch: "torch.Tensor") -> "torch.Tensor":
        """The network's predictions for RGB in 0 to 1, of shape (n, 3, height, width)."""
        output = self._network(batch)
        while isinstance(output, tuple | list):  # predictions come first, then masks and raw values
            output = output[0]
        return output

    def _suppress(
        self, predictions: "torch.Tensor", batch: "torch.Tensor", pictures: Sequence[Pixels], conf: float
    ) -> "list[torch.Tensor]":
        from ultralytics.utils.nms import non_max_suppression
        from ultralytics.utils.ops import scale_boxes

        found = non_max_suppression(
            predictions, conf, _MAX_IOU, max_det=_MAX_DETECTIONS, nc=self._class_count
        )
        for rows, picture in zip(found, pictures, strict=True):
            scale_boxes(batch.shape[2:], rows[:, :4], picture.shape)
        return [rows[:, :6] for rows in found]

    def _best_queries(
        self, predictions: "torch.Tensor", batch: "torch.Tensor", pictures: Sequence[Pixels], conf: float
    ) -> "list[torch.Tensor]":
        from ultralytics.utils.ops import xywh2xyxy

        found = []
        for queries, (height, width, _) in zip(predictions, (picture.shape for picture in pictures), strict=True):
            rows = queries[queries[:, 4] > conf][:_MAX_DETECTIONS]
            rows[:, :4] = xywh2xyxy(rows[:, :4]) * rows.new_tensor([width, height, width, height])
            found.append(rows)
        return found


def _decode_in_fp32(head: Any) -> None:
    """Let a head of reduced precision compute boxes and confidences in fp32.

    Beyond 256, neighbouring bf16 numbers are 2 pixels apart, and confidences above 0.5 are 0.004 apart: the
    convolutions do not suffer from that, the last step does.
    """
    import torch

    decode = head._inference
    head.dfl.float()

    def decode_in_fp32(raw: dict[str, Any]) -> "torch.Tensor":
        exact = {key: value.float() for key, value in raw.items() if isinstance(value, torch.Tensor)}
        # only the shapes of the feature maps are read, and the dtype of the grid follows theirs
        grids = [features.new_empty((1, 1, *features.shape[2:]), dtype=torch.float32) for features in raw["feats"]]
        return decode({**exact, "feats": grids})  # type: ignore[no-any-return]

    head._inference = decode_in_fp32
