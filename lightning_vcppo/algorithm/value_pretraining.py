"""Define the phases of training, and when value pretraining (VC-PPO, section 4.1) ends.

The critic is fitted on Monte-Carlo returns of the frozen policy (`monte_carlo_returns`) until its
predictions of held-out returns no longer improve. The measure is R^2, not explained variance: a
critic whose values are all off by a constant explains as much variance as one without that bias,
but would still bias the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(str, Enum):
    """The phase of training in which a rollout is used."""

    VALUE_PRETRAINING = "value_pretraining"
    POLICY_OPTIMIZATION = "policy_optimization"


@dataclass
class Progress:
    """The progress of value pretraining, in plain numbers.

    Attributes:
        rollouts: Number of training steps of the phase.
        generated_tokens: Number of response tokens generated in it, over all ranks.
        best: Highest R^2 on held-out responses.
        best_rollout: Number of rollouts after which it was reached.
        risen_to: The same as `best`, without rises smaller than `min_delta`.
        risen_at: Number of rollouts after which it was reached.
    """

    rollouts: int = 0
    generated_tokens: int = 0
    best: float = float("-inf")
    best_rollout: int = 0
    risen_to: float = float("-inf")
    risen_at: int = 0


@dataclass(frozen=True)
class StopRule:
    """The rule by which value pretraining ends.

    Attributes:
        max_rollouts: Number of rollouts after which it ends; 0 means no value pretraining.
        min_rollouts: Least number of rollouts.
        patience: Number of rollouts without a rise of R^2 after which it ends.
        min_delta: Smallest rise that counts for `patience`.
        target: R^2 at which it ends.
    """

    max_rollouts: int
    min_rollouts: int
    patience: int
    min_delta: float = 0.01
    target: float | None = None

    def advance(self, progress: Progress, r_squared: float) -> bool:
        """Count a rollout; return whether its critic is the best so far. NaN is not a rise."""
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
