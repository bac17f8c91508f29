"""Compute means by position in the response, and how far the terminal reward reaches.

VC-PPO (arXiv 2503.01491, section 3) uses both to explain the failure of PPO on long responses:
values and advantages drift with the position, although only the end of a response is rewarded
(`profile_positions`); and the weight of the reward vanishes before the first token
(`reward_weights`).

Shapes: B responses of this rank, T response tokens, N masked tokens, Q quantities, D bins.
Masks are True on the tokens that count, which start each row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vcppo.algorithm.advantages import length_adaptive_lambda, monte_carlo_returns
from lightning_vcppo.algorithm.statistics import Reduce, identity
from lightning_vcppo.rollouts.rollout import Rollout, of_all_ranks
from lightning_vcppo.settings import AdvantageSettings

NUM_DECILES = 10
SPLITS = ("all", "correct", "incorrect", "short", "long")

Profile = dict[str, dict[str, list[float | None]]]
"""Quantity -> split -> its mean in each bin; None for a bin without tokens."""


@dataclass(frozen=True)
class PositionProfiles:
    """Means of token quantities by position, over all ranks.

    Attributes:
        deciles: Means by tenths of each response's length. A response of fewer than ten tokens is
            not in all of them.
        absolute: Means by bins of `bin_width` tokens from the start of the response; the last bin
            also contains all later tokens.
        bin_width: Number of token positions of an absolute bin.
        count: Number of tokens in each absolute bin.
    """

    deciles: Profile
    absolute: Profile
    bin_width: int
    count: list[int]


def profile_positions(
    quantities: Mapping[str, Tensor],
    response_mask_BT: Tensor,
    correct_B: Tensor,
    median_length: float,
    *,
    bin_width: int,
    num_bins: int,
    reduce: Reduce = identity,
) -> PositionProfiles:
    """Average quantities in relative and absolute bins, for each of `SPLITS`.

    `short` and `long` are the responses below and above the median; those of exactly that length
    are in neither.

    Args:
        quantities: Token quantities, (B, T) each; read only where the mask is True.
        response_mask_BT: True on the tokens of the responses.
        correct_B: True for correct responses.
        median_length: Median length of the responses of all ranks, in tokens.
        bin_width: Number of token positions of an absolute bin.
        num_bins: Number of absolute bins.
        reduce: Sums a small tensor over ranks; called once.

    Raises:
        ValueError: If `bin_width` or `num_bins` is less than 1.
    """
    if bin_width < 1 or num_bins < 1:
        raise ValueError(f"expected bins >= 1 of >= 1 token, got {num_bins} of {bin_width}")
    mask_BT, lengths_B = response_mask_BT, response_mask_BT.sum(1)
    row_N, position_N = mask_BT.nonzero(as_tuple=True)
    ones_N = torch.ones_like(position_N, dtype=torch.float64)
    terms_QN = torch.stack([*(x_BT[mask_BT].double() for x_BT in quantities.values()), ones_N])
    # Every response is in one of 2 x 3 cells, and every split is a sum of cells.
    cell_N = (3 * correct_B + 1 + (lengths_B - median_length).sign()).long()[row_N]
    decile_N = position_N * NUM_DECILES // lengths_B[row_N]
    bin_N = (position_N // bin_width).clamp(max=num_bins - 1)
    size_Q = len(terms_QN)
    decile_sums = terms_QN.new_zeros(size_Q, 6 * NUM_DECILES)
    decile_sums.index_add_(1, cell_N * NUM_DECILES + decile_N, terms_QN)
    bin_sums = terms_QN.new_zeros(size_Q, 6 * num_bins)
    bin_sums.index_add_(1, cell_N * num_bins + bin_N, terms_QN)
    sums = reduce(torch.cat([decile_sums, bin_sums], 1)).cpu()
    decile_sums, bin_sums = sums.split([6 * NUM_DECILES, 6 * num_bins], 1)
    absolute, count = _means(quantities, bin_sums)
    return PositionProfiles(_means(quantities, decile_sums)[0], absolute, bin_width, count)


def profile_rollout(
    rollout: Rollout,
    quantities: Mapping[str, Tensor],
    *,
    bin_width: int,
    num_bins: int,
    ranks: int = 1,
    reduce: Reduce = identity,
) -> PositionProfiles:
    """Call `profile_positions` with the splits of a rollout.

    Args:
        rollout: Graded responses of this rank.
        quantities: Token quantities, (B, T) each.
        bin_width: Number of token positions of an absolute bin.
        num_bins: Number of absolute bins.
        ranks: Number of ranks, with equally many responses each.
        reduce: Sums a small tensor over ranks; called twice.
    """
    lengths_R = of_all_ranks(
        rollout.response_lengths_B.double(), rollout.positions_B, ranks=ranks, reduce=reduce
    )
    return profile_positions(
        quantities,
        rollout.response_mask_BT,
        rollout.correct_B,
        float(lengths_R.quantile(0.5)),  # for an even number the mean of the middle two
        bin_width=bin_width,
        num_bins=num_bins,
        reduce=reduce,
    )


def token_quantities(rollout: Rollout, gamma: float = 1.0) -> dict[str, Tensor]:
    """Return the quantities to show by position, (B, T) each, that the rollout has.

    The returns are Monte-Carlo returns. Against targets with lambda_critic below 1, which contain
    the critic's own values, a biased critic would look unbiased.
    """
    found = {}
    if rollout.values_BT is not None and rollout.rewards_BT is not None:
        returns_BT = monte_carlo_returns(rollout.rewards_BT, rollout.response_mask_BT, gamma=gamma)
        found["value"], found["return"] = rollout.values_BT, returns_BT
        found["bias"] = rollout.values_BT - returns_BT
    if rollout.advantages_BT is not None:
        found["advantage"] = rollout.advantages_BT
    if rollout.entropy_BT is not None:
        found["entropy"] = rollout.entropy_BT
    return found


def absolute_bins(max_response_length: int, bin_width: int | None, at_most: int) -> tuple[int, int]:
    """Return width and number of the bins for responses up to a length.

    Args:
        max_response_length: Largest length, in tokens.
        bin_width: Number of token positions of a bin; None makes about `at_most` bins.
        at_most: Largest number of bins if `bin_width` is None.
    """
    width = bin_width or math.ceil(max_response_length / at_most)
    return width, math.ceil(max_response_length / width)


def _means(names: Mapping[str, object], sums: Tensor) -> tuple[Profile, list[int]]:
    """Return means over splits, and the number of tokens in each bin, from sums (Q, 6 D)."""
    sums_QCLD = sums.view(len(sums), 2, 3, -1)
    of_splits = {
        "all": sums_QCLD.sum((1, 2)),
        "correct": sums_QCLD[:, 1].sum(1),
        "incorrect": sums_QCLD[:, 0].sum(1),
        "short": sums_QCLD[:, :, 0].sum(1),
        "long": sums_QCLD[:, :, 2].sum(1),
    }
    profile: Profile = {name: {} for name in names}
    for split, sums_QD in of_splits.items():
        for name, means in zip(names, (sums_QD[:-1] / sums_QD[-1]).tolist(), strict=True):
            profile[name][split] = [None if math.isnan(mean) else mean for mean in means]
    return profile, [int(count) for count in of_splits["all"][-1].tolist()]


# The reach of the reward --------------------------------------------------------------------------


def reward_weights(response_mask_BT: Tensor, lam: float | Tensor, *, gamma: float = 1.0) -> Tensor:
    """Compute the weight (gamma lambda)^(T - t) of the terminal reward in the advantage of token t.

    Tokens count from 1, so the last one has weight 1 and the first (gamma lambda)^(T - 1). With the
    critic's lambda it is the weight in the value target. The remaining weight goes to the critic's
    own bootstrapped values (VC-PPO, section 3.2).

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
    """Return the lambda of each response's advantages.

    It is fixed or adapted to the length in tokens; estimators without a critic give every token
    the complete reward, like lambda = 1.
    """
    if not settings.needs_critic:
        return torch.ones(lengths_B.shape, device=lengths_B.device)
    if settings.length_adaptive_alpha is not None:
        return length_adaptive_lambda(lengths_B, settings.length_adaptive_alpha)
    return torch.full(lengths_B.shape, settings.lambda_actor, device=lengths_B.device)


def effective_horizon(lam: float, gamma: float = 1.0) -> float:
    """Return 1 / (1 - gamma lambda), the tokens over which TD errors are summed; inf at 1."""
    return math.inf if gamma * lam >= 1 else 1 / (1 - gamma * lam)


@dataclass(frozen=True)
class RewardReach:
    """Reach of the terminal reward in a rollout, for actor and critic; means over all ranks.

    Attributes:
        response_length: Mean number of tokens of a response.
        lambda_actor: Lambda of the advantages, mean over responses.
        lambda_critic: Lambda of the value targets of this rollout.
        gamma: Discount.
        actor_horizon: Tokens over which the advantages sum TD errors, mean over responses.
        critic_horizon: The same for the value targets.
        actor_reward_share_first: Weight of the reward at the first token, mean over responses.
        actor_reward_share_mean: The same over all tokens.
        critic_reward_share_first: The same at the first token, in the value targets.
        critic_reward_share_mean: The same over all tokens, in the value targets.
    """

    response_length: float
    lambda_actor: float
    lambda_critic: float
    gamma: float
    actor_horizon: float
    critic_horizon: float
    actor_reward_share_first: float
    actor_reward_share_mean: float
    critic_reward_share_first: float
    critic_reward_share_mean: float


def reward_reach(
    response_mask_BT: Tensor,
    lambda_actor_B: Tensor,
    lambda_critic: float,
    *,
    gamma: float = 1.0,
    reduce: Reduce = identity,
) -> RewardReach:
    """Measure how much of the terminal reward reaches the tokens with these lambdas.

    Args:
        response_mask_BT: True on the tokens of the responses.
        lambda_actor_B: Lambdas of the advantages.
        lambda_critic: Lambda of the value targets.
        gamma: Discount.
        reduce: Sums a small tensor over ranks; called once.
    """
    lengths_B = response_mask_BT.sum(1).double()
    horizon_B = 1 / (1 - gamma * lambda_actor_B.double())  # infinite at 1
    sums = [lengths_B.new_tensor(len(lengths_B)), lengths_B.sum(), lambda_actor_B.double().sum()]
    sums.append(horizon_B.sum())
    for lam in (lambda_actor_B, lambda_critic):
        weights_BT = reward_weights(response_mask_BT, lam, gamma=gamma)
        sums += [weights_BT[:, 0].double().sum(), weights_BT.double().sum()]
    responses, tokens, lambdas, horizons, *shares = reduce(torch.stack(sums)).tolist()
    return RewardReach(
        response_length=tokens / responses,
        lambda_actor=lambdas / responses,
        lambda_critic=lambda_critic,
        gamma=gamma,
        actor_horizon=horizons / responses,
        critic_horizon=effective_horizon(lambda_critic, gamma),
        actor_reward_share_first=shares[0] / responses,
        actor_reward_share_mean=shares[1] / tokens,
        critic_reward_share_first=shares[2] / responses,
        critic_reward_share_mean=shares[3] / tokens,
    )
