"""Run the forward passes of generation: over prompts, and over one token per row.

Shapes: R rows, U prompts, N tokens of all prompts, V vocabulary, H key-value heads, D size of a
head, E hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import DynamicCache, PreTrainedModel

from lightning_vcppo.generation.slots import SlotCache
from lightning_vcppo.models.lora import merged_linear
from lightning_vcppo.models.packing import PackedLayout, reads_packed_rows

Linear: TypeAlias = tuple[Tensor, Tensor | None]
Decode: TypeAlias = Callable[[PreTrainedModel, SlotCache, Tensor, Tensor], Tensor]

LEAN_FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
"""Decoders whose layers are: norm, q k v, rotation, attention, o; norm, MLP."""

STACKED_WIDTH = 1024
"""Largest hidden size for stacked copies: above it calls matter less, and copies cost memory."""


@dataclass(frozen=True)
class PrefilledPrompt:
    """Keys, values and logits of a prompt, from which its responses continue.

    Attributes:
        keys: Keys of each layer, (tokens, H, D).
        values: Values of each layer, (tokens, H, D).
        logits_V: Logits of the first response token.
    """

    keys: list[Tensor]
    values: list[Tensor]
    logits_V: Tensor

    def __len__(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.keys[0])


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int
) -> list[PrefilledPrompt]:
    """Read prompts of any lengths in one forward pass, packed if the model can."""
    device = model.device
    cache = DynamicCache()
    lengths = [len(ids) for ids in prompts]
    if reads_packed_rows(model):
        layout = PackedLayout.of(lengths, device)
        starts = layout.starts_B.tolist()
        ids_N = torch.empty_like(layout.position_ids_N)
        for start, ids in zip(starts, prompts, strict=True):
            ids_N[start : start + len(ids)] = torch.tensor(ids, device=device)
        last_U = layout.starts_B + torch.tensor(lengths, device=device) - 1
        logits_UV = model(
            **layout.inputs(ids_N), past_key_values=cache, use_cache=True, logits_to_keep=last_U
        ).logits[0]
    else:
        width = max(lengths)
        starts = [width * (row + 1) - length for row, length in enumerate(lengths)]
        tokens = [[pad] * (width - len(ids)) + list(ids) for ids in prompts]
        mask = [[0] * (width - length) + [1] * length for length in lengths]
        mask_UP = torch.tensor(mask, device=device)
        logits_UV = model(
            input_ids=torch.tensor(tokens, device=device),
            attention_mask=mask_UP,
            position_ids=(mask_UP.cumsum(1) - 1).clamp_min(0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    layers: list[Any] = cache.layers  # of class DynamicLayer
    keys = [layer.keys.transpose(1, 2).flatten(0, 1) for layer in layers]
    values = [layer.values.transpose(1, 2).flatten(0, 1) for layer in layers]
    return [
        PrefilledPrompt(
            [x[start : start + length] for x in keys],
            [x[start : start + length] for x in values],
            logits_V,
        )
        for start, length, logits_V in zip(starts, lengths, logits_UV, strict=True)
    ]


def decoder_of(model: PreTrainedModel) -> Decode:
    """Return the fastest decoding function for a model.

    Calling the layers' modules directly saves a quarter of the time of a small model. It does not
    work with sharded weights, which the hooks of complete layers gather.
    """
    return LeanDecoder(model) if walks_layers(model) else decode


def walks_layers(model: PreTrainedModel) -> bool:
    """Return whether a model's layers are of a known family and not sharded."""
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model.config.model_type in LEAN_FAMILIES and not sharded


def decode(model: PreTrainedModel, cache: SlotCache, token_R: Tensor, position_R: Tensor) -> Tensor:
    """Read one token per row into the cache's present column and return the next token's logits.

    Returns:
        Logits (R, V).
    """
    by_kind = {
        "full_attention" if window is None else "sliding_attention": mask
        for window, mask in cache.masks().items()
    }
    logits_R1V: Tensor = model(
        input_ids=token_R[:, None],
        position_ids=position_R[:, None],
        attention_mask=by_kind if len(by_kind) > 1 else next(iter(by_kind.values())),
        past_key_values=cache,
        use_cache=True,
    ).logits
    return logits_R1V[:, -1]


class LeanDecoder:
    """Does the same as `decode`, but calls the model's modules directly.

    In a small model the calls cost as much as the arithmetic. So projections of the same input are
    stacked into one, with adapters merged, in a copy of the present weights.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Copy the weights, if the model is small."""
        small = model.config.hidden_size <= STACKED_WIDTH
        self._stacked: list[tuple[Linear | None, ...]] = [
            (
                stack(attention.q_proj, attention.k_proj, attention.v_proj),
                stack(attention.o_proj),
                stack(mlp.gate_proj, mlp.up_proj),
                stack(mlp.down_proj),
            )
            if small
            else (None,) * 4
            for attention, mlp in ((x.self_attn, x.mlp) for x in model.get_decoder().layers)
        ]

    def __call__(
        self, model: PreTrainedModel, cache: SlotCache, token_R: Tensor, position_R: Tensor
    ) -> Tensor:
        """Read one token per row and return the next token's logits, (R, V)."""
        decoder, rows = model.get_decoder(), len(token_R)
        masks = cache.masks()
        hidden_RE = decoder.embed_tokens(token_R)
        cos_R1D, sin_R1D = decoder.rotary_emb(hidden_RE, position_R[:, None])
        layers = zip(decoder.layers, cache.slots, self._stacked, strict=True)
        with torch.inference_mode():
            for layer, slots, (projections, out, gates, down) in layers:
                attention, mlp = layer.self_attn, layer.mlp
                x_RE = layer.input_layernorm(hidden_RE)
                flat = (
                    torch.nn.functional.linear(x_RE, *projections)
                    if projections
                    else torch.cat([p(x_RE) for p in _projections(attention)], dim=-1)
                )
                heads = flat.view(rows, -1, attention.head_dim)
                shared = attention.k_proj.out_features // attention.head_dim
                query_key, value = heads[:, :-shared], heads[:, -shared:]
                if hasattr(attention, "q_norm"):
                    query, key = query_key[:, :-shared], query_key[:, -shared:]
                    query_key = torch.cat((attention.q_norm(query), attention.k_norm(key)), dim=1)
                query_key = _rotate(query_key, cos_R1D, sin_R1D)
                keys, values = slots.append(query_key[:, -shared:], value)
                # The query heads that share a key head are laid along the time dimension.
                attended = torch.nn.functional.scaled_dot_product_attention(
                    query_key[:, :-shared].unflatten(1, (shared, -1)),
                    keys,
                    values,
                    attn_mask=masks[slots.window],
                    scale=attention.scaling,
                )
                hidden_RE = hidden_RE + _apply(out, attention.o_proj, attended.reshape(rows, -1))
                x_RE = layer.post_attention_layernorm(hidden_RE)
                if gates:
                    gate, up = torch.nn.functional.linear(x_RE, *gates).chunk(2, dim=-1)
                    hidden_RE = hidden_RE + _apply(down, mlp.down_proj, mlp.act_fn(gate) * up)
                else:
                    hidden_RE = hidden_RE + mlp(x_RE)
            logits_RV: Tensor = model.get_output_embeddings()(decoder.norm(hidden_RE))
        return logits_RV


def stack(*layers: Any) -> Linear | None:
    """Return weight and bias of one projection in place of several, with their adapters.

    Return None unless all are linear layers, either all with a bias or all without. The weight of
    a single layer without an adapter is not copied.
    """
    linear = [found for layer in layers if (found := merged_linear(layer)) is not None]
    biases = [bias for _, bias in linear if bias is not None]
    if len(linear) < len(layers) or len(biases) not in (0, len(layers)):
        return None
    if len(linear) == 1:
        return linear[0]
    return torch.cat([weight for weight, _ in linear]), torch.cat(biases) if biases else None


def _apply(linear: Linear | None, layer: Any, x: Tensor) -> Tensor:
    output: Tensor = torch.nn.functional.linear(x, *linear) if linear else layer(x)
    return output


def _projections(attention: Any) -> tuple[Any, ...]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
