"""Compute log-probabilities, entropy and values of given responses.

Shapes: B responses, T response tokens, N masked response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vcppo.common import places
from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.distributed.sharding import is_sharded
from lightning_vcppo.models import forward
from lightning_vcppo.models.packing import reads_packed_rows
from lightning_vcppo.models.side_critic import SideCritic
from lightning_vcppo.models.value_network import ValueNetwork
from lightning_vcppo.modules.micro_batches import token_balanced_micro_batches
from lightning_vcppo.rollouts.rollout import Rollout, pad


class Scorer:
    """Runs forward passes of the networks, one micro-batch at a time."""

    def __init__(
        self,
        actor: PreTrainedModel,
        critic: ValueNetwork | None,
        reference: PreTrainedModel | None,
        *,
        temperature: float,
        max_tokens: int,
    ) -> None:
        """Collect the networks.

        Args:
            actor: The policy that is trained.
            critic: Its value function, if there is one.
            reference: The frozen reference policy, if there is one.
            temperature: Sampling temperature, at which log-probabilities and entropy are computed.
            max_tokens: Largest number of tokens of a micro-batch.
        """
        self.actor, self.critic, self.reference = actor, critic, reference
        self.temperature, self.max_tokens = temperature, max_tokens

    def actor_logprobs(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropy under the actor, (B, T) each."""
        return self._logprobs(self.actor, rollout)

    def actor_outputs(self, rollout: Rollout) -> tuple[Tensor, ...]:
        """Return what one forward pass of the actor tells, (B, T) each.

        Log-probabilities and entropy; and V, if a side critic reads the pass.
        """
        if not isinstance(self.critic, SideCritic):
            return self.actor_logprobs(rollout)
        with self.critic.sharing_forward():
            return (*self.actor_logprobs(rollout), *self.critic_values(rollout))

    def reference_logprobs(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropy under the reference, (B, T) each."""
        assert self.reference is not None
        return self._logprobs(self.reference, rollout)

    def critic_outputs(self, rollout: Rollout) -> Tensor:
        """Return the outputs of the value head for the state before each token, (N, K)."""
        assert self.critic is not None
        outputs_NK: Tensor = self.critic(
            rollout.input_ids_BL, rollout.prompt_lengths_B, rollout.response_mask_BT
        )
        return outputs_NK

    def critic_values(self, rollout: Rollout) -> tuple[Tensor]:
        """Return V of the state before each token, (B, T)."""
        assert self.critic is not None
        values_N = self.critic.values(self.critic_outputs(rollout))
        return (pad(values_N, rollout.response_mask_BT),)

    def sharing_forward(self) -> AbstractContextManager[None]:
        """Return a context in which the critic reads the actor's forward pass, if it can."""
        return nullcontext() if self.critic is None else self.critic.sharing_forward()

    def bootstrap(self, rollout: Rollout, ranks: Ranks) -> Tensor:
        """Return V after the last token of truncated responses and 0 for finished ones, (B,)."""
        end_BT = torch.nn.functional.one_hot(
            rollout.response_lengths_B, rollout.response_mask_BT.shape[1] + 1
        ).bool()
        (values_BT,) = self.in_micro_batches(
            self.critic_values, rollout.with_(response_mask_BT=end_BT), ranks
        )
        return values_BT.sum(1).masked_fill(rollout.finished_B, 0.0)

    def in_micro_batches(
        self, read: Callable[[Rollout], tuple[Tensor, ...]], rollout: Rollout, ranks: Ranks
    ) -> tuple[Tensor, ...]:
        """Apply a function that returns (B, T) tensors to a rollout, without gradients.

        It runs in micro-batches and is called on every rank. Rows come back in the rollout's order.
        """
        results: list[Tensor] = []
        all_rows = self.micro_batch_rows(rollout)
        missing = 0
        if is_sharded(self.actor):  # weights are also gathered from ranks with fewer pieces
            missing = ranks.max(len(all_rows)) - len(all_rows)
        for rows in all_rows:
            for i, values in enumerate(read(rollout.select(rows))):
                if len(results) <= i:
                    results.append(values.new_zeros(rollout.response_mask_BT.shape))
                results[i][rows, : values.shape[1]] = values
            places.move_on()
        for _ in range(missing):
            read(rollout.select(rollout.positions_B.new_zeros(1)))
        return tuple(results)

    def micro_batches(
        self, mini_batch: Rollout, rollout: Rollout, ranks: Ranks
    ) -> Iterator[Rollout]:
        """Cut a mini-batch into equally many pieces on all ranks.

        A rank with fewer pieces is filled up with rows of weight 0, because all must do the same
        number of backward passes.
        """
        rows = self.micro_batch_rows(mini_batch)
        missing = ranks.max(len(rows)) - len(rows)  # agreed on before any backward pass
        yield from (mini_batch.select(r) for r in rows)
        yield from [rollout.filler(mini_batch)] * missing

    def micro_batch_rows(self, rollout: Rollout) -> list[Tensor]:
        """Return the rows of each micro-batch."""
        networks = [self.actor] if self.critic is None else [self.actor, self.critic.reader]
        rows = token_balanced_micro_batches(
            rollout.lengths_B.tolist(),
            self.max_tokens,
            padded=not all(map(reads_packed_rows, networks)),
        )
        device = rollout.positions_B.device
        return [torch.tensor(r, dtype=torch.long, device=device) for r in rows]

    def _logprobs(self, model: PreTrainedModel, rollout: Rollout) -> tuple[Tensor, Tensor]:
        mask_BT = rollout.response_mask_BT
        logprobs_N, entropy_N = forward.response_logprobs(
            model,
            rollout.input_ids_BL,
            rollout.prompt_lengths_B,
            mask_BT,
            rollout.response_ids_N,
            temperature=self.temperature,
        )
        return pad(logprobs_N, mask_BT), pad(entropy_N, mask_BT)
