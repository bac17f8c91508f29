"""Run a decoding step whose shapes and addresses never change, so that a CUDA graph can repeat it.

It computes the same as `LeanDecoder`, for the same models, with three differences:

1. Each row has its own storage for keys and values, from column 0, and writes its token at a
   position that is read on the device.
2. Attention reads only the used keys of each row if the device has a kernel for that
   (attention.py), and otherwise the complete storage with a mask.
3. Under autocast the weights of linear layers are copied once in autocast's type, not at each
   step, and keys and values are stored in it. Both round the same numbers as autocast, so the
   results are the same.

Shapes: R rows, C columns of storage, H query heads, K key-value heads, D size of a head, E hidden,
V vocabulary, M tokens of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from lightning_vcppo.generation.decoding import (
    STACKED_WIDTH,
    Linear,
    PrefilledPrompt,
    stack,
)
from lightning_vcppo.models.attention import aligned_up, attends_by_length, try_kernels
from lightning_vcppo.models.logprobs import float32_product


@dataclass
class Projection:
    """Linear layers that read the same input: a stacked copy of their weights, or themselves."""

    layers: tuple[Any, ...]
    copied: Linear | None

    @classmethod
    def of(cls, *layers: Any, dtype: torch.dtype, small: bool) -> Projection:
        """Copy the weights if they have another type, or if the model is small."""
        cast = layers[0].weight.dtype != dtype if hasattr(layers[0], "weight") else True
        copied = stack(*layers) if small or cast else None
        if copied is None:
            return cls(layers, None)
        weight, bias = copied
        return cls(layers, (weight.to(dtype), None if bias is None else bias.to(dtype)))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layers and return their concatenated outputs."""
        if self.copied is not None:
            return torch.nn.functional.linear(x, *self.copied)
        outputs = [layer(x) for layer in self.layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


@dataclass
class Layer:
    """Modules and projections of one layer of the model, with the keys and values of its rows."""

    module: Any
    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection
    window: int | None
    keys_RCKD: Tensor
    values_RCKD: Tensor


class StaticDecoder:
    """The weights, storage and arithmetic of decoding steps of a fixed number of rows."""

    def __init__(self, model: PreTrainedModel, rows: int, capacity: int) -> None:
        """Copy weights where that saves time, and allocate storage.

        Args:
            model: A model with known layers (`walks_layers`).
            rows: Number of sequences that run at the same time.
            capacity: Number of tokens for which each row has room; rounded up.
        """
        decoder: Any = model.get_decoder()
        head: Any = model.get_output_embeddings()
        device = head.weight.device
        dtype = _product_type(head.weight)
        small = model.config.hidden_size <= STACKED_WIDTH
        project = partial(Projection.of, dtype=dtype, small=small)
        self._decoder = decoder
        self._head = Projection.of(head, dtype=dtype, small=False)
        self.rows, self.capacity = rows, aligned_up(capacity)
        attention = decoder.layers[0].self_attn
        self._head_size = int(attention.head_dim)
        shared = attention.k_proj.out_features // self._head_size
        shape = (rows, self.capacity, shared, self._head_size)
        windows = [
            getattr(layer, "sliding_window", None)
            for layer in DynamicCache(config=model.config).layers
        ]
        self.layers = [
            Layer(
                x,
                project(x.self_attn.q_proj, x.self_attn.k_proj, x.self_attn.v_proj),
                project(x.self_attn.o_proj),
                project(x.mlp.gate_proj, x.mlp.up_proj),
                project(x.mlp.down_proj),
                window,
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for x, window in zip(decoder.layers, windows, strict=True)
        ]
        try_kernels(device)
        self._by_length = attends_by_length(self.layers[0].keys_RCKD[:, 0])
        self._lay_out(device)

    def __call__(self, token_R: Tensor, position_R: Tensor) -> Tensor:
        """Read one token per row at its position; return the next token's logits, (R, V)."""
        hidden_RE = self._decoder.embed_tokens(token_R)
        cos_R1D, sin_R1D = self._decoder.rotary_emb(hidden_RE, position_R[:, None])
        masks = self._masks(position_R) if self._by_length is None else {}
        used_R = (position_R + 1).int()
        for layer in self.layers:
            attention, mlp = layer.module.self_attn, layer.module.mlp
            x_RE = _norm(layer.module.input_layernorm, hidden_RE)
            heads_RHD = layer.qkv(x_RE).view(self.rows, -1, self._head_size)
            query_key, value_RKD = self._split(attention, layer, heads_RHD)
            query_key = _rotate(query_key, cos_R1D, sin_R1D).to(value_RKD.dtype)
            shared = value_RKD.shape[1]
            query_RHD, key_RKD = query_key[:, :-shared], query_key[:, -shared:]
            layer.keys_RCKD[self._row_R, position_R] = key_RKD
            layer.values_RCKD[self._row_R, position_R] = value_RKD
            attended_RE = self._attend(layer, query_RHD, used_R, masks, attention.scaling)
            hidden_RE = hidden_RE + layer.out(attended_RE)
            x_RE = _norm(layer.module.post_attention_layernorm, hidden_RE)
            gate, up = layer.gate_up(x_RE).chunk(2, dim=-1)
            hidden_RE = hidden_RE + layer.down(mlp.act_fn(gate) * up)
        return self._logits(_norm(self._decoder.norm, hidden_RE))

    def write(self, rows: Sequence[int], prompts: Sequence[PrefilledPrompt]) -> None:
        """Write keys and values of prompts into rows, starting at the first column."""
        device = self._row_R.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        row_M = torch.tensor(rows, device=device).repeat_interleave(lengths)
        ends = lengths.cumsum(0)
        column_M = torch.arange(len(row_M), device=device) - (ends - lengths).repeat_interleave(
            lengths
        )
        for index, layer in enumerate(self.layers):
            keys = torch.cat([prompt.keys[index] for prompt in prompts])
            values = torch.cat([prompt.values[index] for prompt in prompts])
            layer.keys_RCKD[row_M, column_M] = keys.to(layer.keys_RCKD.dtype)
            layer.values_RCKD[row_M, column_M] = values.to(layer.values_RCKD.dtype)

    def resize(self, rows: Tensor, capacity: int) -> None:
        """Keep some rows, in the order given, with room for `capacity` tokens each."""
        self.rows, self.capacity = len(rows), aligned_up(capacity)
        for layer in self.layers:
            layer.keys_RCKD = _resized(layer.keys_RCKD, rows, self.capacity)
            layer.values_RCKD = _resized(layer.values_RCKD, rows, self.capacity)
        self._lay_out(rows.device)

    def _lay_out(self, device: torch.device) -> None:
        self._row_R = torch.arange(self.rows, device=device)
        self._ends = torch.arange(self.rows + 1, device=device, dtype=torch.int32)
        self._key_ends = self._ends * self.capacity
        self._column_C = torch.arange(self.capacity, device=device)

    def _logits(self, x_RE: Tensor) -> Tensor:
        weight: Tensor = (self._head.copied or (self._head.layers[0].weight, None))[0]
        if x_RE.is_cuda and weight.dtype in (torch.bfloat16, torch.float16):
            return float32_product(x_RE.to(weight.dtype), weight.T)  # as in the updates
        return self._head(x_RE)

    def _split(self, attention: Any, layer: Layer, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys, normalized if the model does that, and values."""
        shared = layer.keys_RCKD.shape[2]
        query_key, value = heads[:, :-shared], heads[:, -shared:]
        if hasattr(attention, "q_norm"):
            query = _norm(attention.q_norm, query_key[:, :-shared])
            key = _norm(attention.k_norm, query_key[:, -shared:])
            query_key = torch.cat((query, key), dim=1)
        return query_key, value

    def _attend(
        self,
        layer: Layer,
        query_RHD: Tensor,
        used_R: Tensor,
        masks: dict[int | None, Tensor],
        scale: float,
    ) -> Tensor:
        if self._by_length is not None:
            attended = self._by_length(
                query_RHD.contiguous(),
                layer.keys_RCKD.flatten(0, 1),
                layer.values_RCKD.flatten(0, 1),
                self._ends,
                self._key_ends,
                1,
                self.capacity,
                scale=scale,
                window=layer.window,
                used_keys=used_R,
            )
            return attended.flatten(1)
        # The query heads that share a key head are laid along the time dimension.
        shared = layer.keys_RCKD.shape[2]
        attended = torch.nn.functional.scaled_dot_product_attention(
            query_RHD.unflatten(1, (shared, -1)),
            layer.keys_RCKD.transpose(1, 2),
            layer.values_RCKD.transpose(1, 2),
            attn_mask=masks[layer.window],
            scale=scale,
        )
        return attended.reshape(self.rows, -1)

    def _masks(self, position_R: Tensor) -> dict[int | None, Tensor]:
        """Return the additive attention masks, (R, 1, 1, C), by window."""
        masks = {}
        for window in {layer.window for layer in self.layers}:
            behind_RC = position_R[:, None] - self._column_C
            hidden_RC = behind_RC < 0
            if window is not None:
                hidden_RC |= behind_RC >= window
            mask_RC = torch.zeros_like(behind_RC, dtype=self.layers[0].keys_RCKD.dtype)
            masks[window] = mask_RC.masked_fill(hidden_RC, float("-inf"))[:, None, None]
        return masks


def _product_type(weight: Tensor) -> torch.dtype:
    """Return the type in which linear layers compute at present."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype == torch.float32:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    """Apply an RMS norm with one kernel; transformers' own needs about seven.

    In float64 use transformers' own, which computes in float32.
    """
    epsilon, weight = getattr(module, "variance_epsilon", None), module.weight
    if epsilon is None or not isinstance(weight, Tensor) or weight.dtype == torch.float64:
        output: Tensor = module(x)
        return output
    return torch.nn.functional.rms_norm(x.to(weight.dtype), tuple(weight.shape), weight, epsilon)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def _resized(storage: Tensor, rows: Tensor, capacity: int) -> Tensor:
    kept = min(capacity, storage.shape[1])
    new = storage.new_zeros(len(rows), capacity, *storage.shape[2:])
    new[:, :kept] = storage[:, :kept].index_select(0, rows)
    return new
