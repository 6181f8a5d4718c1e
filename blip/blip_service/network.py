"""BLIP's two networks as this service runs them: the vision tower, and the text decoder one token at a time.

transformers has neither fused attention for BLIP nor a cache that beams can share, so both are here, built from the
modules of a loaded transformers model, which they take over, and equal to it within rounding. Which token is chosen is
decided in `decoding`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import BlipForConditionalGeneration
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextLayer, BlipTextLMHeadModel

from visionstack.cuda_graphs import Tower, replayed
from visionstack.packed import pack, unmap


class VisionTower:
    """Pictures to patch embeddings."""

    def __init__(self, model: BlipForConditionalGeneration, max_batch: int) -> None:
        """In inference mode; `max_batch` is the most pictures of a call."""
        self._module = model.vision_model
        layers: Any = self._module.encoder.layers
        for layer in layers:
            layer.self_attn = _FusedAttention(layer.self_attn)
            layer.mlp.fc1 = pack(layer.mlp.fc1)
            layer.mlp.fc2 = pack(layer.mlp.fc2)
        unmap(self._module)
        self._see: Tower = lambda pixels: self._module(pixel_values=pixels).last_hidden_state
        if model.device.type == "cuda":
            shape: Any = model.config.vision_config
            example = torch.zeros((1, 3, shape.image_size, shape.image_size), device=model.device, dtype=model.dtype)
            self._see = replayed(self._see, example, max_batch)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (pictures, 3, side, side), normalised, to embeddings (pictures, patches + 1, hidden)."""
        return self._see(pixels)


class _FusedAttention(nn.Module):
    """A vision layer's `BlipAttention` without its (heads, patches, patches) matrix in memory."""

    def __init__(self, attention: BlipAttention) -> None:
        super().__init__()
        self.heads: int = attention.num_heads
        self.scale: float = attention.scale
        self.qkv = pack(attention.qkv)
        self.projection = pack(attention.projection)

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        batch, patches, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, patches, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        context = scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.projection(context.transpose(1, 2).reshape(batch, patches, width)), None


class DecoderState:
    """What the decoder remembers of the captions it writes: `beams` rows for each picture, all equally long.

    Keys and values of the pictures are kept once and shared by their beams; those of the tokens are kept for each row.
    """

    def __init__(self, pictures: list[tuple[Tensor, Tensor]], capacity: int) -> None:
        # for each layer: keys and values, (pictures, heads, patches, channels)
        self.pictures = pictures
        self.beams = 1
        self.length = 0
        count, heads, _, channels = pictures[0][0].shape
        # (keys or values, layer, row, head, token, channel)
        self.tokens = pictures[0][0].new_empty((2, len(pictures), count, heads, capacity, channels))

    def reorder(self, parents: Tensor) -> None:
        """Let row i continue what row `parents[i]` has written. More parents than rows make more beams."""
        kept = self.tokens[..., : self.length, :].index_select(2, parents)
        if kept.shape[2] != self.tokens.shape[2]:
            self.beams = kept.shape[2] // self.pictures[0][0].shape[0]
            self.tokens = self.tokens.new_empty((*kept.shape[:4], *self.tokens.shape[4:]))
        self.tokens[..., : self.length, :] = kept


class TextDecoder:
    """Writes captions: `start` with pictures, then `step` by step."""

    def __init__(self, model: BlipTextLMHeadModel) -> None:
        embeddings: Any = model.bert.embeddings
        head: Any = model.cls.predictions
        layers: Any = model.bert.encoder.layer
        self._words: Tensor = embeddings.word_embeddings.weight
        self._positions: Tensor = embeddings.position_embeddings.weight
        self._norm = embeddings.LayerNorm
        self._layers = [_DecoderLayer(layer) for layer in layers]
        head.transform.dense = pack(head.transform.dense)
        self._transform = head.transform
        self._vocabulary = pack(head.decoder)
        self.vocabulary_size: int = head.decoder.out_features
        self.most_tokens: int = embeddings.position_embeddings.num_embeddings
        for module in (embeddings, head.transform):
            unmap(module)

    def start(self, pictures: Tensor, max_tokens: int) -> DecoderState:
        """An empty caption, with room for `max_tokens`, for each of `pictures` (pictures, patches, hidden)."""
        return DecoderState([layer.look_at(pictures) for layer in self._layers], max_tokens)

    def step(self, state: DecoderState, tokens: Tensor) -> Tensor:
        """Append `tokens` (rows,) to the captions; the logits of what comes next, fp32, (rows, vocabulary)."""
        x = self._norm(embedding(tokens, self._words) + self._positions[state.length])
        for index, layer in enumerate(self._layers):
            x = layer(x, state, index)
        state.length += 1
        logits: Tensor = self._vocabulary(self._transform(x))
        return logits.float()


class _DecoderLayer:
    def __init__(self, layer: BlipTextLayer) -> None:
        attention, cross = layer.attention, layer.crossattention
        self._shape: tuple[int, int] = attention.self.num_attention_heads, attention.self.attention_head_size
        self._qkv = pack(attention.self.query, attention.self.key, attention.self.value)
        self._out, self._out_norm = pack(attention.output.dense), attention.output.LayerNorm
        self._cross_query = pack(cross.self.query)
        self._cross_kv = pack(cross.self.key, cross.self.value)
        self._cross_out, self._cross_norm = pack(cross.output.dense), cross.output.LayerNorm
        self._widen, self._activation = pack(layer.intermediate.dense), layer.intermediate.intermediate_act_fn
        self._narrow, self._norm = pack(layer.output.dense), layer.output.LayerNorm
        for norm in (self._out_norm, self._cross_norm, self._norm):
            unmap(norm)

    def look_at(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        kv = self._cross_kv(pictures).view(*pictures.shape[:2], 2, *self._shape)
        key, value = kv.permute(2, 0, 3, 1, 4).contiguous()
        return key, value

    def __call__(self, x: Tensor, state: DecoderState, index: int) -> Tensor:
        query, key, value = self._qkv(x).view(len(x), 3, *self._shape).unbind(1)
        keys, values = state.tokens[:, index]
        keys[:, :, state.length] = key
        values[:, :, state.length] = value
        end = state.length + 1
        context = _attend(query[:, :, None], keys[:, :, :end], values[:, :, :end])
        x = self._out_norm(self._out(context.reshape(x.shape)) + x)

        # the beams of a picture are the queries of one attention
        query = self._cross_query(x).view(-1, state.beams, *self._shape).transpose(1, 2)
        context = _attend(query, *state.pictures[index])
        x = self._cross_norm(self._cross_out(context.transpose(1, 2).reshape(x.shape)) + x)

        x = self._norm(self._narrow(self._activation(self._widen(x))) + x)
        return x


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    # For these few queries torch's fused attention takes six times as long on a CPU.
    weights = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return weights.softmax(-1) @ value
