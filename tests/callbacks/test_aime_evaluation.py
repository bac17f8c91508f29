"""Evaluations on a real Trainer: what is logged, written, printed and sent to a dashboard."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lightning_vcppo.callbacks import (
    AIMEEvaluation,
    LearningCurves,
    RewardDecayMonitor,
    RolloutProgressBar,
)
from lightning_vcppo.dashboards.tracking import has_account
from lightning_vcppo.rollouts.records import (
    ResponseRecord,
    gather_records,
    read_records,
    unique_records,
    write_records,
)
from tests.support.inventing import (
    InventingModule,
    fit,
    invent_record,
    logged,
    make_trainer,
    problems,
)

# AIMEEvaluation ----------------------------------------------------------------------------------


def test_an_evaluation_is_logged_written_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(make_trainer(tmp_path, AIMEEvaluation()), InventingModule())
    # Problems 0 and 2 of 4 have one right response of two, which ties with the wrong one.
    expected = {
        "problems": 4,
        "k": 2,
        "accuracy": 0.25,
        "accuracy_low": 0,  # every draw may miss both
        "accuracy_high": 0.5,
        "pass_at_k": 0.5,
        "maj_at_k": 0.25,
        "response_length": 25,
        "truncation_rate": 0.25,
    }
    for name, value in expected.items():
        assert logged(tmp_path, f"eval/{name}") == {2: value, 4: value}
    assert "avg@2" in capsys.readouterr().out

    directory = tmp_path / "evaluation"
    assert sorted(p.name for p in directory.iterdir()) == [
        f"rollouts_{rollout:06d}{kind}"
        for rollout in (2, 4)
        for kind in (".jsonl", "_by_group.csv", "_by_problem.csv")
    ]
    records = [invent_record(i, sample) for i in range(4) for sample in range(2)]
    written = read_records(directory / "rollouts_000002.jsonl")
    assert written == [replace(record, evaluation_set="held_out") for record in records]
    with (directory / "rollouts_000002_by_problem.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [0.5, 0, 0.5, 0]


def test_levels_are_logged_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class WithLevels(InventingModule):
        def predict_step(self, batch: Any, batch_idx: int) -> list[ResponseRecord]:
            records = super().predict_step(batch, batch_idx)
            return [replace(r, level=str(r.index % 2), subject="[b]Algebra") for r in records]

    trainer = make_trainer(tmp_path, AIMEEvaluation())
    trainer.validate(WithLevels(), [problems(4)], verbose=False)
    metrics = trainer.callback_metrics
    assert (metrics["eval/by_level/0"], metrics["eval/by_level/1"]) == (0.5, 0)
    assert not [key for key in metrics if "subject" in key]  # there is one
    printed = capsys.readouterr().out
    assert "level" in printed and "subject" not in printed
    with next((tmp_path / "evaluation").glob("*_by_group.csv")).open() as file:
        rows = [(row["by"], row["group"]) for row in csv.DictReader(file)]
    assert rows == [("level", "0"), ("level", "1"), ("subject", "[b]Algebra")]


def test_several_sets_are_evaluated_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = InventingModule()
    module.sets = ["held_out", "aime24"]
    checkpoint = ModelCheckpoint(tmp_path, monitor="eval/aime24/accuracy")
    trainer = make_trainer(tmp_path, AIMEEvaluation(sample_table_rows=1), checkpoint)
    trainer.fit(module, problems(1000), [problems(4), problems(1)])
    assert logged(tmp_path, "eval/accuracy") == {2: 0.25, 4: 0.25}
    assert logged(tmp_path, "eval/aime24/accuracy") == {2: 0.5, 4: 0.5}
    assert logged(tmp_path, "eval/aime24/problems") == {2: 1, 4: 1}
    assert checkpoint.best_model_score == 0.5
    assert "aime24" in capsys.readouterr().out
    records = read_records(tmp_path / "evaluation" / "rollouts_000004.jsonl")
    assert [r.evaluation_set for r in records] == ["held_out"] * 8 + ["aime24"] * 2


def test_without_held_out_problems_the_first_set_is_the_one_to_select_by(tmp_path: Path) -> None:
    module = InventingModule()
    module.sets = ["b", "a"]
    trainer = make_trainer(tmp_path, AIMEEvaluation())
    trainer.validate(module, [problems(1), problems(4)], verbose=False)
    metrics = trainer.callback_metrics
    assert [metrics[f"eval/{name}accuracy"] for name in ("", "b/", "a/")] == [0.5, 0.5, 0.25]


def test_the_sanity_check_is_not_an_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, AIMEEvaluation(), num_sanity_val_steps=1)
    fit(trainer, InventingModule())
    assert not (tmp_path / "evaluation" / "rollouts_000000.jsonl").exists()
    assert trainer.callback_metrics["eval/problems"] == 4


def test_a_test_does_not_overwrite_an_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, AIMEEvaluation(dirpath=str(tmp_path / "here")))
    (metrics,) = trainer.test(InventingModule(), problems(), verbose=False)
    assert metrics["test/accuracy"] == 0.25
    assert [p.name for p in (tmp_path / "here").glob("*.jsonl")] == ["test_rollouts_000000.jsonl"]


def test_a_checkpoint_can_monitor_the_accuracy(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="eval/accuracy", mode="max", filename="{step}")
    fit(make_trainer(tmp_path, AIMEEvaluation(), checkpoint), InventingModule())
    assert checkpoint.best_model_score == 0.25
    assert Path(checkpoint.best_model_path).name == "step=2.ckpt"


def test_a_module_without_rollouts_is_evaluated_by_its_updates_and_else_left_alone(
    tmp_path: Path,
) -> None:
    class Supervised(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.weight.sum()

        def validation_step(self, batch: Any, batch_idx: int) -> dict[str, list[ResponseRecord]]:
            return {"records": [invent_record(int(batch), 0)]}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters())

    callbacks = (AIMEEvaluation(), RewardDecayMonitor(), LearningCurves(), RolloutProgressBar())
    trainer = make_trainer(tmp_path, *callbacks, enable_progress_bar=True)
    fit(trainer, Supervised())
    assert logged(tmp_path, "eval/accuracy") == {1: 0.5, 3: 0.5}  # Lightning's own x axis
    assert (tmp_path / "evaluation" / "updates_000004.jsonl").exists()
    assert "step" not in trainer.callback_metrics  # a checkpoint's {step} would go stale
    assert not (tmp_path / "plots").exists()


def test_records_of_all_ranks_count_once() -> None:
    ranks = [[(1, 0), (1, 1), (0, 0)], [(0, 0), (0, 1), (1, 0)]]  # problem 1 was drawn twice
    records = [invent_record(*key) for rank in ranks for key in rank]
    unique = unique_records(records)
    assert [(r.index, r.sample) for r in unique] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert gather_records(records) == unique  # one process


def test_the_same_problem_number_of_two_sets_is_two_problems() -> None:
    records = [replace(invent_record(i, 0), evaluation_set=name) for name in "ba" for i in (1, 0)]
    unique = unique_records([*records, *records])
    assert [(r.evaluation_set, r.index) for r in unique] == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [invent_record(0, 0)])
    before = path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_records(path, [invent_record(1, 0), "not a record"])  # type: ignore[list-item]
    assert path.read_text(encoding="utf-8") == before


# Dashboards --------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_tensorboard_and_wandb_get_tables_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    board = TensorBoardLogger(tmp_path)
    run = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    try:
        curves = LearningCurves()
        trainer = make_trainer(tmp_path, AIMEEvaluation(), curves, logger=[board, run])
        fit(trainer, InventingModule())
        assert run.experiment.summary["eval/samples"]["nrows"] == 4
        assert run.experiment.summary["plots/reward"]["count"] == 1
        assert run.experiment.summary["decay/advantage_heat_map"]["count"] == 1
    finally:
        wandb.finish()
    events = EventAccumulator(board.log_dir).Reload()
    assert {"plots/reward", "decay/value_heat_map"} <= set(events.Tags()["images"])
    (first, _) = events.Tensors("eval/samples/text_summary")
    assert "Is 0 even \\| odd?" in first.tensor_proto.string_val[0].decode()


def test_an_evaluation_without_a_response_is_refused(tmp_path: Path) -> None:
    class Silent(InventingModule):
        def validation_step(self, *args: Any) -> dict[str, list[ResponseRecord]]:
            return {"records": []}

    with pytest.raises(ValueError, match="ended without a response"):
        make_trainer(tmp_path, AIMEEvaluation()).validate(Silent(), problems(2), verbose=False)


@pytest.mark.parametrize(
    ("netrc", "url", "known"),
    [
        ("machine api.wandb.ai login user password x", None, True),
        ("machine api.wandb.ai login user password x", "https://wandb.company.org", False),
        ("machine wandb.company.org login user password x", "https://wandb.company.org", True),
        ("machine github.com login user password x", None, False),
        ("not a netrc file", None, False),
        (None, None, False),
    ],
)
def test_an_account_of_weights_and_biases_is_found(
    netrc: str | None,
    url: str | None,
    known: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if netrc:
        (tmp_path / "netrc").write_text(netrc + "\n")
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert has_account() is known
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert has_account()
