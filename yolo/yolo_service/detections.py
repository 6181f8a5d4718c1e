"""From rows of numbers to detections, with numpy alone.

A row is x1, y1, x2, y2 in pixels, confidence, class index.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from visionstack.schemas import Detection

Rows = npt.NDArray[np.float32]

# Farther apart than any two boxes of a picture. As large as it needs to be, not larger: it costs fp32 digits.
_CLASS_OFFSET = np.float32(7680)


def suppress_overlaps(candidates: Rows, *, max_iou: float, limit: int) -> Rows:
    """The best `limit` rows, best first, of which no two of one class overlap by more than `max_iou`.

    Non-maximum suppression: the best row is kept, those that overlap it too much are dropped, and so on. The numbers
    are those of torchvision's; it stops at `limit` rows, so that even thousands of candidates take milliseconds.
    """
    ranked = candidates[np.argsort(-candidates[:, 4], kind="stable")]
    # boxes of different classes never meet when each class has its own corner of the plane
    x1, y1, x2, y2 = (ranked[:, :4] + ranked[:, 5:] * _CLASS_OFFSET).T.copy()
    areas = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(ranked), np.bool_)
    kept: list[int] = []
    for best in range(len(ranked)):
        if not alive[best]:
            continue
        kept.append(best)
        if len(kept) == limit:
            break
        rest = slice(best + 1, None)
        shared_width = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        shared_height = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        shared = shared_width.clip(0) * shared_height.clip(0)
        with np.errstate(divide="ignore", invalid="ignore"):  # boxes without area
            iou = shared / (areas[best] + areas[rest] - shared)
        alive[rest] &= ~(iou > np.float32(max_iou))
    return ranked[kept]


def to_detections(rows: Rows, class_names: Mapping[int, str], *, width: int, height: int) -> list[Detection]:
    """Rows in pixels of a picture of `width` x `height` as detections, clipped to the picture, best first.

    Corners are rounded to hundredths of a pixel. A box that has no area inside the picture is dropped, and so is one
    that is not a number.
    """
    corners = rows[:, :4].astype(np.float64).clip(0, [width, height, width, height]).round(2)
    # comparisons with NaN are false
    has_area = (corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])
    kept = np.flatnonzero(has_area)
    kept = kept[np.argsort(-rows[kept, 4], kind="stable")]
    return [
        Detection(
            class_name=class_names.get(int(rows[i, 5]), f"class{int(rows[i, 5])}"),
            confidence=round(float(rows[i, 4]), 6),
            bbox=tuple(corners[i].tolist()),
        )
        for i in kept
    ]
