"""Turn the responses of a validation or test epoch into avg@k, pass@k and maj@k."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from rich.table import Table
from typing_extensions import override

from lightning_vcppo.dashboards import log_table
from lightning_vcppo.metrics import EvaluationSummary, summarize
from lightning_vcppo.records import gather_records, write_records
from lightning_vcppo.rollout import ResponseRecord

if TYPE_CHECKING:
    from lightning_vcppo.module import VCPPOModule

SAMPLE_COLUMNS = ("problem", "answer", "prediction", "correct", "length", "response")


class AIMEEvaluation(Callback):
    """Log `eval/*` (validation) or `test/*`, print them, and keep the responses in a file.

    Works with every module whose `validation_step` and `test_step` return `{"records": [...]}`.
    Each response counts once, whatever the number of ranks, and every rank logs the same numbers,
    so `eval/accuracy` can be a checkpoint's `monitor`.

    Args:
        sample_table_rows: Problems whose first response is sent to the dashboard; 0 sends none.
        dirpath: Folder for `rollouts_000060.jsonl`, the responses after rollout 60; None means
            `evaluation/` in the trainer's root folder.

    Raises:
        ValueError: If `sample_table_rows` is negative, or an evaluation ends without a response.
    """

    def __init__(self, sample_table_rows: int = 8, dirpath: str | None = None) -> None:
        """Keep the settings."""
        if sample_table_rows < 0:
            raise ValueError(f"sample_table_rows: expected >= 0, got {sample_table_rows}")
        self._sample_table_rows = sample_table_rows
        self._dirpath = dirpath
        self._records: list[ResponseRecord] = []

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an evaluation that was broken off."""
        self._records = []

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an evaluation that was broken off."""
        self._records = []

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect this rank's responses."""
        self._records += outputs["records"]

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect this rank's responses."""
        self._records += outputs["records"]

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, unless this is the sanity check, which judges an untrained model."""
        if not trainer.sanity_checking:
            self._report(trainer, pl_module, group="eval")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._report(trainer, pl_module, group="test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, *, group: str) -> None:
        """Log, print and write the responses of all ranks."""
        records, self._records = gather_records(self._records), []
        summary = summarize(records)
        unit, done = _progress(trainer, pl_module)
        metrics = {f"{group}/{name}": float(value) for name, value in asdict(summary).items()}
        if unit == "rollouts":  # Where updates count, Lightning's own x axis is right.
            metrics["step"] = float(done)
        pl_module.log_dict(metrics, sync_dist=True)
        if not trainer.is_global_zero:
            return
        get_console().print(_summary_table(summary, title=f"{group} after {done} {unit}"))
        folder = Path(self._dirpath or Path(trainer.default_root_dir, "evaluation"))
        prefix = "" if group == "eval" else f"{group}_"
        write_records(folder / f"{prefix}{unit}_{done:06d}.jsonl", records)
        first_samples = [record for record in records if record.sample == 0]
        if rows := [_sample_row(record) for record in first_samples[: self._sample_table_rows]]:
            log_table(trainer, f"{group}/samples", SAMPLE_COLUMNS, rows, step=done)


def _progress(trainer: Trainer, pl_module: LightningModule) -> tuple[str, int]:
    """Return the unit of the module's progress and how many are done: its loggers' x axis."""
    if hasattr(pl_module, "rollout"):
        return "rollouts", cast("VCPPOModule", pl_module).rollouts_done
    return "updates", trainer.global_step


def _sample_row(record: ResponseRecord) -> list[str | int | bool | None]:
    return [getattr(record, name) for name in SAMPLE_COLUMNS]


def _summary_table(summary: EvaluationSummary, *, title: str) -> Table:
    k = summary.k
    cells = {
        "problems": str(summary.problems),
        "k": str(k),
        f"avg@{k}": f"{summary.accuracy:.1%}",
        f"pass@{k}": f"{summary.pass_at_k:.1%}",
        f"maj@{k}": f"{summary.maj_at_k:.1%}",
        "length": f"{summary.response_length:.0f}",
        "truncated": f"{summary.truncation_rate:.1%}",
    }
    table = Table(*cells, title=title)
    table.add_row(*cells.values())
    return table
