"""An image tower on a CUDA device, replayed: one launch a batch in place of some hundreds.

The kernels of a small tower take less time than Python needs to launch them. A CUDA graph launches all of them at once
for one batch size. So one is recorded for each of a few sizes, a batch is padded to the next of them, and what pads it
is cut off again.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

logger = logging.getLogger(__name__)

Tower = Callable[[Tensor], Tensor]
"""Inputs (pictures, ...) to outputs (pictures, ...), each row by itself."""

_LEAST_COSINE = 0.999
_WARM_UPS = 3


class BucketedTower:
    """A tower that is only ever run at a few batch sizes."""

    def __init__(self, record: Callable[[Tensor], Tower], example: Tensor, most: int) -> None:
        """`record` makes the tower for one shape; `example` (1, ...) is an input, `most` the largest batch."""
        self.sizes = [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]
        # the largest first: the smaller ones fit into the memory that it takes
        self._towers = {size: record(example.repeat_interleave(size, 0)) for size in reversed(self.sizes)}

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.cat([self._run(part) for part in inputs.split(self.sizes[-1])])

    def _run(self, part: Tensor) -> Tensor:
        size = next(size for size in self.sizes if size >= len(part))
        padding = part.new_zeros((size - len(part), *part.shape[1:]))
        return self._towers[size](torch.cat([part, padding]))[: len(part)]


def replayed(tower: Tower, example: Tensor, most: int) -> Tower:
    """The tower on CUDA graphs, or as it is where it cannot be recorded or would then give something else.

    `example` (1, ...) is an input on the tower's device. Call it, and what it returns, in inference mode and from one
    thread.
    """
    noise = torch.randn((most + 1, *example.shape[1:]), device=example.device).to(example.dtype)
    try:
        graphs = BucketedTower(_recorder(tower), example, most)
        given, expected = (run(noise).flatten(1).float() for run in (graphs, tower))
        cosine = float(cosine_similarity(given, expected).min())
    except RuntimeError as exc:
        logger.warning("no CUDA graphs, which costs speed alone: %s", exc)
        return tower
    if not cosine >= _LEAST_COSINE:
        logger.warning("no CUDA graphs, which costs speed alone: they give other vectors (cosine %.4f)", cosine)
        return tower
    logger.info("the image tower runs on CUDA graphs for batches of %s", graphs.sizes)
    return graphs


def _recorder(tower: Tower) -> Callable[[Tensor], Tower]:
    """Records graphs that share their memory: what one gives is copied before another one is replayed."""
    pool = torch.cuda.graph_pool_handle()

    def record(inputs: Tensor) -> Tower:
        with torch.cuda.device(inputs.device):
            # libraries choose their kernels and take their memory at the first calls, which no graph may hold
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    tower(inputs)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                outputs = tower(inputs)

        def replay(batch: Tensor) -> Tensor:
            with torch.cuda.device(inputs.device):
                inputs.copy_(batch)
                graph.replay()
                return outputs.clone()

        return replay

    return record
