"""Turn the responses of a validation or test epoch into avg@k, pass@k and maj@k.

This file decides when to report and where; `lightning_vcppo/metrics/evaluation.py` computes the
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from typing_extensions import override

from lightning_vcppo.common.files import may_write, run_path
from lightning_vcppo.dashboards.media import log_table
from lightning_vcppo.data.prompts import HELD_OUT
from lightning_vcppo.metrics.evaluation import (
    GROUP_COLUMNS,
    PROBLEM_COLUMNS,
    Cell,
    Estimate,
    EvaluationSummary,
    by_problem,
    by_set,
    group_metrics,
    group_table,
    problem_table,
    shown_groups,
    summarize,
)
from lightning_vcppo.rollouts.records import (
    ResponseRecord,
    gather_records,
    write_csv,
    write_records,
)

from .base import LearnsFromRollouts

if TYPE_CHECKING:
    pass

SAMPLE_COLUMNS = (
    "evaluation_set",
    "problem",
    "answer",
    "prediction",
    "correct",
    "length",
    "response",
)


class AIMEEvaluation(Callback):
    """Log `eval/*` (validation) or `test/*`, print them, and keep the responses in a file.

    Works with every module whose `validation_step` and `test_step` return `{"records": [...]}`.
    Each response counts once, whatever the number of ranks, and every rank logs the same numbers,
    so `eval/accuracy` can be a checkpoint's `monitor`. It is the accuracy on the held-out problems
    or, without any, on the first of the named sets; each of these is logged as `eval/NAME/*`.

    Args:
        sample_table_rows: Problems of each set whose first response is sent to the dashboard; 0
            sends none.
        dirpath: Directory of `rollouts_000060.jsonl`, the responses after rollout 60, and of the
            tables `rollouts_000060_by_problem.csv` and `..._by_group.csv` (years, levels,
            subjects); None means `evaluation/` in the run's directory.

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
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the files of evaluations that this run will make again."""
        unit, done = _progress(trainer, pl_module)
        for path in self._directory(trainer).glob(f"{unit}_*") if may_write(trainer) else ():
            number = re.match(r"\d+", path.name.removeprefix(f"{unit}_"))
            if number and int(number[0]) > done:
                path.unlink()

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the responses of an interrupted evaluation."""
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

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

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
        of_sets = by_set(records)
        if not of_sets:
            raise ValueError("the evaluation has ended without a response")
        summaries = {name: summarize(of_set) for name, of_set in of_sets.items()}
        for name, of_set in of_sets.items():
            given = len({record.index for record in of_set})
            if given > (distinct := summaries[name].problems):
                rank_zero_info(
                    f"{group}: the {given} rows of {name or HELD_OUT} contain {distinct} distinct "
                    "problems; rows with the same text count as samples of one (to sample more, "
                    "give --model.evaluation.num_generations)"
                )
        unit, done = _progress(trainer, pl_module)
        groups = {name: group_table(of_set) for name, of_set in of_sets.items()}
        metrics = _metrics(summaries, groups, group)
        if unit == "rollouts":  # for updates, Lightning's own x axis is right
            metrics["step"] = float(done)
        pl_module.log_dict(metrics, sync_dist=True)
        if trainer.is_global_zero:
            get_console().print(_summary_table(summaries, title=f"{group} after {done} {unit}"))
            if shown := [row for rows in groups.values() for row in shown_groups(rows)]:
                get_console().print(_group_table(shown))
        if not may_write(trainer):
            return
        directory = self._directory(trainer)
        name = f"{'' if group == 'eval' else f'{group}_'}{unit}_{done:06d}"
        write_records(directory / f"{name}.jsonl", records)
        tables = {
            "by_problem": (
                PROBLEM_COLUMNS,
                [row for of_set in of_sets.values() for row in problem_table(of_set)],
            ),
            "by_group": (GROUP_COLUMNS, [row for rows in groups.values() for row in rows]),
        }
        for title, (columns, rows) in tables.items():
            write_csv(directory / f"{name}_{title}.csv", columns, rows)
            log_table(trainer, f"{group}/{title}", columns, rows, step=done)
        samples = [
            [getattr(record, column) for column in SAMPLE_COLUMNS]
            for of_set in of_sets.values()
            for record, *_ in by_problem(of_set)[: self._sample_table_rows]
        ]
        if samples:
            log_table(trainer, f"{group}/samples", SAMPLE_COLUMNS, samples, step=done)

    def _directory(self, trainer: Trainer) -> Path:
        return run_path(trainer, "evaluation", given=self._dirpath)


def _metrics(
    summaries: dict[str, EvaluationSummary], groups: dict[str, list[list[Cell]]], group: str
) -> dict[str, float]:
    """Return the metrics by key: `eval/*` for the first set, `eval/NAME/*` for each named set."""
    numbers = {name: s.metrics() | group_metrics(groups[name]) for name, s in summaries.items()}
    first, *_ = numbers.values()
    metrics = {f"{group}/{key}": value for key, value in first.items()}
    for name, of_set in numbers.items():
        if name not in ("", HELD_OUT):
            metrics |= {f"{group}/{name}/{key}": value for key, value in of_set.items()}
    return metrics


def _progress(trainer: Trainer, pl_module: LightningModule) -> tuple[str, int]:
    """Return the unit of the loggers' x axis (rollouts or updates) and how many are done."""
    if isinstance(pl_module, LearnsFromRollouts):
        return "rollouts", pl_module.rollouts_done
    return "updates", trainer.global_step


def _summary_table(summaries: dict[str, EvaluationSummary], *, title: str) -> Table:
    """Return a table with one row for each set."""
    k = max(summary.k for summary in summaries.values())
    headers = ("set", "problems", f"avg@{k}", f"pass@{k}", f"maj@{k}", "tokens", "truncated")
    caption = "percent, with 95 % intervals over problems"
    table = Table(*headers, title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, summary in summaries.items():
        table.add_row(
            name,
            str(summary.problems),
            *(_percent(summary.rates[rate]) for rate in ("accuracy", "pass_at_k", "maj_at_k")),
            f"{summary.response_length:.0f}",
            f"{100 * summary.truncation_rate:.1f}",
        )
    return table


def _group_table(rows: Sequence[Sequence[Cell]]) -> Table:
    """Show a row a year, level or subject."""
    headers = ("set", "by", "group", "problems", "avg@k", "pass@k", "maj@k", "tokens")
    table = Table(*headers, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        cells = dict(zip(GROUP_COLUMNS, row, strict=True))
        low, high = cells["accuracy_low"], cells["accuracy_high"]
        rates = [float(cells[rate] or 0) for rate in ("accuracy", "pass_at_k", "maj_at_k")]
        interval = Estimate(rates[0], float(low or 0), float(high or 0))
        table.add_row(
            *(escape(str(cells[column])) for column in ("set", "by", "group", "problems")),
            _percent(interval),
            *(f"{100 * rate:.1f}" for rate in rates[1:]),
            f"{cells['response_length']:.0f}",
        )
    return table


def _percent(rate: Estimate) -> str:
    return f"{100 * rate.value:.1f} [dim]({100 * rate.low:.0f}-{100 * rate.high:.0f})[/]"
