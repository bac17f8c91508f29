"""Write the responses of `predict` to a file."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.files import local_path, run_path
from lightning_vcppo.rollouts.records import ResponseRecord, gather_records, write_records


class ResponseWriter(Callback):
    """Write what `predict_step` returns on all ranks as JSON Lines, each response once.

    Args:
        path: The file; None means `predictions.jsonl` in the run's directory.
    """

    def __init__(self, path: str | None = None) -> None:
        """Keep the path."""
        self._path = path
        self._records: list[ResponseRecord] = []

    @override
    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the responses of an interrupted prediction; refuse a directory as the file."""
        self._records = []
        path = self._path
        is_directory = path is not None and local_path(path, "response_writer.path").is_dir()
        require(
            not is_directory, f"response_writer.path: {self._path} is a directory; expected a file"
        )

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect this rank's responses."""
        self._records += outputs

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the responses of all ranks."""
        records, self._records = gather_records(self._records), []
        if trainer.is_global_zero:
            path = run_path(trainer, "predictions.jsonl", given=self._path)
            write_records(path, records)
            rank_zero_info(f"Wrote {len(records)} responses to {path}")
