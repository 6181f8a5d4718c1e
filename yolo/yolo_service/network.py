"""A checkpoint's network, ready to run: letterbox, forward pass, choice of boxes.

Given the same pixels it finds what ultralytics' `predict` finds, and is made of its parts where they can be had singly.
The predictor itself is not used: it forces a thread count on the whole process and knows no bf16. Nor is its
non-maximum suppression: that needs torchvision, which doubles the time to start and takes 160 MB, or else a second for
a picture full of boxes. All but `input_shape` belongs to the one thread that runs the model.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from visionstack.device import precision_name
from visionstack.model_service import ModelLoadError, Pixels
from visionstack.openvino_runtime import compile_network
from visionstack.settings import Runtime

from .checkpoint import Checkpoint
from .detections import Rows, suppress_overlaps

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Of the likeliest boxes of noise, by how many pixels and how much confidence OpenVINO may differ: medians.
_COMPARED = 100
_AGREEMENT = {"fp32": (0.1, 0.001), "bf16": (2.0, 0.1), "fp16": (0.5, 0.02)}

# what predict() takes by default
_MAX_IOU = 0.7
_MAX_DETECTIONS = 300


class Network:
    """Raises `ModelLoadError` where the checkpoint's network does not find upright boxes in RGB pictures.

    `dtype` is what was asked for, or fp32 where the network has no decoding that keeps its boxes exact in less.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, device: "torch.device", dtype: "torch.dtype") -> None:
        import torch
        from ultralytics.data.augment import LetterBox
        from ultralytics.nn.modules.head import OBB, Detect, RTDETRDecoder
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
        if getattr(network, "end2end", False):  # only a fused one cannot be switched
            raise ModelLoadError(f"YOLO_MODEL={name} was saved after fusing; name the checkpoint as it was trained.")
        if dtype != torch.float32 and type(network) not in (DetectionModel, PoseModel, SegmentationModel):
            logger.info("%s runs in fp32: its kind of network loses its boxes in less", name)
            dtype = torch.float32
        network.requires_grad_(False).to(device=device, dtype=dtype, memory_format=torch.channels_last)
        if dtype != torch.float32:
            _decode_in_fp32(head)

        self.device, self.dtype = device, dtype
        self.runtime: Runtime = "torch"
        self._network, self._head = network, head
        self._run: Callable[[Pixels], torch.Tensor] = self._run_on_torch
        self._class_count = getattr(head, "nc", 0)
        self._is_transformer = isinstance(head, RTDETRDecoder)
        stride = max(32, int(network.stride.max())) if hasattr(network, "stride") else 32
        self.side = -(-checkpoint.side // stride) * stride
        # RT-DETR takes the picture stretched to a square, the others the smallest rectangle that holds it
        self._letterbox: Any = LetterBox(
            self.side, auto=not self._is_transformer, scale_fill=self._is_transformer, stride=stride
        )

    @classmethod
    def on_openvino(
        cls, name: str, checkpoint: Checkpoint, device: "torch.device", dtype: "torch.dtype", threads: int
    ) -> Self:
        """The same, run by OpenVINO on this CPU where it can; RT-DETR stays with torch, in fp32.

        Raises `ModelLoadError` where its answers would differ from torch's by more than `dtype` explains.
        """
        import torch

        network = cls(name, checkpoint, device, torch.float32)
        if network._is_transformer:
            logger.info("%s runs on torch: OpenVINO does not know all of its kind of network", name)
        else:
            network._use_openvino(name, dtype, threads)
        return network

    def _use_openvino(self, name: str, dtype: "torch.dtype", threads: int) -> None:
        import torch

        precision = precision_name(dtype)
        example = torch.zeros(1, 3, self.side, self.side)
        network = _head_values_of(self._network)
        run = compile_network(network, example, (-1, 3, -1, -1), precision=precision, threads=threads)

        def run_on_openvino(boxed: Pixels) -> torch.Tensor:
            distances, logits = run(np.divide(boxed.transpose(0, 3, 1, 2), 255, dtype=np.float32))
            return _decode(self._head, torch.from_numpy(distances), torch.from_numpy(logits), boxed.shape[1:3])

        with torch.inference_mode():
            noise = np.random.default_rng(0).integers(0, 256, (1, self.side, self.side, 3), np.uint8)
            expected, given = self._run_on_torch(noise)[0], run_on_openvino(noise)[0]
        confidence, class_index = expected[4 : 4 + self._class_count].max(0)
        best = confidence.topk(min(_COMPARED, len(confidence))).indices
        shift = (given[:4, best] - expected[:4, best]).abs().median().item()
        error = (given[4 + class_index[best], best] - confidence[best]).abs().median().item()
        logger.info("%s on OpenVINO: boxes differ from torch's by %.3f pixels, confidences by %.5f", name, shift, error)
        limits = _AGREEMENT[precision]
        if shift > limits[0] or error > limits[1]:
            raise ModelLoadError(
                f"YOLO_MODEL={name} answers differently on OpenVINO (boxes by {shift:.2f} pixels, confidences by "
                f"{error:.3f}); set RUNTIME=torch."
            )
        self._run, self.dtype, self.runtime = run_on_openvino, dtype, "openvino"

    def input_shape(self, pixels: Pixels) -> tuple[int, int]:
        """Height and width of the network's input for this picture."""
        fit = self._letterbox.get_params({"img": pixels})
        width, height = fit["new_unpad"]
        return height + fit["top"] + fit["bottom"], width + fit["left"] + fit["right"]

    def detect(self, pictures: Sequence[Pixels], conf: float) -> list[Rows]:
        """What is found in each picture with more confidence than `conf`, at most 300 boxes.

        The pictures are uint8 RGB of shape (height, width, 3) and of one input shape. Rows are x1, y1, x2, y2 in the
        picture's pixels, confidence, class index.
        """
        boxed = np.stack([self._letterbox(image=picture) for picture in pictures])
        choose = self._choose_queries if self._is_transformer else self._choose_anchors
        return [
            choose(predictions, picture, (boxed.shape[1], boxed.shape[2]), conf)
            for predictions, picture in zip(self._forward(boxed), pictures, strict=True)
        ]

    def _forward(self, boxed: Pixels) -> "torch.Tensor":
        """The network's answer to uint8 RGB of shape (n, height, width, 3), one entry a picture."""
        import torch

        with torch.inference_mode():
            return self._run(boxed)

    def _run_on_torch(self, boxed: Pixels) -> "torch.Tensor":
        import torch

        batch = torch.from_numpy(boxed).to(self.device).permute(0, 3, 1, 2)
        output: Any = self._network(batch.to(self.dtype).div_(255))
        while isinstance(output, tuple | list):  # what concerns boxes comes first, then masks and raw values
            output = output[0]
        assert isinstance(output, torch.Tensor)
        return output

    def _choose_anchors(
        self, predictions: "torch.Tensor", picture: Pixels, input_shape: tuple[int, int], conf: float
    ) -> Rows:
        """From centre, size and class confidences of shape (4 + classes + more, anchors), in input pixels."""
        import torch
        from ultralytics.utils.ops import scale_boxes

        confidence, class_index = predictions[4 : 4 + self._class_count].max(0)
        candidates = torch.cat([predictions[:4], confidence[None], class_index[None]])[:, confidence > conf]
        rows = suppress_overlaps(_as_rows(candidates.T), max_iou=_MAX_IOU, limit=_MAX_DETECTIONS)
        scale_boxes(input_shape, rows[:, :4], picture.shape)
        return rows

    def _choose_queries(
        self, predictions: "torch.Tensor", picture: Pixels, input_shape: tuple[int, int], conf: float
    ) -> Rows:
        """From rows of centre, size, confidence and class index, as fractions of the picture."""
        height, width, _ = picture.shape
        rows = _as_rows(predictions[predictions[:, 4] > conf][:_MAX_DETECTIONS])
        rows[:, :4] *= np.array([width, height, width, height], np.float32)
        return rows


def _as_rows(boxes: "torch.Tensor") -> Rows:
    """Rows from centre x, centre y, width, height, confidence, class index."""
    rows: Rows = boxes.float().cpu().numpy()
    half = rows[:, 2:4] / 2
    return np.hstack([rows[:, :2] - half, rows[:, :2] + half, rows[:, 4:]])


def _head_values_of(network: Any) -> "torch.nn.Module":
    """The network up to what its head decodes: distances of shape (n, 4 * bins, anchors), class logits."""
    import torch

    class HeadValues(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output: Any = self.network(pictures)
            while not isinstance(output, dict):  # beside what is decoded of it, and what concerns masks and poses
                output = output[-1]
            return output["boxes"], output["scores"]

    return HeadValues().eval()


def _decode(
    head: Any, distances: "torch.Tensor", logits: "torch.Tensor", input_shape: tuple[int, ...]
) -> "torch.Tensor":
    """What a head makes of its values, without masks and poses: of shape (n, 4 + classes, anchors), in fp32."""
    from ultralytics.nn.modules.head import Detect

    # of the feature maps only the shapes are read
    maps = [
        distances.new_empty((1, 1, *(-(-side // int(stride)) for side in input_shape)))
        for stride in head.stride.tolist()
    ]
    values: dict[str, Any] = {"boxes": distances, "scores": logits, "feats": maps}
    decoded: torch.Tensor = Detect._inference(head, values)
    return decoded


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
