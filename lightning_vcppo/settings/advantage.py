"""Define the hyper-parameters of advantages and value targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_vcppo.common.errors import require


@dataclass(frozen=True)
class AdvantageSettings:
    """Settings of advantages and value targets.

    Attributes:
        estimator: "gae"; or without a critic: "group", GRPO's comparison with the mean of the
            responses to the prompt; "rloo", with the mean of the other responses; "batch", with
            the mean of the rollout, for one response per prompt.
        gamma: Discount.
        lambda_actor: Lambda of the advantages (VC-PPO's decoupled GAE).
        lambda_critic: Lambda of the value targets; 1 makes them Monte-Carlo returns.
        length_adaptive_alpha: VAPO's lambda_actor = 1 - 1 / (alpha length) instead of a fixed one.
        whiten: Normalize advantages over the tokens of the rollout, on all ranks.
        normalize_group_std: Divide group advantages by the group's standard deviation.
        bootstrap_truncated: End truncated responses with the critic's value instead of 0.
        explained_variance_gate: EVPO: use the batch mean as baseline while explained variance <= 0.
    """

    estimator: Literal["gae", "group", "rloo", "batch"] = "gae"
    gamma: float = 1.0
    lambda_actor: float = 0.99
    lambda_critic: float = 1.0
    length_adaptive_alpha: float | None = None
    whiten: bool = True
    normalize_group_std: bool = True
    bootstrap_truncated: bool = False
    explained_variance_gate: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in ("gamma", "lambda_actor", "lambda_critic"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name}: expected a number in [0, 1], got {value}")
        alpha = self.length_adaptive_alpha
        require(alpha is None or alpha > 0, f"length_adaptive_alpha: expected > 0, got {alpha}")

    @property
    def needs_critic(self) -> bool:
        """Whether advantages are computed from values."""
        return self.estimator == "gae"

    @property
    def needs_groups(self) -> bool:
        """Whether responses are compared with others to the same prompt."""
        return self.estimator in ("group", "rloo")
