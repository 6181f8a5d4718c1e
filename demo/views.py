"""Random views of the thumbnails: crop, light, blur and noise, a whole batch at a time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def view(
    thumbs: NDArray[np.uint8],
    side: int,
    smallest_crop: float,
    rng: torch.Generator,
    *,
    colour: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised pictures `[n, 3, side, side]`, each keeping at least `smallest_crop` per side,
    and the part of each that was kept, `[n, 4]` as x1, y1, x2, y2 in shares of the picture.

    There is no mirroring: which side a thing stands on is part of what reverse search tells apart.
    """
    batch = torch.from_numpy(thumbs).permute(0, 3, 1, 2).float().div_(255)
    n = len(batch)
    keep = smallest_crop + (1 - smallest_crop) * torch.rand(n, 2, generator=rng)
    shift = (torch.rand(n, 2, generator=rng) * 2 - 1) * (1 - keep)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = keep[:, 0], keep[:, 1]
    theta[:, :, 2] = shift
    # A third of the pictures pass through a smaller size, as copies scaled down have.
    if torch.rand((), generator=rng) < 0.33:
        low = int(side * (0.55 + 0.4 * float(torch.rand((), generator=rng))))
        small = F.interpolate(batch, (low, low), mode="bilinear", antialias=True)
        batch = F.interpolate(small, (side, side), mode="bilinear")
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    out = F.grid_sample(batch, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    gain = 1 + (torch.rand(n, 3, 1, 1, generator=rng) - 0.5) * colour
    bright = (torch.rand(n, 1, 1, 1, generator=rng) - 0.5) * colour
    out = out * gain + bright
    grain = torch.rand(n, 1, 1, 1, generator=rng) * 0.03
    out = (out + torch.randn(out.shape, generator=rng) * grain).clamp_(0, 1)
    middle = (shift + 1) / 2
    kept = torch.cat([middle - keep / 2, middle + keep / 2], dim=1)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (out - mean) / std, kept
