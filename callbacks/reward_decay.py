"""Measure how far the terminal reward reaches, and the critic's bias by position in the response.

These metrics show the two faults that VC-PPO (arXiv 2503.01491, section 3) finds in PPO on long
responses: a share of the reward that vanishes before the first token, and values and advantages
that depend on the position although only the end of a response is rewarded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from typing_extensions import override

from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.common.files import may_write
from lightning_vcppo.metrics.positions import (
    NUM_DECILES,
    PositionProfiles,
    Profile,
    RewardReach,
    absolute_bins,
    actor_lambda,
    profile_rollout,
    reward_reach,
    reward_weights,
    token_quantities,
)

from .base import RolloutMonitor

if TYPE_CHECKING:
    from lightning_vcppo.modules.vcppo import VCPPOModule
    from lightning_vcppo.rollouts.rollout import Rollout

MAX_BINS = 50
WEIGHTS = {"actor_weight": "actor", "critic_weight": "critic"}
"""Quantities that are weights of the terminal reward, and the network that they belong to."""


@dataclass(frozen=True)
class RolloutProfiles:
    """Measurements of one rollout, over all ranks.

    Attributes:
        rollout: Number of the rollout, from 1.
        phase: Phase of the run.
        reach: Weights of the terminal reward at the first token.
        positions: Means by position: value, return, bias (V - return), advantage, entropy, and the
            weights of the reward for actor and critic, if the rollout has them.
    """

    rollout: int
    phase: str
    reach: RewardReach
    positions: PositionProfiles


class RewardDecayMonitor(RolloutMonitor):
    """Log `decay/*`, and write all profiles to `diagnostics/positions.jsonl`; see docs/metrics.md.

    `latest` holds the profiles of the last rollout on every rank, for callers that draw them. With
    a module without rollouts the callback does nothing.
    """

    file = "positions.jsonl"

    def __init__(self, bin_width: int | None = None, dirpath: str | None = None) -> None:
        """Set the bins.

        Args:
            bin_width: Tokens of an absolute bin; None divides `sampling.max_response_length` into
                at most 50 bins.
            dirpath: Directory of the file; None means `diagnostics/` in the run's directory.

        Raises:
            ValueError: If `bin_width` is less than 1.
        """
        if bin_width is not None and bin_width < 1:
            raise ValueError(f"bin_width: expected >= 1 token, got {bin_width}")
        super().__init__(dirpath)
        self._bin_width = bin_width

    @override
    def begin_run(self) -> None:
        """Start without profiles."""
        super().begin_run()
        self.latest: RolloutProfiles | None = None

    @override
    def on_rollout(self, trainer: Trainer, module: VCPPOModule, rollout: Rollout) -> None:
        """Measure the rollout that was just learned from."""
        self.latest = self._measure(module, rollout, trainer.world_size)
        metrics = {f"decay/{key}": value for key, value in _scalars(self.latest).items()}
        module.log_dict(metrics, batch_size=len(rollout))
        if may_write(trainer):
            self._log(trainer).append(_entry(self.latest))

    def _measure(self, module: VCPPOModule, rollout: Rollout, ranks: int) -> RolloutProfiles:
        """Compute the profiles, with three sums over ranks."""
        settings, mask_BT = module.advantage, rollout.response_mask_BT
        has_critic = settings.needs_critic
        bootstrapped = self._phase is Phase.POLICY_OPTIMIZATION and has_critic
        lambda_critic = settings.lambda_critic if bootstrapped else 1.0
        gamma = settings.gamma if has_critic else 1.0
        lambda_actor_B = actor_lambda(rollout.response_lengths_B, settings)
        reduce = module.sum_over_ranks
        weights = {
            "actor_weight": reward_weights(mask_BT, lambda_actor_B, gamma=gamma),
            "critic_weight": reward_weights(mask_BT, lambda_critic, gamma=gamma),
        }
        limit = module.sampling.max_response_length
        bin_width, num_bins = absolute_bins(limit, self._bin_width, MAX_BINS)
        return RolloutProfiles(
            module.rollouts_done,
            self._phase.value,
            reward_reach(mask_BT, lambda_actor_B, lambda_critic, gamma=gamma, reduce=reduce),
            profile_rollout(
                rollout,
                token_quantities(rollout, gamma) | weights,
                bin_width=bin_width,
                num_bins=num_bins,
                ranks=ranks,
                reduce=reduce,
            ),
        )


def _scalars(profiles: RolloutProfiles) -> dict[str, float]:
    """Return the metrics to log, without deciles that contain no token."""
    deciles = profiles.positions.deciles
    means: dict[str, float | None] = {}
    if "value" in deciles:  # otherwise every token gets the complete reward
        reach = asdict(profiles.reach)
        means |= {k: v for k, v in reach.items() if k.endswith(("_horizon", "_first", "_mean"))}
    for name in ("value", "advantage"):
        if name in deciles:
            means |= {f"{name}_decile_{i}": deciles[name]["all"][i] for i in range(NUM_DECILES)}
    for name in ("bias", "entropy"):
        if name in deciles:
            means[f"{name}_first"], means[f"{name}_last"] = (
                deciles[name]["all"][i] for i in (0, -1)
            )
    return {name: mean for name, mean in means.items() if mean is not None}


def _entry(profiles: RolloutProfiles) -> dict[str, Any]:
    """Return the entry of the file as a dict."""
    positions, reach = profiles.positions, profiles.reach
    deciles, decile_weights = _split_off_weights(positions.deciles)
    absolute, absolute_weights = _split_off_weights(positions.absolute)
    return {
        "rollout": profiles.rollout,
        "phase": profiles.phase,
        **asdict(reach),
        "deciles": deciles,
        "absolute": {"bin_width": positions.bin_width, "count": positions.count, **absolute},
        "reward_weight": {"deciles": decile_weights, "absolute": absolute_weights},
    }


def _split_off_weights(profile: Profile) -> tuple[Profile, Profile]:
    others = {name: splits for name, splits in profile.items() if name not in WEIGHTS}
    return others, {short: profile[name] for name, short in WEIGHTS.items()}
