"""What callbacks on rollouts share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_vcppo.common.files import may_write
from lightning_vcppo.dashboards.rollout_log import FOLDER, RolloutLog
from lightning_vcppo.distributed.standstill import in_place


class RolloutCallback(Callback):
    """Looks at each rollout that has been learned from; a module without rollouts is left alone."""

    _phase = ""
    """In which the rollout at hand was made: it may change when the rollout ends."""

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the phase."""
        if hasattr(pl_module, "phase"):
            self._phase = cast(Any, pl_module).phase.value

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand the rollout on, if there is one."""
        rollout = getattr(pl_module, "rollout", None)
        if rollout is not None:
            with in_place(type(self).__name__):
                self.on_rollout(trainer, pl_module, rollout)

    def on_rollout(self, trainer: Trainer, module: Any, rollout: Any) -> None:
        """Look at the rollout of a VCPPOModule."""
        raise NotImplementedError


class RolloutMonitor(RolloutCallback):
    """Writes a line on each rollout into `file`, in `dirpath` or the run's own folder of them."""

    file: ClassVar[str]

    def __init__(self, dirpath: str | None) -> None:
        """Keep the folder; None means `diagnostics/` in the trainer's root folder."""
        self._dirpath = dirpath

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what an earlier run wrote about rollouts that are still to come."""
        if may_write(trainer) and hasattr(pl_module, "rollout"):
            self._log(trainer).rewind(cast(Any, pl_module).rollouts_done)

    def _log(self, trainer: Trainer) -> RolloutLog:
        return RolloutLog(Path(self._dirpath or Path(trainer.default_root_dir, FOLDER), self.file))
