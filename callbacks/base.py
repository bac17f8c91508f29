"""Base classes of callbacks on runs and rollouts."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.common.files import may_write, run_path
from lightning_vcppo.common.fresh_start import begins_anew
from lightning_vcppo.dashboards.rollout_log import FOLDER, RolloutLog
from lightning_vcppo.distributed.standstill import in_place
from lightning_vcppo.rollouts.rollout import Rollout


@runtime_checkable
class LearnsFromRollouts(Protocol):
    """A module whose training step is a rollout, as that of `VCPPOModule`.

    Attributes:
        phase: Of the run.
        rollout: The last one that was learned from, until the next step begins.
        rollouts_done: How many there were, in earlier parts of the run too.
    """

    phase: Phase
    rollout: Rollout | None
    rollouts_done: int


class RunCallback(Callback):
    """Keeps something of a run, and forgets it when another run begins.

    A subclass sets all of its run's state in `begin_run`, and nowhere else at first; `__init__`
    calls it. A checkpoint, if there is one, is restored after it.
    """

    def begin_run(self) -> None:
        """Set the state of a run that has seen nothing."""
        raise NotImplementedError

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run, unless this Trainer continues it."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and begins_anew(trainer):
            self.begin_run()


class RolloutCallback(RunCallback):
    """Looks at each rollout that has been learned from; a module without rollouts is left alone."""

    @override
    def begin_run(self) -> None:
        """Know no phase. It is kept, for it may change when the rollout ends."""
        self._phase = Phase.POLICY_OPTIMIZATION

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the phase."""
        if isinstance(pl_module, LearnsFromRollouts):
            self._phase = pl_module.phase

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand the rollout on, if there is one."""
        if isinstance(pl_module, LearnsFromRollouts) and pl_module.rollout is not None:
            with in_place(type(self).__name__):
                self.on_rollout(trainer, pl_module, pl_module.rollout)

    def on_rollout(self, trainer: Trainer, module: Any, rollout: Any) -> None:
        """Look at the rollout of a VCPPOModule."""
        raise NotImplementedError


class RolloutMonitor(RolloutCallback):
    """Writes a line on each rollout into `file`, in `dirpath` or the run's own folder of them."""

    file: ClassVar[str]

    def __init__(self, dirpath: str | None) -> None:
        """Keep the folder; None means `diagnostics/` in the trainer's root folder."""
        self._dirpath = dirpath
        self.begin_run()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what an earlier run wrote about rollouts that are still to come."""
        if may_write(trainer) and isinstance(pl_module, LearnsFromRollouts):
            self._log(trainer).rewind(pl_module.rollouts_done)

    def _log(self, trainer: Trainer) -> RolloutLog:
        return RolloutLog(run_path(trainer, FOLDER, given=self._dirpath) / self.file)
