"""Linear layers for a CPU: weights laid out once for oneDNN, which otherwise does it again on every call.

A decoder multiplies a few rows by large weights, so that takes half of its time. And a row's result no longer depends
on the rows that share its batch: a picture gets the same caption alone and among others.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

# With fewer, other kernels would run, which are no faster and round differently.
_LEAST_ROWS = 4


class PackedLinear(nn.Module):
    """`nn.Linear` in inference. Cannot be moved or cast."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features = layer.out_features
        # the operators of torch's own compiler; without them, `pack` goes without
        operators: Any = torch.ops.mkldnn
        self._multiply = operators._linear_pointwise
        self._weight: Tensor = operators._reorder_linear_weight(layer.weight.detach())
        self._bias = layer.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if x.ndim == 2 and rows < _LEAST_ROWS:
            x = pad(x, (0, 0, 0, _LEAST_ROWS - rows))
        result: Tensor = self._multiply(x, self._weight, self._bias, "none", [], "")
        return result[:rows]


def pack(*layers: nn.Linear) -> nn.Module:
    """The layers, which share their input, as one: packed where that can be, a plain `nn.Linear` elsewhere."""
    layer = layers[0] if len(layers) == 1 else _join(layers)
    if layer.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return layer
    try:
        packed = PackedLinear(layer)
        packed(torch.zeros(1, layer.in_features, dtype=layer.weight.dtype))
    except (AttributeError, RuntimeError):  # a build or a processor without these operators for this precision
        return layer
    return packed


def unmap(module: nn.Module) -> None:
    """Copy what is left of a module whose large layers are packed: one small tensor keeps its whole file mapped."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu":  # elsewhere nothing is mapped, nor packed
            tensor.data = tensor.data.clone()


def _join(layers: tuple[nn.Linear, ...]) -> nn.Linear:
    joined = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), device="meta")
    joined.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return joined
