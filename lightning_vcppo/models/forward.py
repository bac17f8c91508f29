"""Compute a language model's hidden states and log-probabilities of given responses.

Shapes: B sequences, L tokens of prompt + response, T response tokens, N masked response tokens,
H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vcppo.distributed.sharding import as_forward
from lightning_vcppo.models.logprobs import token_logprobs
from lightning_vcppo.models.packing import PackedLayout, reads_packed_rows


def response_hidden(
    backbone: nn.Module, input_ids_BL: Tensor, prompt_lengths_B: Tensor, mask_BT: Tensor
) -> Tensor:
    """Run a transformer and return the hidden states from which the masked tokens are predicted.

    Args:
        backbone: A transformers base model.
        input_ids_BL: Prompt and response, padded only on the right.
        prompt_lengths_B: Number of tokens of each prompt, at least 1.
        mask_BT: True on the wanted response tokens; may be one token wider than the responses.

    Returns:
        States (N, H), in row order: for response token t the state of prompt + tokens before t.
    """
    inputs, index = _lay_out(backbone, input_ids_BL, prompt_lengths_B, mask_BT)
    hidden: Tensor = backbone(**inputs, use_cache=False).last_hidden_state
    return hidden[index]


def response_layers(
    backbone: nn.Module,
    input_ids_BL: Tensor,
    prompt_lengths_B: Tensor,
    mask_BT: Tensor,
    layers: Sequence[int],
    tapped: Sequence[Tensor] | None = None,
) -> Tensor:
    """Do the same as `response_hidden` for the states after some layers.

    Args:
        backbone: A transformers base model with its layers in `layers`.
        input_ids_BL: Prompt and response, padded only on the right.
        prompt_lengths_B: Number of tokens of each prompt, at least 1.
        mask_BT: True on the wanted response tokens.
        layers: Numbers of the layers, from 1, ascending.
        tapped: States that `tapping` has collected in a forward pass on the same tokens; None runs
            one.

    Returns:
        States (N, K, H), before the norm that follows the last layer, detached.
    """
    inputs, index = _lay_out(backbone, input_ids_BL, prompt_lengths_B, mask_BT)
    if tapped is None:
        with tapping(backbone, layers) as tapped:
            backbone(**inputs, use_cache=False)
    read = [hidden.shape[:2] for hidden in tapped]
    assert read == [inputs["input_ids"].shape] * len(layers), "these tokens, in one forward pass"
    return torch.stack([hidden[index] for hidden in tapped], 1)


@contextmanager
def tapping(backbone: nn.Module, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collect the states after some layers in the forward passes of a context.

    Args:
        backbone: A transformers base model with its layers in `layers`.
        layers: Numbers of the layers, from 1, ascending.

    Yields:
        A list that grows by the states of each layer, padding and prompts included, detached.
    """
    tapped: list[Tensor] = []

    def tap(layer: nn.Module, given: Any, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        tapped.append(hidden.detach())

    assert isinstance(backbone.layers, nn.ModuleList)
    hooks = [backbone.layers[layer - 1].register_forward_hook(tap) for layer in layers]
    try:
        yield tapped
    finally:
        for hook in hooks:
            hook.remove()


def _lay_out(
    backbone: nn.Module, input_ids_BL: Tensor, prompt_lengths_B: Tensor, mask_BT: Tensor
) -> tuple[dict[str, Any], tuple[Any, Tensor]]:
    """Return a model's arguments, and the index of the wanted states in its output."""
    row_N, token_N = mask_BT.nonzero(as_tuple=True)
    before_N = prompt_lengths_B[row_N] - 1 + token_N
    if not reads_packed_rows(backbone):
        # Rows are padded on the right, so causal attention needs no mask.
        return {"input_ids": input_ids_BL}, (row_N, before_N)
    # Tokens after the last wanted state are not read.
    place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = torch.where(mask_BT, place_T, 0).amax(1)
    lengths_B = prompt_lengths_B + last_B
    layout = PackedLayout.of(lengths_B.tolist(), input_ids_BL.device)
    inputs = layout.inputs(layout.pack(input_ids_BL))
    return inputs, (0, layout.starts_B[row_N] + before_N)


def response_logprobs(
    model: PreTrainedModel,
    input_ids_BL: Tensor,
    prompt_lengths_B: Tensor,
    mask_BT: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return log pi of the masked response tokens and the entropy of pi before them.

    Args:
        model: A language model, which may be sharded.
        input_ids_BL: Prompt and response, padded only on the right.
        prompt_lengths_B: Number of tokens of each prompt, at least 1.
        mask_BT: True on the wanted response tokens.
        targets_N: Ids of these tokens, in row order.
        temperature: Temperature of the sampler.

    Returns:
        (logprobs_N, entropy_N), as from `token_logprobs`.
    """

    def read() -> tuple[Tensor, Tensor]:
        hidden_NH = response_hidden(model.base_model, input_ids_BL, prompt_lengths_B, mask_BT)
        head_VH = model.get_output_embeddings().weight
        return token_logprobs(hidden_NH, head_VH, targets_N, temperature=temperature)

    return as_forward(model, read)
