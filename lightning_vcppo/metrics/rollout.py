"""Compute the metrics of rollouts, without a Trainer.

They are means (`describe_rollout`) and the quality of the critic before its updates
(`describe_critic`) or after a fit (`describe_fit`). Metrics by position in the response are in
`positions.py`, those of evaluations in `evaluation.py`.

Shapes: B sequences, T response tokens. Masks are True on the tokens that count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_vcppo.algorithm.advantages import monte_carlo_returns
from lightning_vcppo.algorithm.statistics import (
    Reduce,
    explained_variance,
    identity,
    masked_mean,
    r_squared,
)
from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.rollouts.rollout import Rollout

ALIGNED = 0.05
"""Largest share of the bias in the squared error when the range of values is right; ours."""


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


def describe_fit(
    values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, reduce: Reduce = identity
) -> dict[str, float]:
    """Return loss, R^2, explained variance and bias of values against their returns.

    Twice the loss is bias^2 + (1 - explained_variance) Var(R), or (1 - r2) Var(R).

    Args:
        values_BT: Values V.
        returns_BT: Returns R.
        mask_BT: True on the tokens that count.
        reduce: Sums a small tensor over ranks.
    """
    error_BT = returns_BT - values_BT
    return {
        "loss": 0.5 * float(masked_mean(error_BT.square(), mask_BT, reduce=reduce)),
        "r2": float(r_squared(values_BT, returns_BT, mask_BT, reduce=reduce)),
        "explained_variance": float(
            explained_variance(values_BT, returns_BT, mask_BT, reduce=reduce)
        ),
        "bias": float(masked_mean(error_BT, mask_BT, reduce=reduce)),
    }


def range_alignment_end(losses: Sequence[float], biases: Sequence[float]) -> int | None:
    """Return the index at which the first phase of value pretraining ends; None if it does not.

    VC-PPO (section 4.1) observes two: first the values quickly move into the range of the returns,
    then the critic slowly learns which tokens matter. In the first the squared error has a large
    common part, (mean(R - V))^2; the second begins when it is at most 5 % of mean((R - V)^2).

    Args:
        losses: 1/2 mean((R - V)^2), one per rollout.
        biases: mean(R - V), one per rollout.
    """
    return next(
        (
            i
            for i, (loss, bias) in enumerate(zip(losses, biases, strict=True))
            if bias**2 <= ALIGNED * 2 * loss
        ),
        None,
    )


def describe_critic(
    rollout: Rollout, gamma: float = 1.0, *, reduce: Reduce = identity
) -> dict[str, float]:
    """Return the quality of the critic before its updates, under `critic/*` names.

    R^2, explained variance and bias are against Monte-Carlo returns. Against bootstrapped targets
    (lambda_critic below 1) they would measure how far the critic agrees with itself, and
    overestimate plain PPO's critic.

    Args:
        rollout: Rollout with rewards, values and the critic's targets.
        gamma: Discount.
        reduce: Sums a small tensor over ranks.
    """
    assert rollout.rewards_BT is not None and rollout.values_BT is not None
    assert rollout.returns_BT is not None
    values_BT, mask_BT = rollout.values_BT, rollout.response_mask_BT
    monte_carlo_BT = monte_carlo_returns(rollout.rewards_BT, mask_BT, gamma=gamma)
    fit = describe_fit(values_BT, monte_carlo_BT, mask_BT, reduce=reduce)
    return {
        "critic/r2": fit["r2"],
        "critic/explained_variance": fit["explained_variance"],
        "critic/bias": fit["bias"],
        "critic/value_mean": float(masked_mean(values_BT, mask_BT, reduce=reduce)),
        "critic/return_mean": float(masked_mean(rollout.returns_BT, mask_BT, reduce=reduce)),
    }


def describe_step(
    rollout: Rollout, gamma: float, seconds: Mapping[str, float], ranks: Ranks
) -> dict[str, float]:
    """Return all metrics of a training step's rollout; called on every rank.

    Args:
        rollout: Rollout of the step.
        gamma: Discount.
        seconds: Seconds of each part of the step, on this rank.
        ranks: Ranks of the run.
    """
    metrics = describe_rollout(rollout, reduce=ranks.sum)
    if rollout.values_BT is not None:
        metrics |= describe_critic(rollout, gamma, reduce=ranks.sum)
    tokens = metrics["rollout/response_length"] * len(rollout) * ranks.count
    metrics["rollout/tokens_per_second"] = tokens / sum(seconds.values())
    return metrics | {f"time/{part}_s": number for part, number in seconds.items()}
