"""Fit the critic before the actor is trained."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_vcppo.algorithm.value_pretraining import Progress, StopRule
from lightning_vcppo.common.files import is_trial, run_path
from lightning_vcppo.distributed.collectives import gather
from lightning_vcppo.metrics.rollout import describe_fit
from lightning_vcppo.modules.vcppo import VCPPOModule
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.rollouts.saved import SavedRollouts
from lightning_vcppo.rollouts.store import RolloutStore

from .base import RunCallback

MEASURE = "r2"
"""Metric of held-out responses by which critics are compared; see `describe_fit`."""


class ValuePretraining(RunCallback):
    """Own the schedule of value pretraining (VC-PPO, section 4.1); the module owns the update.

    During this phase the actor is frozen and the critic is fitted on Monte-Carlo returns. Each
    training step adds one rollout to a store and fits the critic on it and on stored ones, so that
    few need to be generated. After each step the critic is evaluated on prompts of the first
    rollout that are held out. The phase ends after `max_rollouts`, or earlier when the R^2 on them
    reaches its target or no longer rises. Then the best critic is restored with its optimizer's
    state, so that the policy phase starts as if value pretraining had ended there.

    The phase is skipped if the run starts from a pretrained critic, or has no critic. Checkpoints
    that are saved during the phase contain the store and the best critic.
    """

    def __init__(
        self,
        enabled: bool = True,
        max_rollouts: int = 20,
        min_rollouts: int = 4,
        patience: int = 4,
        min_delta: float = 0.01,
        target_r2: float | None = None,
        replays: int = 4,
        held_out_share: float = 0.25,
        rollouts_path: str | None = None,
        dirpath: str | None = None,
    ) -> None:
        """Set the stop rule.

        Args:
            enabled: Whether the run has this phase; false is plain PPO.
            max_rollouts: Rollouts (training steps) after which the phase ends; 0 skips it.
            min_rollouts: Rollouts before which the phase does not end.
            patience: Rollouts without a rise of the R^2 after which the phase ends.
            min_delta: Smallest rise that counts for `patience`.
            target_r2: R^2 at which the phase ends.
            replays: Passes over stored rollouts in each step, in addition to the one over the new
                rollout; `critic_epochs` applies to the policy phase.
            held_out_share: Share of the first rollout's prompts on which the critic is evaluated.
                It is never fitted on them, nor on later responses to them.
            rollouts_path: File of `vcppo predict` with responses of the same policy, to fit on
                instead of generating. Each step takes one rollout from it, starting again at the
                end; the prompts of the step are skipped.
            dirpath: Directory of the fitted critic; None means `value_pretraining` in the run's
                directory.

        Raises:
            ValueError: For a number out of range.
        """
        counts = {"max_rollouts": max_rollouts, "min_rollouts": min_rollouts, "replays": replays}
        for name, number in counts.items():
            if number < 0:
                raise ValueError(f"{name}: expected >= 0 rollouts, got {number}")
        if patience < 1:
            raise ValueError(f"patience: expected >= 1 rollout, got {patience}")
        if not 0 < held_out_share < 1:
            raise ValueError(f"held_out_share: expected a share in (0, 1), got {held_out_share}")
        self._stop_rule = StopRule(
            max_rollouts if enabled else 0,
            min_rollouts,
            patience,
            min_delta,
            target_r2,
        )
        self._rollouts_path = rollouts_path
        self._dirpath = dirpath
        self._replays, self._held_out_share = replays, held_out_share
        self.begin_run()

    @override
    def begin_run(self) -> None:
        """Start before the first rollout."""
        self._progress = Progress()
        self._finished = False
        self._store = RolloutStore(self._replays, self._held_out_share)
        self._stored_by_rank: list[dict[str, Any]] = []
        self._best_critic: dict[str, Any] = {}
        self._saved: SavedRollouts | None = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the progress of the phase and, during it, all rollouts and the best critic.

        Every rank must call it, because one of them writes the rollouts of all.
        """
        state = {
            "finished": self._finished,
            "progress": asdict(self._progress),
            "measure": MEASURE,
        }
        if self._finished:
            return state
        return state | {
            "stored_by_rank": gather(self._store.state_dict()),
            "best_critic": self._best_critic,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` has returned.

        A best critic that an older version has chosen by explained variance is forgotten, because
        numbers of two measures cannot be compared: the next rollout's critic is the best so far.
        """
        self.begin_run()
        self._finished = state_dict["finished"]
        self._progress = Progress(**state_dict["progress"])
        self._stored_by_rank = state_dict.get("stored_by_rank", [])
        self._best_critic = state_dict.get("best_critic", {})
        if state_dict.get("measure") != MEASURE and not self._finished:
            progress = self._progress
            self._progress = Progress(
                progress.rollouts, progress.generated_tokens, risen_at=progress.rollouts
            )
            self._best_critic = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin or resume the phase."""
        if not isinstance(pl_module, VCPPOModule) or self._finished:
            return
        if pl_module.critic is None or self._stop_rule.max_rollouts == 0:
            self._finished = True
        elif pl_module.loader.critic_is_pretrained:
            rank_zero_info(
                f"Value pretraining skipped: {pl_module.loader.critic} is a fitted critic."
            )
            self._finished = True
        else:
            self._begin(trainer, pl_module)

    def _begin(self, trainer: Trainer, module: VCPPOModule) -> None:
        if self._stored_by_rank:
            self._store.load_state_dict(
                self._stored_by_rank, trainer.global_rank, trainer.world_size
            )
            self._stored_by_rank = []
        if self._rollouts_path is not None:
            assert module.actor is not None
            self._saved = SavedRollouts(
                self._rollouts_path,
                module.sampler.origin(module.sampling),
                module.run_seed,
                int(module.actor.config.get_text_config().vocab_size),
            )
        module.begin_value_pretraining(self._store)
        self._warn_of_a_run_without_policy(trainer)

    def _warn_of_a_run_without_policy(self, trainer: Trainer) -> None:
        """Warn if this phase may take all rollouts of the run."""
        epochs = math.inf if trainer.max_epochs == -1 else trainer.max_epochs or 1
        of_run, rule = trainer.num_training_batches * epochs, self._stop_rule
        if of_run <= rule.max_rollouts and not is_trial(trainer):
            rank_zero_warn(
                f"Value pretraining may take all {of_run:g} rollouts of this run, and then the "
                f"policy is not trained (--value_pretraining.max_rollouts={rule.max_rollouts}). "
                "Lower it, or give the run more problems, more epochs (--trainer.max_epochs) or "
                "fewer prompts a rollout (--data.prompts_per_rollout)."
            )

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the policy was not trained."""
        if not self._finished and isinstance(pl_module, VCPPOModule) and not trainer.interrupted:
            rank_zero_warn(
                f"The run ended after {self._progress.rollouts} rollouts of value pretraining; the "
                "policy was not trained."
            )

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the step a saved rollout of the batch's size, if there are saved rollouts."""
        if self._finished or self._saved is None or not isinstance(pl_module, VCPPOModule):
            return
        prompts, ranks = len(batch), trainer.world_size
        self._store.distinct = self._saved.count(prompts * ranks)
        saved = self._saved.take(self._store.rounds, prompts, trainer.global_rank, ranks)
        pl_module.begin_value_pretraining(self._store, saved)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate the critic after the step, keep it if it is the best, and end the phase."""
        if self._finished or not isinstance(pl_module, VCPPOModule):
            return
        rollout = cast(Rollout, pl_module.rollout)
        held_out = self._judge(pl_module, self._store.held_out)
        seen = self._judge(pl_module, self._store.seen)
        progress = self._progress
        if progress.rollouts == 0 and math.isnan(held_out[MEASURE]):
            rank_zero_warn(
                "Value pretraining: all held-out responses have the same return, so there is no "
                "variance to explain and no best critic. If the accuracy is near 0 or 1, use other "
                "problems or a cold start; otherwise use a larger rollout."
            )
        if self._rollouts_path is None:
            tokens = pl_module.sum_over_ranks(rollout.response_mask_BT.sum())
            progress.generated_tokens += int(tokens)
        # One rank decides, because ranks on different machines may round differently.
        r_squared = trainer.strategy.broadcast(held_out[MEASURE])
        if self._stop_rule.advance(progress, r_squared):
            self._best_critic = pl_module.critic_state(into=self._best_critic)
        metrics = held_out | {f"train_{name}": value for name, value in seen.items()}
        metrics |= {
            "rollouts": float(progress.rollouts),
            "generated_tokens": float(progress.generated_tokens),
        }
        pl_module.log_dict(
            {f"value_pretraining/{name}": value for name, value in metrics.items()},
            batch_size=len(rollout),
        )
        rule = self._stop_rule
        if is_trial(trainer):  # two rollouts try both phases
            rule = replace(rule, max_rollouts=1)
        if rule.is_over(progress):
            self._finish(trainer, pl_module)

    @torch.no_grad()
    def _judge(self, module: VCPPOModule, part: Rollout) -> dict[str, float]:
        """Compare the critic with the returns of stored responses, over all ranks."""
        part = part.to(module.device)
        assert part.returns_BT is not None
        (values_BT,) = module.read(module.scorer.critic_values, part)
        counted_BT = part.response_mask_BT & (part.positions_B >= 0)[:, None]
        return describe_fit(values_BT, part.returns_BT, counted_BT, reduce=module.sum_over_ranks)

    def _finish(self, trainer: Trainer, module: VCPPOModule) -> None:
        self._finished = True
        module.end_value_pretraining(self._best_critic)
        self._saved = None
        self._store.clear()
        self._best_critic = {}
        directory = run_path(trainer, "value_pretraining", given=self._dirpath)
        if not is_trial(trainer):
            module.export_critic(directory / "critic")
        progress = self._progress
        which = "the last critic"
        if progress.best_rollout:  # not if all held-out returns were equal
            which = (
                f"the best critic, of rollout {progress.best_rollout} with a held-out R^2 "
                f"of {progress.best:.2f},"
            )
        where = "is trained further" if is_trial(trainer) else f"is in {directory / 'critic'}"
        rank_zero_info(
            f"Value pretraining ended after {progress.rollouts} rollouts; {which} {where}."
        )
