"""What the trainings share: the order of the pictures, the optimizer, and the precision of the passes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from visionstack.device import choose_precision

WARM_UP_STEPS = 60


def autocast() -> torch.autocast:
    """bfloat16 where the processor multiplies it; elsewhere it is emulated, ten times slower than float32."""
    precision = choose_precision("auto", torch.device("cpu"))
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """`steps` lists of `size` picture numbers below `count`, shuffled anew at every pass."""
    lots = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < size:
            order = lots.permutation(count).tolist()
        yield order[:size]
        order = order[size:]


class Optimizer:
    """AdamW with warm-up and cosine decay; weights decay in matrices only, without embeddings.

    Each module comes with the share of the common learning rate it takes.
    """

    def __init__(self, modules: list[tuple[torch.nn.Module, float]], steps: int, *, peak_rate: float = 1e-3) -> None:
        groups: list[dict[str, Any]] = []
        self.parameters: list[torch.nn.Parameter] = []
        for module, share in modules:
            heavy: list[torch.nn.Parameter] = []
            light: list[torch.nn.Parameter] = []
            for name, parameter in module.named_parameters():
                matrix = parameter.ndim > 1 and "embedding" not in name
                (heavy if matrix else light).append(parameter)
            groups.append({"params": heavy, "weight_decay": 0.05, "share": share})
            groups.append({"params": light, "weight_decay": 0.0, "share": share})
            self.parameters += [*heavy, *light]
        self.steps, self.step_number, self.peak_rate = steps, 0, peak_rate
        self.adam = torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.98))

    def learn(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`."""
        warm = min(1.0, (self.step_number + 1) / WARM_UP_STEPS)
        decay = 0.5 * (1 + math.cos(math.pi * self.step_number / self.steps))
        for group in self.adam.param_groups:
            group["lr"] = self.peak_rate * group["share"] * warm * (0.02 + 0.98 * decay)
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        self.step_number += 1
