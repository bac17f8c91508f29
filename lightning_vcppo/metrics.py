"""The numbers that we report about evaluations and rollouts; none needs a Trainer.

1. Of an evaluation with k samples a problem: avg@k, pass@k and maj@k (`summarize`).
2. Of a rollout: its means (`describe_rollout`, `describe_critic`). What depends on the position in
   the response is in `profiles.py`.

Shapes: B sequences, T response tokens.
Masks are True on the tokens that count.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from lightning_vcppo.advantages import monte_carlo_returns
from lightning_vcppo.microbatch import Reduce, explained_variance, identity, masked_mean
from lightning_vcppo.rewards import normalize_answer
from lightning_vcppo.rollout import ResponseRecord, Rollout


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate, without bias, the probability that at least one of k samples is right.

    It is 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, equation 1).

    Args:
        num_samples: Responses n drawn for the problem.
        num_correct: Right ones c among them.
        k: Size of the subset, at most n.

    Raises:
        ValueError: If not 0 <= c <= n or not 1 <= k <= n.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct: expected 0..{num_samples}, got {num_correct}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k: expected 1..{num_samples} (the samples drawn), got {k}")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_vote(predictions: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Return the probability that the most frequent answer is right, ties broken at random.

    Right responses vote together, however they write the answer; wrong ones vote for their
    normalised answer; wrong ones without an answer do not vote.

    Args:
        predictions: Answers of the k samples of one problem, None where there is none.
        correct: Whether each is right.
    """
    num_right = sum(correct)
    if num_right == 0:
        return 0.0
    wrong = Counter(
        normalize_answer(prediction)
        for prediction, is_right in zip(predictions, correct, strict=True)
        if prediction is not None and not is_right
    )
    rivals = [votes for votes in wrong.values() if votes >= num_right]
    return 0.0 if any(votes > num_right for votes in rivals) else 1 / (1 + len(rivals))


@dataclass(frozen=True)
class EvaluationSummary:
    """An evaluation in numbers; rates are means over problems.

    Attributes:
        problems: How many.
        k: Samples of each (the fewest, if they differ).
        accuracy: avg@k: share of right samples.
        pass_at_k: Share of problems that one of k samples solves.
        maj_at_k: Share of problems that the majority of the samples solves.
        response_length: Mean length in tokens, over responses.
        truncation_rate: Share of responses cut off at the limit.
    """

    problems: int
    k: int
    accuracy: float
    pass_at_k: float
    maj_at_k: float
    response_length: float
    truncation_rate: float


def summarize(records: Sequence[ResponseRecord]) -> EvaluationSummary:
    """Compute the numbers of an evaluation.

    Args:
        records: All samples of all problems, each sample once.

    Raises:
        ValueError: If there are no records.
    """
    if not records:
        raise ValueError("an evaluation needs at least one response; got none")
    by_problem: dict[int, list[ResponseRecord]] = defaultdict(list)
    for record in records:
        by_problem[record.index].append(record)
    groups = by_problem.values()
    k = min(map(len, groups))
    num_correct = [sum(record.correct for record in group) for group in groups]
    return EvaluationSummary(
        problems=len(groups),
        k=k,
        accuracy=fmean(c / len(group) for c, group in zip(num_correct, groups, strict=True)),
        pass_at_k=fmean(
            pass_at_k(len(group), c, k) for c, group in zip(num_correct, groups, strict=True)
        ),
        maj_at_k=fmean(
            majority_vote([r.prediction for r in group], [r.correct for r in group])
            for group in groups
        ),
        response_length=fmean(record.length for record in records),
        truncation_rate=fmean(not record.finished for record in records),
    )


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
    monte_carlo_BT = monte_carlo_returns(rollout.rewards_BT, mask_BT, gamma=gamma)
    explained = explained_variance(values_BT, monte_carlo_BT, mask_BT, reduce=reduce)
    return {
        "critic/explained_variance": float(explained),
        "critic/value_mean": float(masked_mean(values_BT, mask_BT, reduce=reduce)),
        "critic/return_mean": float(masked_mean(rollout.returns_BT, mask_BT, reduce=reduce)),
    }
