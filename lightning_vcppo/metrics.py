"""The numbers that we report about rollouts; none needs a Trainer.

They are its means (`describe_rollout`, `describe_critic`); means by position in the response
(`PositionProfile`), which show the critic's initialisation bias; and the weight with which the
terminal reward reaches a token (`reward_weights`), which shows its decay (VC-PPO, arXiv 2503.01491,
section 3). Those of an evaluation are in `evaluation.py`.

Shapes: B sequences, T response tokens, N masked tokens, D bins of position.
Masks are True on the tokens that count.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_vcppo.advantages import decoupled_gae, length_adaptive_lambda
from lightning_vcppo.microbatch import Reduce, explained_variance, identity, masked_mean
from lightning_vcppo.rollout import Rollout
from lightning_vcppo.settings import AdvantageSettings

NUM_DECILES = 10


class PositionProfile(Metric):
    """Mean of a token quantity by position in the response, over all ranks.

    Bins are relative (deciles of each response's own length) unless `bin_width` is given; then they
    are absolute, `bin_width` tokens each, and the last one takes all later tokens too. A response
    shorter than `num_bins` leaves some relative bins empty; the mean of an empty bin is NaN.

    Args:
        num_bins: Number of bins D.
        bin_width: Tokens of an absolute bin; None for relative bins.

    Raises:
        ValueError: If `num_bins` or `bin_width` is less than 1.
    """

    full_state_update = False
    sums_D: Tensor
    counts_D: Tensor

    def __init__(self, num_bins: int = NUM_DECILES, bin_width: int | None = None) -> None:
        """Start with empty bins."""
        super().__init__()
        if num_bins < 1:
            raise ValueError(f"num_bins: expected >= 1, got {num_bins}")
        if bin_width is not None and bin_width < 1:
            raise ValueError(f"bin_width: expected >= 1 token, got {bin_width}")
        self.num_bins, self.bin_width = num_bins, bin_width
        self.add_state("sums_D", torch.zeros(num_bins), dist_reduce_fx="sum")
        self.add_state("counts_D", torch.zeros(num_bins), dist_reduce_fx="sum")

    @override
    def update(self, values_BT: Tensor, response_mask_BT: Tensor) -> None:
        """Add the tokens of a batch.

        Args:
            values_BT: The quantity; read only where the mask is True.
            response_mask_BT: True on the tokens of the response, which start each row.
        """
        position_BT = torch.arange(response_mask_BT.shape[1], device=response_mask_BT.device)
        if self.bin_width is None:
            lengths_B1 = response_mask_BT.sum(1, keepdim=True).clamp(min=1)
            bins_BT = position_BT * self.num_bins // lengths_B1
        else:
            bins_BT = (position_BT // self.bin_width).clamp(max=self.num_bins - 1)
        bins_N = bins_BT.expand_as(response_mask_BT)[response_mask_BT]
        values_N = values_BT[response_mask_BT].to(self.sums_D)
        self.sums_D = self.sums_D.index_add(0, bins_N, values_N)
        self.counts_D = self.counts_D.index_add(0, bins_N, torch.ones_like(values_N))

    @override
    def compute(self) -> Tensor:
        """Return the means_D, NaN in empty bins."""
        return self.sums_D / self.counts_D


def position_profile(values_BT: Tensor, response_mask_BT: Tensor) -> list[float]:
    """Return the mean of a quantity in each decile of the responses, over all ranks.

    Every rank must call it. Arguments are those of `PositionProfile.update`.
    """
    profile = PositionProfile().to(values_BT.device)
    profile.update(values_BT, response_mask_BT)
    means: list[float] = profile.compute().tolist()
    return means


def reward_weights(response_mask_BT: Tensor, lam: float | Tensor, *, gamma: float = 1.0) -> Tensor:
    """Compute the weight (gamma lambda)^(T - t) of the terminal reward in the advantage of token t.

    Tokens count from 1, so the last one has weight 1 and the first (gamma lambda)^(T - 1). With the
    critic's lambda it is the weight in the value target instead. Whatever weight is missing, the
    critic's own bootstraps fill (VC-PPO, section 3.2).

    Args:
        response_mask_BT: True on the tokens of the response, which start each row.
        lam: One lambda, or one for each response (B,).
        gamma: Discount.

    Returns:
        weights_BT, 0 outside the mask.
    """
    lengths_B1 = response_mask_BT.sum(1, keepdim=True)
    position_BT = torch.arange(1, response_mask_BT.shape[1] + 1, device=lengths_B1.device)
    decay_B = torch.as_tensor(gamma * lam, dtype=torch.float32, device=lengths_B1.device)
    weights_BT = decay_B.reshape(-1, 1) ** (lengths_B1 - position_BT).clamp(min=0)
    return weights_BT.masked_fill(~response_mask_BT, 0.0)


def actor_lambda(lengths_B: Tensor, settings: AdvantageSettings) -> Tensor:
    """Return the lambda of each response's advantages, fixed or adapted to its length in tokens."""
    if settings.length_adaptive_alpha is not None:
        return length_adaptive_lambda(lengths_B, settings.length_adaptive_alpha)
    return torch.full(lengths_B.shape, settings.lambda_actor, device=lengths_B.device)


def effective_horizon(lam: float, gamma: float = 1.0) -> float:
    """Return 1 / (1 - gamma lambda), the tokens over which TD errors are summed; inf at 1."""
    return math.inf if gamma * lam >= 1 else 1 / (1 - gamma * lam)


def describe_rollout(rollout: Rollout, *, reduce: Reduce = identity) -> dict[str, float]:
    """Return the means of a rollout's responses under their `rollout/*` names.

    Args:
        rollout: Graded responses.
        reduce: Sums a small tensor over ranks.
    """
    everyone_B = torch.ones_like(rollout.finished_B)
    of_responses = {
        "rollout/reward_mean": rollout.scores_B,
        "rollout/accuracy": rollout.correct_B,
        "rollout/response_length": rollout.response_lengths_B,
        "rollout/truncation_rate": ~rollout.finished_B,
    }
    return {
        name: float(masked_mean(values_B.float(), everyone_B, reduce=reduce))
        for name, values_B in of_responses.items()
    }


def describe_critic(
    rollout: Rollout, gamma: float = 1.0, *, reduce: Reduce = identity
) -> dict[str, float]:
    """Return how good the critic was before its updates, under its `critic/*` names.

    Explained variance is of the Monte-Carlo returns. Against bootstrapped targets (lambda_critic
    below 1) it would measure how far the critic agrees with itself, and flatter plain PPO.

    Args:
        rollout: With rewards, values and the critic's targets.
        gamma: Discount.
        reduce: Sums a small tensor over ranks.
    """
    assert rollout.rewards_BT is not None and rollout.values_BT is not None
    assert rollout.returns_BT is not None
    values_BT, mask_BT = rollout.values_BT, rollout.response_mask_BT
    _, monte_carlo_BT = decoupled_gae(
        rollout.rewards_BT, values_BT, mask_BT, gamma=gamma, lambda_actor=1.0, lambda_critic=1.0
    )
    explained = explained_variance(values_BT, monte_carlo_BT, mask_BT, reduce=reduce)
    return {
        "critic/explained_variance": float(explained),
        "critic/value_mean": float(masked_mean(values_BT, mask_BT, reduce=reduce)),
        "critic/return_mean": float(masked_mean(rollout.returns_BT, mask_BT, reduce=reduce)),
    }
