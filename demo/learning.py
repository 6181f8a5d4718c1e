"""What the trainings share: the order of the pictures, the optimizer, and the precision of the passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import distributed

from visionstack.device import choose_precision

WARM_UP_STEPS = 200


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
    """AdamW with a rate that the caller gives; weights decay in matrices only, without embeddings.

    All gradients lie in one row of numbers, which the processes of a training average in one message.
    """

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        heavy: list[torch.nn.Parameter] = []
        light: list[torch.nn.Parameter] = []
        for name, parameter in named:
            (heavy if parameter.ndim > 1 and "embedding" not in name else light).append(parameter)
        groups: list[dict[str, Any]] = [{"params": heavy, "weight_decay": 0.05}, {"params": light, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        parameters = [*heavy, *light]
        sizes = [parameter.numel() for parameter in parameters]
        self.gradients = torch.zeros(sum(sizes))
        for parameter, row in zip(parameters, self.gradients.split(sizes), strict=True):
            parameter.grad = row.view_as(parameter)

    def learn(self, rate: float) -> None:
        """One step down the gradients that have come together since the last one."""
        if distributed.is_initialized():
            distributed.all_reduce(self.gradients)
            self.gradients /= distributed.get_world_size()
        self.gradients *= (1 / self.gradients.norm()).clamp(max=1.0)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.gradients.zero_()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up, then cosine decay to a fiftieth."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
