"""Batched sampling from a transformers model with a key-value cache.

Shapes: B sequences at first, R sequences still running, P prompt tokens, T response tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lightning_vcppo.generation.base import Generations
from lightning_vcppo.seeding import stream
from lightning_vcppo.settings import SamplingSettings


class TransformersEngine:
    """Samples from the very model that is trained; nothing has to be copied or kept in step.

    Each sequence draws its tokens from a random stream of its own. Finished sequences leave the
    batch as soon as they are a quarter of it.
    """

    def __init__(
        self, model: PreTrainedModel, *, pad_token_id: int, eos_token_ids: set[int]
    ) -> None:
        """Wrap a causal language model."""
        self._model = model
        self._pad = pad_token_id
        self._eos = sorted(eos_token_ids)

    @torch.no_grad()
    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response a prompt, see `GenerationEngine.generate`."""
        device = self._model.device
        size, limit = len(prompt_ids), settings.max_response_length
        ids_BT = torch.full((size, limit), self._pad, device=device)
        logprobs_BT = torch.zeros(size, limit, device=device, dtype=torch.float32)
        length_B = torch.zeros(size, dtype=torch.long, device=device)
        finished_B = torch.zeros(size, dtype=torch.bool, device=device)
        uniforms_BT = _uniforms(seeds, limit).to(device)
        eos = torch.tensor(self._eos, device=device)

        tokens_RP, mask_RP = _left_pad(prompt_ids, self._pad, device)
        row_R = torch.arange(size, device=device)
        cache = DynamicCache(config=self._model.config)
        inputs_R, position_R = tokens_RP, (mask_RP.cumsum(1) - 1).clamp_min(0)
        for t in range(limit):
            logits_RV = self._model(
                input_ids=inputs_R,
                attention_mask=mask_RP,
                position_ids=position_R,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            token_R, logprob_R = sample_tokens(logits_RV, uniforms_BT[row_R, t], settings)
            ids_BT[row_R, t], logprobs_BT[row_R, t] = token_R, logprob_R
            running_R = ~torch.isin(token_R, eos) & ~finished_B[row_R]
            length_B[row_R[~finished_B[row_R]]] = t + 1
            finished_B[row_R[~running_R]] = True
            still_running = int(running_R.sum())
            if still_running == 0:
                break
            mask_RP = torch.cat([mask_RP, torch.ones_like(mask_RP[:, :1])], dim=1)
            inputs_R, position_R = token_R[:, None], position_R[:, -1:] + 1
            if still_running <= 0.75 * len(row_R):
                keep = running_R.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                row_R, inputs_R = row_R[keep], inputs_R[keep]
                mask_RP, position_R = mask_RP[keep], position_R[keep]
        longest = int(length_B.max())
        response_mask_BT = torch.arange(longest, device=device) < length_B[:, None]
        return Generations(
            ids_BT[:, :longest].masked_fill(~response_mask_BT, self._pad),
            response_mask_BT,
            logprobs_BT[:, :longest].masked_fill(~response_mask_BT, 0.0),
            finished_B,
        )


def sample_tokens(
    logits_RV: Tensor, uniform_R: Tensor, settings: SamplingSettings
) -> tuple[Tensor, Tensor]:
    """Turn one uniform number a row into a token, by the inverse of the cumulative distribution.

    Args:
        logits_RV: Logits of the next token.
        uniform_R: Numbers in [0, 1).
        settings: Temperature (0: the most probable token) and top-p.

    Returns:
        Tokens (R,) and their log-probabilities at the temperature, before top-p (R,).
    """
    logits_RV = logits_RV.float()
    if settings.temperature == 0:
        token_R = logits_RV.argmax(-1)
    else:
        logits_RV = logits_RV / settings.temperature
        probs_RV = logits_RV.softmax(-1)
        if settings.top_p < 1:
            probs_RV = _nucleus(probs_RV, settings.top_p)
        cumulative_RV = probs_RV.cumsum(-1)
        threshold_R = uniform_R * cumulative_RV[:, -1]
        token_R = torch.searchsorted(cumulative_RV, threshold_R[:, None], right=True)[:, 0]
        token_R = token_R.clamp_max(logits_RV.shape[-1] - 1)
    logprob_R = logits_RV.gather(-1, token_R[:, None])[:, 0] - logits_RV.logsumexp(-1)
    return token_R, logprob_R


def _nucleus(probs_RV: Tensor, top_p: float) -> Tensor:
    """Zero the tail outside the smallest set of tokens whose probabilities reach top_p."""
    ordered_RV, order_RV = probs_RV.sort(dim=-1, descending=True)
    tail_RV = ordered_RV.cumsum(-1) - ordered_RV >= top_p
    return probs_RV.scatter(-1, order_RV, ordered_RV.masked_fill(tail_RV, 0.0))


def _uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Return (B, count) uniform numbers, each row from its own stream."""
    return torch.stack(
        [torch.rand(count, generator=stream("tokens", seed), dtype=torch.float32) for seed in seeds]
    )


def _left_pad(
    prompt_ids: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return prompts padded on the left, (B, P), and the mask of their tokens (int64)."""
    width = max(len(ids) for ids in prompt_ids)
    tokens = [[pad] * (width - len(ids)) + list(ids) for ids in prompt_ids]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
