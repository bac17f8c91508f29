"""Define the objectives of an update: for each network its token weights and its loss.

Every loss is a weighted sum over tokens, whose weights are fixed for a mini-batch before it is cut
into micro-batches, so that losses and gradients of the parts add up.

Shapes: B responses, T response tokens, K outputs of the value head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from lightning_vcppo.algorithm import losses, value_heads
from lightning_vcppo.algorithm.loss_weights import aggregation_weights, weighted_sum
from lightning_vcppo.algorithm.losses import Diagnostics
from lightning_vcppo.algorithm.policy_losses import POLICY_LOSSES
from lightning_vcppo.algorithm.policy_terms import POLICY_DIAGNOSTICS
from lightning_vcppo.algorithm.statistics import Reduce
from lightning_vcppo.models.value_network import ValueNetwork
from lightning_vcppo.rollouts.rollout import Rollout, pad
from lightning_vcppo.settings import PolicySettings, ValueSettings


class Objective(Protocol):
    """The loss of one network."""

    @property
    def diagnostics(self) -> tuple[str, ...]:
        """Names of the diagnostics that `loss` returns.

        Ranks sum them as one vector, so they depend on the settings, never on the data.
        """
        ...

    def weigh(self, mini_batch: Rollout, reduce: Reduce) -> Rollout:
        """Fix the weight of each token in the loss of a mini-batch; called on every rank."""
        ...

    def loss(self, micro_batch: Rollout) -> tuple[Tensor, Diagnostics]:
        """Return the loss of a part of a mini-batch, and diagnostics that `combine` can merge."""
        ...


class PolicyObjective:
    """A policy loss, with entropy bonus, KL penalty and NLL on correct responses if set."""

    def __init__(
        self,
        settings: PolicySettings,
        logprobs: Callable[[Rollout], tuple[Tensor, Tensor]],
    ) -> None:
        """Collect the parts.

        Args:
            settings: Settings of the policy loss.
            logprobs: Returns log-probabilities and entropy under the actor, (B, T) each.
        """
        self.settings, self.logprobs = settings, logprobs
        bound = {} if settings.clip_ratio_c is None else {"clip_ratio_c": settings.clip_ratio_c}
        self.policy_loss = functools.partial(
            POLICY_LOSSES[settings.loss],
            clip_ratio_low=settings.clip_ratio_low,
            clip_ratio_high=settings.clip_ratio_high,
            **bound,
        )

    @property
    def diagnostics(self) -> tuple[str, ...]:
        """Names of the diagnostics that `loss` returns."""
        names = {*POLICY_DIAGNOSTICS, "entropy"}
        if self.settings.kl_coef:
            names.update(losses.KL_DIAGNOSTICS)
        if self.settings.positive_example_nll_weight:
            names.update(losses.NLL_DIAGNOSTICS)
        return tuple(sorted(names))

    def weigh(self, mini_batch: Rollout, reduce: Reduce) -> Rollout:
        """Fix the weight of each token in the loss of a mini-batch; called on every rank."""
        settings, mask_BT = self.settings, mini_batch.response_mask_BT
        if settings.positive_example_nll_weight:
            positive_BT = mask_BT & mini_batch.correct_B[:, None]
            nll_weights_BT = aggregation_weights(positive_BT, "token-mean", reduce=reduce)
            mini_batch = mini_batch.with_(nll_weights_BT=nll_weights_BT)
        counted_BT = mask_BT
        if settings.mask_truncated:
            counted_BT = counted_BT & mini_batch.finished_B[:, None]
        if mini_batch.trusted_BT is not None:
            counted_BT = counted_BT & mini_batch.trusted_BT
        weights_BT = aggregation_weights(counted_BT, settings.loss_agg_mode, reduce=reduce)
        return mini_batch.with_(loss_weights_BT=weights_BT)

    def loss(self, micro_batch: Rollout) -> tuple[Tensor, Diagnostics]:
        """Return the actor's loss on a part of a mini-batch and its diagnostics."""
        settings, mask_BT = self.settings, micro_batch.response_mask_BT
        assert micro_batch.loss_weights_BT is not None and micro_batch.advantages_BT is not None
        assert micro_batch.old_logprobs_BT is not None
        logprobs_BT, entropy_BT = self.logprobs(micro_batch)
        loss, metrics = self.policy_loss(
            logprobs_BT,
            micro_batch.old_logprobs_BT,
            micro_batch.advantages_BT,
            mask_BT,
            importance_weights_BT=micro_batch.importance_weights_BT,
            token_weights_BT=micro_batch.loss_weights_BT,
        )
        entropy = weighted_sum(entropy_BT, mask_BT, micro_batch.loss_weights_BT)
        metrics["entropy"] = entropy.detach()
        if settings.entropy_coeff:
            loss = loss - settings.entropy_coeff * entropy
        if micro_batch.ref_logprobs_BT is not None:
            kl, kl_metrics = losses.kl_penalty(
                logprobs_BT,
                micro_batch.ref_logprobs_BT,
                mask_BT,
                estimator=settings.kl_estimator,
                token_weights_BT=micro_batch.loss_weights_BT,
            )
            metrics |= kl_metrics
            if settings.kl_placement == "loss":
                loss = loss + settings.kl_coef * kl
        if micro_batch.nll_weights_BT is not None:
            nll, nll_metrics = losses.positive_example_nll(
                logprobs_BT,
                mask_BT,
                micro_batch.correct_B,
                token_weights_BT=micro_batch.nll_weights_BT,
            )
            metrics |= nll_metrics
            loss = loss + settings.positive_example_nll_weight * nll
        return loss, metrics


class CriticObjective:
    """The loss of the value head on the targets of decoupled GAE."""

    def __init__(
        self, settings: ValueSettings, critic: ValueNetwork, outputs: Callable[[Rollout], Tensor]
    ) -> None:
        """Collect the parts.

        Args:
            settings: Settings of the value loss.
            critic: Turns outputs of its head into values.
            outputs: Returns the outputs of the head for each masked token, (N, K).
        """
        self.settings, self.critic, self.outputs = settings, critic, outputs

    @property
    def diagnostics(self) -> tuple[str, ...]:
        """Names of the diagnostics that `loss` returns."""
        if self.settings.head == "hl_gauss" or self.settings.loss == "bce":
            return tuple(sorted(value_heads.CROSS_ENTROPY_DIAGNOSTICS))
        return tuple(sorted(losses.VALUE_DIAGNOSTICS))

    def weigh(self, mini_batch: Rollout, reduce: Reduce) -> Rollout:
        """Fix the weight of each token in the loss of a mini-batch; called on every rank."""
        counted_BT = mini_batch.response_mask_BT
        if mini_batch.fitted_BT is not None:
            counted_BT = counted_BT & mini_batch.fitted_BT
        weights_BT = aggregation_weights(
            counted_BT,
            self.settings.loss_agg_mode,
            reduce=reduce,
            sequence_weights_B=mini_batch.noise_weights_B,
        )
        return mini_batch.with_(value_weights_BT=weights_BT)

    def loss(self, micro_batch: Rollout) -> tuple[Tensor, Diagnostics]:
        """Return the critic's loss on a part of a mini-batch and its diagnostics."""
        assert micro_batch.returns_BT is not None
        settings, mask_BT = self.settings, micro_batch.response_mask_BT
        outputs_NK = self.outputs(micro_batch)
        if settings.head == "hl_gauss":
            return value_heads.hl_gauss_loss(
                pad(outputs_NK, mask_BT),
                micro_batch.returns_BT,
                mask_BT,
                edges_E=self.critic.edges(),
                sigma_ratio=settings.sigma_ratio,
                token_weights_BT=micro_batch.value_weights_BT,
            )
        if settings.loss == "bce":
            return value_heads.bce_loss(
                pad(outputs_NK[:, 0], mask_BT),
                micro_batch.returns_BT,
                mask_BT,
                low=settings.value_min,
                high=settings.value_max,
                token_weights_BT=micro_batch.value_weights_BT,
            )
        return losses.value_loss(
            pad(self.critic.values(outputs_NK), mask_BT),
            micro_batch.returns_BT,
            mask_BT,
            loss=settings.loss,
            huber_delta=settings.huber_delta,
            old_values_BT=micro_batch.values_BT,
            cliprange_value=settings.cliprange_value,
            token_weights_BT=micro_batch.value_weights_BT,
        )
