"""Pack sequences of different lengths into one row without padding, for transformers' models.

1. Only attention connects tokens, so a micro-batch can be one row of N tokens.
2. Attention must keep sequences apart. They are packed from the longest to the shortest, so
   neighbours have similar lengths: a group of neighbours is padded only for attention, and
   causal attention needs no mask for padding on the right.
3. Padding and its removal are gathers in both passes, because each has the other's index.

Models use it through the attention function `PACKED_SDPA`; without a layout it is transformers' own
`sdpa`.

Shapes: B sequences, L tokens of the longest, N tokens of all, G sequences of a group, W tokens of
its longest, H heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_vcppo.models.attention import (
    prefer_general_kernels,
    try_kernels,
    variable_length_attention,
)

PACKED_SDPA = "packed_sdpa"
SHORTEST_OF_GROUP = 0.7
"""A sequence shorter than this share of its group's longest one begins a new group."""
PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Group:
    """Neighbours in a packed row that attention pads to one length.

    Attributes:
        rows: Number of sequences, G.
        width: Number of tokens of the longest sequence, W.
        tokens: Number of tokens of all sequences.
        token_of_place: (G W,) index among the group's tokens, 0 on padding; None without padding.
        place_of_token: (tokens,) the inverse index.
        padding: (G W, 1, 1) True on padding.
    """

    rows: int
    width: int
    tokens: int
    token_of_place: Tensor | None
    place_of_token: Tensor | None
    padding: Tensor | None

    def pad(self, tokens_NHD: Tensor) -> Tensor:
        """Return the group's sequences as (G, H, W, D)."""
        if self.token_of_place is not None:
            tokens_NHD = _Gather.apply(  # type: ignore[no-untyped-call]
                tokens_NHD, self.token_of_place, self.place_of_token, None
            )
        padded_GWHD: Tensor = tokens_NHD.unflatten(0, (self.rows, self.width))
        return padded_GWHD.transpose(1, 2)

    def unpad(self, padded_GWHD: Tensor) -> Tensor:
        """Return the tokens of a padded group."""
        places = padded_GWHD.flatten(0, 1)
        if self.place_of_token is None:
            return places
        tokens: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
            places, self.place_of_token, self.token_of_place, self.padding
        )
        return tokens


@dataclass(frozen=True)
class PackedLayout:
    """Positions of a micro-batch's sequences in their packed row.

    Attributes:
        starts_B: First index of each sequence in the row, in the given order.
        rows_N: Sequence of each token.
        position_ids_N: Position of each token in its sequence.
        groups: Groups of sequences, for attention that pads.
        ends: (B + 1,) int32, end index of each sequence, from the longest; 0 first.
        longest: Number of tokens of the longest sequence.
    """

    starts_B: Tensor
    rows_N: Tensor
    position_ids_N: Tensor
    groups: tuple[Group, ...]
    ends: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> PackedLayout:
        """Lay out sequences of the given lengths, each at least 1."""
        try_kernels(device)
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        order_B = torch.tensor(order, device=device)
        lengths_B = torch.tensor(lengths, device=device)[order_B]
        packed_starts_B = lengths_B.cumsum(0) - lengths_B
        starts_B = torch.empty_like(order_B)
        starts_B[order_B] = packed_starts_B
        place_N = torch.arange(sum(lengths), device=device)
        groups, first = [], 0
        for row in range(1, len(order) + 1):
            longest = lengths[order[first]]
            if row == len(order) or lengths[order[row]] < SHORTEST_OF_GROUP * longest:
                groups.append(_group([lengths[i] for i in order[first:row]], device))
                first = row
        return cls(
            starts_B,
            order_B.repeat_interleave(lengths_B),
            place_N - packed_starts_B.repeat_interleave(lengths_B),
            tuple(groups),
            torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0)).int(),
            lengths[order[0]],
        )

    def pack(self, ids_BL: Tensor) -> Tensor:
        """Return the packed row (N,) of sequences padded on the right."""
        return ids_BL[self.rows_N, self.position_ids_N]

    def inputs(self, ids_N: Tensor) -> dict[str, Any]:
        """Return the arguments for a model's forward pass over the packed row."""
        return {
            "input_ids": ids_N[None],
            "position_ids": self.position_ids_N[None],
            # A four-dimensional mask is passed on unchanged, so none is built; it is not read.
            "attention_mask": ids_N.new_empty(1, 1, 0, 0),
            "packed_layout": self,
        }


def enable_packing(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model read packed rows, if its type allows it, and return it.

    It does if every layer is full or sliding-window attention through transformers' attention
    interface; a recurrent layer, for example, would carry one sequence's state into the next.
    """
    prefer_general_kernels()
    layer_types = getattr(model.config, "layer_types", None) or ["full_attention"]
    if (
        getattr(model, "_supports_attention_backend", False)
        and getattr(model, "_supports_sdpa", False)
        and model.config._attn_implementation == "sdpa"
        and PACKABLE_LAYERS.issuperset(layer_types)
    ):
        model.set_attn_implementation(PACKED_SDPA)
    return model


def reads_packed_rows(model: nn.Module) -> bool:
    """Return whether `enable_packing` has enabled packed rows."""
    return getattr(model.config, "_attn_implementation", None) == PACKED_SDPA


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_layout: PackedLayout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of a packed row, as an attention function of transformers.

    Args:
        module: The attention layer.
        query: (1, H, N, D); key and value may have fewer heads.
        key: As query.
        value: As query.
        attention_mask: Read only without a layout.
        packed_layout: Layout of the sequences; None means rows that are not packed.
        sliding_window: Number of tokens that a token sees, itself included.
        kwargs: Passed on to `sdpa`.

    Returns:
        Attended values (1, N, H, D), and None for the weights.
    """
    if packed_layout is None:
        kwargs["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if torch.is_autocast_enabled(query.device.type) and query.dtype == torch.float32:
        half = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(half), key.to(half), value.to(half)
    if attend := variable_length_attention(query[0].transpose(0, 1)):
        ends, longest = packed_layout.ends, packed_layout.longest
        window = sliding_window if sliding_window and sliding_window < longest else None
        attended_NHD = attend(
            *(x[0].transpose(0, 1) for x in (query, key, value)),
            ends,
            ends,
            longest,
            longest,
            scale=kwargs.get("scaling"),
            window=window,
        )
        return attended_NHD[None], None
    sizes = [group.tokens for group in packed_layout.groups]
    parts = zip(
        packed_layout.groups,
        *(x[0].transpose(0, 1).split(sizes) for x in (query, key, value)),
        strict=True,
    )
    outputs = []
    for group, query_NHD, key_NHD, value_NHD in parts:
        band_WW = None
        if sliding_window is not None and group.width > sliding_window:
            place_W = torch.arange(group.width, device=query.device)
            behind_WW = place_W[:, None] - place_W
            band_WW = ((behind_WW >= 0) & (behind_WW < sliding_window))[None, None]
        padded = group.pad(query_NHD), group.pad(key_NHD), group.pad(value_NHD)
        attended_GWHD = _attend_padded(module, *padded, band_WW, kwargs)
        outputs.append(group.unpad(attended_GWHD))
    return torch.cat(outputs)[None], None


def _attend_padded(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band_WW: Tensor | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """Attend causally, or within a band, and return (G, W, H, D)."""
    if repeats_keys(query, key):
        shared = query.shape[1] // key.shape[1]
        attended_GHWD = torch.nn.functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(shared, 1),
            value.repeat_interleave(shared, 1),
            attn_mask=band_WW,
            is_causal=band_WW is None,
            dropout_p=kwargs.get("dropout", 0.0),
            scale=kwargs.get("scaling"),
        )
        return attended_GHWD.transpose(1, 2)
    attended_GWHD, _ = sdpa_attention_forward(module, query, key, value, band_WW, **kwargs)
    return attended_GWHD


def repeats_keys(query: Tensor, key: Tensor) -> bool:
    """Return whether keys must be repeated for each query head.

    On CUDA no fused kernel supports grouped queries in float32, and the unfused one keeps all
    scores for the backward pass: memory grows with the square of the length.
    """
    return query.is_cuda and query.dtype == torch.float32 and query.shape[1] != key.shape[1]


class _Gather(torch.autograd.Function):
    """Selects rows by index; `inverse` makes the gradient a gather, too."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, unused: Tensor | None
    ) -> Tensor:
        """Return `rows[index]`; input rows where `unused` is True are in no output row."""
        ctx.save_for_backward(inverse, unused)
        return rows.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the input rows."""
        inverse, unused = ctx.saved_tensors
        grad = grad.index_select(0, inverse)
        return (grad if unused is None else grad.masked_fill_(unused, 0.0)), None, None, None


def _group(lengths: list[int], device: torch.device) -> Group:
    """Index the positions of a group, longest sequence first."""
    rows, width, tokens = len(lengths), lengths[0], sum(lengths)
    if rows * width == tokens:
        return Group(rows, width, tokens, None, None, None)
    lengths_G = torch.tensor(lengths, device=device)
    is_token_GW = torch.arange(width, device=device) < lengths_G[:, None]
    place_of_token = is_token_GW.flatten().nonzero()[:, 0]
    token_of_place = (is_token_GW.flatten().cumsum(0) - 1) * is_token_GW.flatten()
    return Group(
        rows, width, tokens, token_of_place, place_of_token, ~is_token_GW.reshape(-1, 1, 1)
    )


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
