"""From rows of numbers to detections: clipped to the picture, without empty boxes, best first. Neither torch nor HTTP."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from visionstack.schemas import Detection


def to_detections(
    rows: npt.NDArray[np.float32], class_names: Mapping[int, str], *, width: int, height: int
) -> list[Detection]:
    """Rows of (x1, y1, x2, y2, confidence, class index) in pixels of a picture of `width` x `height`, as detections.

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
