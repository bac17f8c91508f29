"""Fit the critic before the actor moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_vcppo.actor_critic import Phase
from lightning_vcppo.microbatch import explained_variance, masked_mean
from lightning_vcppo.module import VCPPOModule
from lightning_vcppo.rollout import Rollout


class ValuePretraining(Callback):
    """Own the schedule of value pretraining (VC-PPO, section 4.1); the module owns the update.

    While it lasts, the actor is frozen and each rollout's critic targets are Monte-Carlo returns.
    A rollout is judged before the critic has seen it, so its explained variance is a held-out one.
    The phase ends after `max_rollouts`, or earlier when explained variance no longer rises. It is
    skipped when the run starts from a critic that has been pretrained already, and when there is no
    critic.
    """

    def __init__(
        self,
        enabled: bool = True,
        max_rollouts: int = 50,
        min_rollouts: int = 10,
        patience: int = 10,
        min_delta: float = 0.01,
        dirpath: str | None = None,
    ) -> None:
        """Set the stop rule.

        Args:
            enabled: Whether there is such a phase; false is plain PPO.
            max_rollouts: Rollouts after which the phase ends; 0 is none.
            min_rollouts: It does not end earlier.
            patience: It ends when the best explained variance is this many rollouts old.
            min_delta: A rise smaller than this does not count as better.
            dirpath: Where the fitted critic is written; None means `value_pretraining` in the run's
                folder.

        Raises:
            ValueError: for negative numbers.
        """
        for name, number in {"max_rollouts": max_rollouts, "min_rollouts": min_rollouts}.items():
            if number < 0:
                raise ValueError(f"{name}: expected >= 0 rollouts, got {number}")
        if patience < 1:
            raise ValueError(f"patience: expected >= 1 rollout, got {patience}")
        self._max_rollouts = max_rollouts if enabled else 0
        self._min_rollouts = min_rollouts
        self._patience = patience
        self._min_delta = min_delta
        self._dirpath = dirpath
        self._rollouts = 0
        self._best = float("-inf")
        self._best_rollout = 0
        self._finished = False

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the progress of the phase."""
        return {
            "rollouts": self._rollouts,
            "best": self._best,
            "best_rollout": self._best_rollout,
            "finished": self._finished,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the progress of the phase."""
        self._rollouts = state_dict["rollouts"]
        self._best = state_dict["best"]
        self._best_rollout = state_dict["best_rollout"]
        self._finished = state_dict["finished"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on with, the phase."""
        if not isinstance(pl_module, VCPPOModule) or self._finished:
            return
        if pl_module.critic is None or self._max_rollouts == 0:
            self._finished = True
        elif pl_module.critic_is_pretrained:
            rank_zero_info(
                f"Value pretraining skipped: {pl_module.critic_source} is a fitted critic."
            )
            self._finished = True
        else:
            pl_module.phase = Phase.VALUE_PRETRAINING

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the critic on the rollout that it has just seen for the first time."""
        if self._finished or not isinstance(pl_module, VCPPOModule):
            return
        rollout = cast(Rollout, pl_module.rollout)
        assert rollout.values_BT is not None and rollout.returns_BT is not None
        values_BT, returns_BT, mask_BT = (
            rollout.values_BT,
            rollout.returns_BT,
            rollout.response_mask_BT,
        )
        reduce = pl_module.sum_over_ranks
        explained = float(explained_variance(values_BT, returns_BT, mask_BT, reduce=reduce))
        loss = 0.5 * float(masked_mean((values_BT - returns_BT).square(), mask_BT, reduce=reduce))
        self._rollouts += 1
        pl_module.log_dict(
            {
                "value_pretraining/explained_variance": explained,
                "value_pretraining/loss": loss,
                "value_pretraining/rollouts": float(self._rollouts),
            },
            batch_size=len(rollout),
        )
        if explained > self._best + self._min_delta:
            self._best, self._best_rollout = explained, self._rollouts
        stale = self._rollouts - self._best_rollout >= self._patience
        if self._rollouts >= self._max_rollouts or (stale and self._rollouts >= self._min_rollouts):
            self._finish(trainer, pl_module, explained)

    def _finish(self, trainer: Trainer, module: VCPPOModule, explained: float) -> None:
        self._finished = True
        module.phase = Phase.POLICY_OPTIMIZATION
        folder = Path(self._dirpath or Path(trainer.default_root_dir) / "value_pretraining")
        module.export_critic(folder / "critic")
        rank_zero_info(
            f"Value pretraining ended after {self._rollouts} rollouts with explained variance "
            f"{explained:.2f}; the critic is in {folder / 'critic'}."
        )
