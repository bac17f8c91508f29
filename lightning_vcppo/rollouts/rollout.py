"""Define the record of one rollout, which all steps after generation read and extend.

Shapes: B responses, L tokens of prompt + response, T response tokens, N masked response tokens.
Rows hold prompt and response without a gap, padded on the right, so that causal attention needs no
mask and positions start at 0. Tensors named BT start at the response's first token.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_vcppo.algorithm.statistics import Reduce, identity
from lightning_vcppo.data.problem import Problem


@dataclass(frozen=True)
class Rollout:
    """A batch of responses and the tensors computed for them.

    Attributes:
        problems: B problems, one per response.
        responses: B decoded responses, without special tokens.
        input_ids_BL: Token ids of prompt and response.
        prompt_lengths_B: Number of tokens of each prompt.
        response_mask_BT: True on the tokens that the policy generated, its <eos> included.
        sampler_logprobs_BT: Log-probability under the sampler, at the sampling temperature.
        finished_B: True where the response ended by itself, False where it was truncated.
        positions_B: Row number in the rollout over all ranks.
        group_ids_B: The same number for the responses to one prompt.
        scores_B: Reward of the verifier, shaping included.
        correct_B: True where the reward function says so, or its own reward is positive.
        versions_B: Number of updates of the policy that sampled the response, if rollouts are
            sampled ahead.
        versions_BT: The same for each token, if responses are continued with newer weights.
        hint_lengths_B: Number of hint tokens before the prompt that only the critic reads, in the
            critic's view of a rollout; `prompt_lengths_B` includes them.
        noise_weights_B: The critic's weight of each response, if prompts are weighted by noise.
        rewards_BT: Token rewards: the score on the last token, KL penalty if it is in the reward.
        old_logprobs_BT: Log-probability under the policy before the update.
        ref_logprobs_BT: Log-probability under the frozen reference, if there is one.
        entropy_BT: Entropy of the policy's distribution before the update, in nats; the sampler's,
            if the engine returns it, until the policy's own is computed.
        values_BT: V(s_t) before the update; s_t is the prompt and the tokens before token t.
        advantages_BT: Advantages of the policy, before whitening.
        returns_BT: Targets of the critic.
        loss_weights_BT: Weight of each token in the policy's loss on its mini-batch, set when the
            rollout is cut into mini-batches, so that the losses of micro-batches add up.
        nll_weights_BT: The same for the loss on correct responses.
        value_weights_BT: The same for the critic's loss.
        importance_weights_BT: Correction for the mismatch of the sampler, if it is on.
        trusted_BT: True where sampler and trainer agree closely enough to learn from the token.
        fitted_BT: True where the critic learns from the token, if its targets were corrected.
    """

    problems: tuple[Problem, ...]
    responses: tuple[str, ...]
    input_ids_BL: Tensor
    prompt_lengths_B: Tensor
    response_mask_BT: Tensor
    sampler_logprobs_BT: Tensor
    finished_B: Tensor
    positions_B: Tensor
    group_ids_B: Tensor
    scores_B: Tensor
    correct_B: Tensor
    versions_B: Tensor | None = None
    versions_BT: Tensor | None = None
    hint_lengths_B: Tensor | None = None
    noise_weights_B: Tensor | None = None
    rewards_BT: Tensor | None = None
    old_logprobs_BT: Tensor | None = None
    ref_logprobs_BT: Tensor | None = None
    entropy_BT: Tensor | None = None
    values_BT: Tensor | None = None
    advantages_BT: Tensor | None = None
    returns_BT: Tensor | None = None
    loss_weights_BT: Tensor | None = None
    nll_weights_BT: Tensor | None = None
    value_weights_BT: Tensor | None = None
    importance_weights_BT: Tensor | None = None
    trusted_BT: Tensor | None = None
    fitted_BT: Tensor | None = None

    def __len__(self) -> int:
        """Number of responses."""
        return len(self.problems)

    @property
    def response_lengths_B(self) -> Tensor:
        """Number of tokens of each response."""
        return self.response_mask_BT.sum(1)

    @property
    def extents_B(self) -> Tensor:
        """Length of each response up to its last masked token, gaps included."""
        place_T = torch.arange(1, self.response_mask_BT.shape[1] + 1, device=self.scores_B.device)
        places_BT = torch.where(self.response_mask_BT, place_T, 0)
        return places_BT.max(1).values if places_BT.numel() else places_BT.sum(1)

    @property
    def lengths_B(self) -> Tensor:
        """Length of prompt and response together."""
        return self.prompt_lengths_B + self.extents_B

    @property
    def response_ids_N(self) -> Tensor:
        """Token ids of the responses, in row order."""
        row_N, token_N = self.response_mask_BT.nonzero(as_tuple=True)
        return self.input_ids_BL[row_N, self.prompt_lengths_B[row_N] + token_N]

    def with_(self, **changes: Any) -> Rollout:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)

    def to(self, device: torch.device) -> Rollout:
        """Return a copy whose tensors are on that device."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return self.with_(**tensors)

    def to_plain(self) -> dict[str, Any]:
        """Return its fields as lists and tensors, as a checkpoint takes them."""
        plain = {k: v for k, v in vars(self).items() if v is not None}
        plain["problems"] = [list(astuple(problem)) for problem in self.problems]
        return plain | {"responses": list(self.responses)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Rollout:
        """Return the rollout of which `to_plain` has told."""
        problems = tuple(Problem(*fields) for fields in plain["problems"])
        return cls(**plain | {"problems": problems, "responses": tuple(plain["responses"])})

    def filler(self, weighed: Rollout) -> Rollout:
        """Return the first row, with the fields of a mini-batch and weights of 0.

        A rank without further rows uses it: its results have the same layout as those of the other
        ranks, and add nothing to them.

        Args:
            weighed: A part of this rollout with its weights; may be empty.
        """
        row = self.select(torch.zeros(1, dtype=torch.long, device=self.positions_B.device))
        nothing_BT = torch.zeros_like(row.sampler_logprobs_BT)
        names = ("loss_weights_BT", "nll_weights_BT", "value_weights_BT")
        weights = {name: nothing_BT for name in names if getattr(weighed, name) is not None}
        return row.with_(correct_B=torch.zeros_like(row.correct_B), **weights)

    def select(self, rows: Tensor) -> Rollout:
        """Return the given rows, with padding trimmed to the longest row.

        Args:
            rows: (M,) int64 row indices.
        """
        indices = rows.tolist()
        longest = {
            "BL": int(self.lengths_B[rows].max()) if indices else 0,
            "BT": int(self.extents_B[rows].max()) if indices else 0,
        }
        chosen: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, tuple):
                chosen[f.name] = tuple(value[i] for i in indices)
            elif isinstance(value, Tensor):
                value = value[rows]
                width = longest.get(f.name.rsplit("_", 1)[-1])
                chosen[f.name] = value if width is None else value[:, :width]
        return Rollout(**chosen)


def join_prompts(
    prompt_ids: list[list[int]], response_ids_BT: Tensor, mask_BT: Tensor, pad: int
) -> Tensor:
    """Append each response to its prompt.

    Args:
        prompt_ids: Token ids of B prompts.
        response_ids_BT: Token ids of their responses.
        mask_BT: True on response tokens.
        pad: Token id that fills rows on the right.

    Returns:
        input_ids_BL.
    """
    rows = [
        torch.cat([torch.tensor(prompt, device=ids.device), ids[mask]])
        for prompt, ids, mask in zip(prompt_ids, response_ids_BT, mask_BT, strict=True)
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)


def join(parts: list[Rollout]) -> Rollout:
    """Stack the rows of several rollouts with the fields that all have, padding to the longest."""
    joined: dict[str, Any] = {}
    for name, first in vars(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        if isinstance(first, tuple):
            joined[name] = tuple(item for value in values for item in value)
        elif any(value is None for value in values):
            continue
        elif isinstance(first, Tensor) and first.dim() == 2:
            width = max(value.shape[1] for value in values)
            joined[name] = torch.cat(
                [torch.nn.functional.pad(value, (0, width - value.shape[1])) for value in values]
            )
        elif isinstance(first, Tensor):
            joined[name] = torch.cat(values)
    return Rollout(**joined)


def pad(values_N: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Scatter N token values to their positions in (B, T, ...), 0 elsewhere; differentiable."""
    padded = values_N.new_zeros(*response_mask_BT.shape, *values_N.shape[1:])
    return padded.masked_scatter(
        response_mask_BT.reshape(*response_mask_BT.shape, *[1] * (values_N.dim() - 1)), values_N
    )


def last_token(response_mask_BT: Tensor) -> Tensor:
    """Return a mask (B, T), True only on the last masked token of each row."""
    return response_mask_BT & (response_mask_BT.flip(1).cumsum(1).flip(1) == 1)


def of_all_ranks(
    rows_BK: Tensor, positions_B: Tensor, *, ranks: int = 1, reduce: Reduce = identity
) -> Tensor:
    """Return the numbers of the responses of all ranks, in the order of the rollout.

    Args:
        rows_BK: One number, or K, per response of this rank; all ranks have equally many responses.
        positions_B: `Rollout.positions_B`.
        ranks: Number of ranks.
        reduce: Sums a small tensor over ranks.

    Returns:
        Tensor (ranks x B, K), the same on all ranks.
    """
    complete = rows_BK.new_zeros(ranks * len(rows_BK), *rows_BK.shape[1:])
    complete[positions_B] = rows_BK
    return reduce(complete)
