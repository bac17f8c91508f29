"""Value pretraining (VC-PPO, section 4.1): its place among the phases, and when it has done enough.

The critic is fitted on Monte-Carlo returns of the frozen policy (`monte_carlo_returns`) until it no
longer foresees the returns of responses that were held out any better. How well it does is R^2, not
explained variance: a critic whose values are all off by a constant explains as much variance as one
without that bias, and would push the policy all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(str, Enum):
    """What a rollout is used for."""

    VALUE_PRETRAINING = "value_pretraining"
    POLICY_OPTIMIZATION = "policy_optimization"


@dataclass
class Progress:
    """How far value pretraining is, in plain numbers.

    Attributes:
        rollouts: Training steps of the phase.
        generated_tokens: Response tokens generated in it, over all ranks.
        best: Highest R^2 on held-out responses.
        best_rollout: After which rollout.
        risen_to: The same as `best`, without rises smaller than `min_delta`.
        risen_at: After which rollout.
    """

    rollouts: int = 0
    generated_tokens: int = 0
    best: float = float("-inf")
    best_rollout: int = 0
    risen_to: float = float("-inf")
    risen_at: int = 0


@dataclass(frozen=True)
class StopRule:
    """When value pretraining ends.

    Attributes:
        max_rollouts: Rollouts after which it ends; 0 means that there is none.
        min_rollouts: It does not end earlier.
        patience: It ends when R^2 has not risen for this many rollouts.
        min_delta: A rise smaller than this does not count for `patience`.
        target: It ends when R^2 is this high.
    """

    max_rollouts: int
    min_rollouts: int
    patience: int
    min_delta: float = 0.01
    target: float | None = None

    def advance(self, progress: Progress, r_squared: float) -> bool:
        """Count a rollout; return whether its critic is the best so far. NaN is no rise."""
        progress.rollouts += 1
        if r_squared > progress.risen_to + self.min_delta:
            progress.risen_to, progress.risen_at = r_squared, progress.rollouts
        is_best = r_squared > progress.best
        if is_best:
            progress.best, progress.best_rollout = r_squared, progress.rollouts
        return is_best

    def is_over(self, progress: Progress) -> bool:
        """Return whether the phase ends here."""
        if progress.rollouts >= self.max_rollouts:
            return True
        good = self.target is not None and progress.best >= self.target
        stale = progress.rollouts - progress.risen_at >= self.patience
        return (good or stale) and progress.rollouts >= self.min_rollouts
