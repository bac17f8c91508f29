"""Watch how far the terminal reward reaches, and how the critic is biased along the response.

The two faults that VC-PPO (arXiv 2503.01491, section 3) finds in PPO on long responses show here:
a reward share that vanishes before the first token, and values and advantages that drift with the
position although nothing but the end of a response is rewarded.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_vcppo.metrics import (
    actor_lambda,
    effective_horizon,
    position_profile,
    reward_weights,
)

if TYPE_CHECKING:
    from lightning_vcppo.module import VCPPOModule
    from lightning_vcppo.rollout import Rollout
    from lightning_vcppo.settings import AdvantageSettings


class RewardDecayMonitor(Callback):
    """Log `decay/*`, see docs/metrics.md; positions are deciles of each response's own length.

    A module without rollouts is left alone.
    """

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure the rollout that was just learned from."""
        rollout: Rollout | None = getattr(pl_module, "rollout", None)
        if rollout is None:
            return
        reach = _reward_reach(rollout, cast("VCPPOModule", pl_module).advantage)
        metrics = reach | _position_profiles(rollout)
        pl_module.log_dict({f"decay/{k}": v for k, v in metrics.items()}, sync_dist=True)


def _reward_reach(rollout: Rollout, settings: AdvantageSettings) -> dict[str, float]:
    """Return how much of the terminal reward the lambdas let through to the tokens.

    The group advantage has neither lambda nor critic, so there is nothing to measure.
    """
    if settings.estimator == "group":
        return {}
    mask_BT, gamma = rollout.response_mask_BT, settings.gamma
    lambda_B = actor_lambda(rollout.response_lengths_B, settings)
    actor_BT = reward_weights(mask_BT, lambda_B, gamma=gamma)
    critic_BT = reward_weights(mask_BT, settings.lambda_critic, gamma=gamma)
    return {
        "actor_reward_share_first": actor_BT[:, 0].mean().item(),
        "actor_reward_share_mean": actor_BT[mask_BT].mean().item(),
        "critic_reward_share_first": critic_BT[:, 0].mean().item(),
        "actor_horizon": fmean(effective_horizon(lam, gamma) for lam in lambda_B.tolist()),
    }


def _position_profiles(rollout: Rollout) -> dict[str, float]:
    """Return means by decile of position, without the deciles that no token fell into."""
    mask_BT, values_BT, returns_BT = rollout.response_mask_BT, rollout.values_BT, rollout.returns_BT
    means: dict[str, float] = {}
    for name, tokens_BT in (("value", values_BT), ("advantage", rollout.advantages_BT)):
        if tokens_BT is not None:
            profile = position_profile(tokens_BT, mask_BT)
            means |= {f"{name}_decile_{i}": mean for i, mean in enumerate(profile)}
    bias_BT = None if values_BT is None or returns_BT is None else returns_BT - values_BT
    for name, tokens_BT in (("bias", bias_BT), ("entropy", rollout.entropy_BT)):
        if tokens_BT is not None:
            profile = position_profile(tokens_BT, mask_BT)
            means |= {f"{name}_first": profile[0], f"{name}_last": profile[-1]}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}
