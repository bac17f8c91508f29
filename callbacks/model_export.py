"""Export the trained networks in the format of Hugging Face."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_vcppo.common.files import is_trial, run_path

if TYPE_CHECKING:
    from lightning_vcppo.modules.vcppo import VCPPOModule


class ModelExport(Callback):
    """Write Hugging Face directories at the end of `fit`: `actor/` and `critic/`.

    Args:
        dirpath: Directory that contains them; None means the run's directory.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        """Keep the directory."""
        self._dirpath = dirpath

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export on every rank, because sharded weights must be gathered; the first one writes."""
        if not is_trial(trainer):
            cast("VCPPOModule", pl_module).export(run_path(trainer, given=self._dirpath))
