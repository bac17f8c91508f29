"""Warn of what goes wrong in a run, with the number measured and the flag to change."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from rich import get_console
from rich.text import Text
from typing_extensions import override

from lightning_vcppo.algorithm.losses import kl_estimate
from lightning_vcppo.algorithm.statistics import masked_mean, masked_var
from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.distributed.collectives import gather
from lightning_vcppo.metrics.guard_rules import (
    MISMATCH_KL,
    REWARD_VARIANCE,
    WATCHED,
    Facts,
    Limits,
    broken_rules,
)

from .base import LearnsFromRollouts, RolloutCallback

if TYPE_CHECKING:
    from lightning_vcppo.modules.vcppo import VCPPOModule
    from lightning_vcppo.rollouts.rollout import Rollout


class GuardRails(RolloutCallback):
    """Check the rules of `guard_rules.py` after each rollout.

    A violated rule is reported once, and again only after it has been satisfied for some rollouts.
    `guard_rails/violations` is the number of rules that the rollout violates. With a module without
    rollouts the callback does nothing.
    """

    def __init__(
        self, on_violation: Literal["warn", "stop", "off"] = "warn", limits: Limits = Limits()
    ) -> None:
        """Choose the reaction to a violation.

        Args:
            on_violation: Warn; or warn and end the run, as early stopping does, with an evaluation
                and its checkpoint; or check nothing.
            limits: Numbers beyond which a rule is violated.
        """
        self._on_violation = on_violation
        self._limits = limits
        self.begin_run()

    @override
    def begin_run(self) -> None:
        """Start without metrics and warnings."""
        super().begin_run()
        self._first: dict[str, list[float]] = defaultdict(list)
        self._latest: dict[str, list[float]] = defaultdict(list)
        self._reward_range: tuple[float, float] | None = None
        self._whole_for: dict[str, int] = {}  # rule that has been broken -> rollouts since
        self._fresh_critic = False
        self._fits_critic = False
        self._reason = ""  # to stop

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the metrics and the warnings so far."""
        return {
            "first": dict(self._first),
            "latest": dict(self._latest),
            "whole_for": dict(self._whole_for),
            "reward_range": self._reward_range and list(self._reward_range),
            "fits_critic": self._fits_critic,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metrics and the warnings."""
        self.begin_run()
        self._first = defaultdict(list, state_dict["first"])
        self._latest = defaultdict(list, state_dict["latest"])
        self._whole_for = dict(state_dict["whole_for"])
        self._fits_critic = state_dict["fits_critic"]
        if (reward_range := state_dict.get("reward_range")) is not None:  # not in older ones
            self._reward_range = (reward_range[0], reward_range[1])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what the critic was initialized from."""
        if self._on_violation == "off" or not isinstance(pl_module, LearnsFromRollouts):
            return
        module = cast("VCPPOModule", pl_module)
        fitted = module.advantage.needs_critic and module.loader.critic_is_pretrained
        self._fresh_critic = not fitted
        self._fits_critic = self._fits_critic or fitted

    @override
    def on_rollout(self, trainer: Trainer, module: VCPPOModule, rollout: Rollout) -> None:
        """Check the rules on the rollout that was just learned from."""
        self._fits_critic = self._fits_critic or self._pretraining
        if self._on_violation == "off":
            return
        last = self._see(trainer, module, rollout)
        broken = broken_rules(self._facts(module, last), self._limits)
        module.log("guard_rails/violations", float(len(broken)), batch_size=len(rollout))
        stop = self._on_violation == "stop"
        for name, message in broken.items():
            if name not in self._whole_for or (stop and not self._reason):
                _say(trainer, f"guard rail {name}, rollout {module.rollouts_done}: {message}")
        since = {name: rollouts + 1 for name, rollouts in self._whole_for.items()}
        since |= dict.fromkeys(broken, 0)
        self._whole_for = {k: n for k, n in since.items() if n < self._limits.cured_after}
        if stop:
            self._reason = ", ".join(broken) or self._reason
            # Equal on all ranks already, but if one rank decided otherwise the others would hang.
            if trainer.strategy.reduce_boolean_decision(bool(broken), all=False):
                trainer.should_stop = True

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print why the run has ended."""
        if self._reason and trainer.should_stop:
            rollouts = cast("VCPPOModule", pl_module).rollouts_done
            _say(
                trainer,
                f"Stopped after rollout {rollouts} by guard rail {self._reason}; "
                "with --guard_rails.on_violation=warn it would continue.",
            )

    @property
    def _pretraining(self) -> bool:
        return self._phase is Phase.VALUE_PRETRAINING

    def _see(self, trainer: Trainer, module: VCPPOModule, rollout: Rollout) -> dict[str, float]:
        """Read the rollout's metrics, and keep the first and the latest of each."""
        metrics = trainer.callback_metrics
        last = {key: float(metrics[key]) for key in WATCHED if key in metrics}
        if not self._pretraining:  # Lightning keeps what was logged before
            last = {k: v for k, v in last.items() if not k.startswith("value_pretraining/")}
        if MISMATCH_KL not in last and rollout.old_logprobs_BT is not None:  # not corrected for
            kl_BT = kl_estimate(rollout.sampler_logprobs_BT, rollout.old_logprobs_BT, "k3")
            mean = masked_mean(kl_BT, rollout.response_mask_BT, reduce=module.sum_over_ranks)
            last[MISMATCH_KL] = float(mean)
        all_B = torch.ones_like(rollout.correct_B)
        variance = masked_var(rollout.scores_B, all_B, reduce=module.sum_over_ranks)
        last[REWARD_VARIANCE] = float(variance)
        self._widen_reward_range(rollout)
        last = {key: number for key, number in last.items() if math.isfinite(number)}
        for key, number in last.items():
            self._latest[key] = [*self._latest[key], number][-self._limits.window :]
            if len(self._first[key]) < self._limits.window:
                self._first[key].append(number)
        return last

    def _widen_reward_range(self, rollout: Rollout) -> None:
        """Take the rewards of all ranks into the range; those that are not finite have a rule."""
        finite = [score for score in rollout.scores_B.tolist() if math.isfinite(score)]
        of_ranks = gather([min(finite), max(finite)] if finite else [])
        seen = [*(self._reward_range or ()), *(score for scores in of_ranks for score in scores)]
        if seen:
            self._reward_range = (min(seen), max(seen))

    def _facts(self, module: VCPPOModule, last: dict[str, float]) -> Facts:
        optimizers = module.optimizer_settings
        value = module.value if module.advantage.needs_critic else None
        return Facts(
            advantage=module.advantage,
            actor_lr=optimizers["policy"].lr,
            critic_lr=None if value is None else optimizers["critic"].lr,
            cliprange_value=None if value is None else value.cliprange_value,
            fresh_critic=self._fresh_critic,
            fits_critic=self._fits_critic,
            pretraining=self._pretraining,
            actor_moves=module.phase is Phase.POLICY_OPTIMIZATION,
            last=last,
            seen=len(self._latest.get(REWARD_VARIANCE, ())),
            now={key: fmean(seen) for key, seen in self._latest.items()},
            start={key: fmean(seen) for key, seen in self._first.items()},
            reward_range=self._reward_range,
        )


def _say(trainer: Trainer, message: str) -> None:
    """Print a line from the first rank, above the progress bar."""
    if trainer.is_global_zero:
        get_console().print(Text(message, style="bold yellow"), soft_wrap=True)
