"""Small untrained checkpoints that find many boxes: what the detector's tests run, through the real loading code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visionstack.schemas import Detection
from yolo_service.checkpoint import prepare_ultralytics

CLASS_NAMES = {0: "cat", 1: "dog", 2: "boat", 3: "kite"}
SIDE = 320

# RT-DETR has no small published size
_TINY_RTDETR: dict[str, Any] = {
    "nc": len(CLASS_NAMES),
    "backbone": [
        [-1, 1, "HGStem", [8, 16]],
        [-1, 1, "DWConv", [32, 3, 2, 1, False]],
        [-1, 1, "DWConv", [32, 3, 2, 1, False]],
        [-1, 1, "DWConv", [32, 3, 2, 1, False]],
    ],
    "head": [[[1, 2, 3], 1, "RTDETRDecoder", ["nc", 32, 50, 4, 4, 2]]],
}


def blocks(height: int, width: int, seed: int = 0, *, cell: int = 16) -> npt.NDArray[np.uint8]:
    """A picture of coloured squares, uint8 RGB of shape (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // cell + 1, width // cell + 1, 3), np.uint8)
    return coarse.repeat(cell, 0).repeat(cell, 1)[:height, :width].copy()


def make_network(config: str, *, finds: bool = True) -> Any:
    """The network of an ultralytics configuration, random; where it `finds`, with scores of a trained one's spread."""
    prepare_ultralytics()
    import torch
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    network: Any
    kinds = {"segment": tasks.SegmentationModel, "pose": tasks.PoseModel, "obb": tasks.OBBModel}
    task = {"seg": "segment", "cls": "classify"}.get(ending := config.rpartition("-")[2], ending)
    if config == "rtdetr":
        network = tasks.RTDETRDetectionModel(_TINY_RTDETR, verbose=False)
    elif task == "classify":
        network = tasks.ClassificationModel(f"{config}.yaml", nc=len(CLASS_NAMES), verbose=False)
    else:
        network = kinds.get(task, tasks.DetectionModel)(f"{config}.yaml", nc=len(CLASS_NAMES), verbose=False)
        if finds:
            _spread(network)
    network.task = task if task in kinds or task == "classify" else "detect"
    if hasattr(network.model[-1], "one2one_cv3"):
        network.end2end = True  # as published: predict() switches it off
    network.names = dict(CLASS_NAMES)
    return network.eval()


def _spread(network: Any) -> None:
    """Fit the norms to pictures, then bring each class branch's logits to mean -2 and standard deviation 1."""
    import torch

    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    pictures = np.full((6, SIDE, SIDE, 3), 114, np.uint8)  # with borders like those of the letterbox
    for seed, picture in enumerate(pictures):
        height = SIDE - 16 * (seed % 4)
        picture[:height] = blocks(height, SIDE, seed, cell=8 << seed % 3)
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255

    def fit(conv: Any, _: Any, logits: torch.Tensor) -> torch.Tensor:
        scale = 1 / logits.std()
        conv.weight *= scale
        conv.bias.copy_((conv.bias - logits.mean()) * scale - 2)
        return (logits - logits.mean()) * scale - 2

    with torch.no_grad():
        network.train()(batch)
        head = network.model[-1]
        branches = [*head.cv3, *(getattr(head, "one2one_cv3", None) or ())]
        for branch in branches:
            torch.nn.init.normal_(branch[-1].weight)
        hooks = [branch[-1].register_forward_hook(fit) for branch in branches]
        network.eval()(batch)
        for hook in hooks:
            hook.remove()


def write_checkpoint(network: Any, path: Path, **train_args: Any) -> Path:
    """As ultralytics writes it: half precision, with the arguments of a training."""
    import torch

    content = {"epoch": -1, "model": network.half(), "ema": None, "train_args": {"imgsz": SIDE, **train_args}}
    torch.save(content, path)
    return path


def assert_alike(
    found: Sequence[Detection], expected: Sequence[Detection], *, pixels: float = 0.05, confidence: float = 1e-4
) -> None:
    """The same detections, though computed in another order of summation: near ties may have changed places."""
    assert len(found) == len(expected)
    for one in found:
        assert any(
            one.class_name == other.class_name
            and abs(one.confidence - other.confidence) < confidence
            and all(abs(a - b) < pixels for a, b in zip(one.bbox, other.bbox, strict=True))
            for other in expected
        ), one
