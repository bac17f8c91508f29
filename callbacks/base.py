"""Base classes of callbacks on runs and rollouts."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.common.files import may_write, run_path
from lightning_vcppo.common.fresh_start import is_new_run
from lightning_vcppo.dashboards.rollout_log import DIRECTORY, RolloutLog
from lightning_vcppo.distributed.standstill import in_place
from lightning_vcppo.rollouts.rollout import Rollout


@runtime_checkable
class LearnsFromRollouts(Protocol):
    """A module whose training step is a rollout, such as `VCPPOModule`.

    Attributes:
        phase: Phase of the run.
        rollout: The last rollout that was learned from, until the next step begins.
        rollouts_done: Number of rollouts, including those before a resume.
    """

    phase: Phase
    rollout: Rollout | None
    rollouts_done: int


class RunCallback(Callback):
    """Holds state of a run, and resets it when another run begins.

    A subclass initializes all of this state in `begin_run`, which `__init__` calls. A checkpoint,
    if there is one, is restored after that.
    """

    def begin_run(self) -> None:
        """Set the state at the start of a run."""
        raise NotImplementedError

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the state, unless this Trainer continues its own run."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and is_new_run(trainer):
            self.begin_run()


class RolloutCallback(RunCallback):
    """Receives each rollout that was learned from; with a module without rollouts, does nothing."""

    @override
    def begin_run(self) -> None:
        """Start without a phase, which is remembered because it may change when a rollout ends."""
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
        """Pass the rollout to `on_rollout`, if there is one."""
        if isinstance(pl_module, LearnsFromRollouts) and pl_module.rollout is not None:
            with in_place(type(self).__name__):
                self.on_rollout(trainer, pl_module, pl_module.rollout)

    def on_rollout(self, trainer: Trainer, module: Any, rollout: Any) -> None:
        """Process the rollout of a VCPPOModule."""
        raise NotImplementedError


class RolloutMonitor(RolloutCallback):
    """Writes one line for each rollout to `file`, in `dirpath` or in the run's `diagnostics/`."""

    file: ClassVar[str]

    def __init__(self, dirpath: str | None) -> None:
        """Keep the directory; None means `diagnostics/` in the run's directory."""
        self._dirpath = dirpath
        self.begin_run()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the lines on rollouts that this run will make again."""
        if may_write(trainer) and isinstance(pl_module, LearnsFromRollouts):
            self._log(trainer).rewind(pl_module.rollouts_done)

    def _log(self, trainer: Trainer) -> RolloutLog:
        return RolloutLog(run_path(trainer, DIRECTORY, given=self._dirpath) / self.file)
