"""Callbacks on a real Trainer, with a small module that invents its rollouts."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning_vcppo.callbacks.progress import sparkline
from matplotlib.image import imread
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_vcppo.actor_critic import Phase
from lightning_vcppo.advantages import decoupled_gae
from lightning_vcppo.callbacks import (
    AIMEEvaluation,
    LearningCurves,
    ModelExport,
    ResponseWriter,
    RewardDecayMonitor,
    RolloutProgressBar,
)
from lightning_vcppo.problems import Problem
from lightning_vcppo.records import gather_records, read_records, unique_records, write_records
from lightning_vcppo.rollout import ResponseRecord, Rollout
from lightning_vcppo.settings import (
    AdvantageSettings,
    OptimizerSettings,
    SamplingSettings,
    ValueSettings,
)


class InventingModule(LightningModule):
    """What the callbacks see of a VCPPOModule: real records, made up instead of sampled."""

    def __init__(self, advantage: AdvantageSettings = AdvantageSettings(), k: int = 2) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.advantage, self.k = advantage, k
        self.rollout: Rollout | None = None
        self.rollouts_done = 0
        self.phase = Phase.POLICY_OPTIMIZATION
        self.sets = ["held_out"]
        self.sampling = SamplingSettings(max_response_length=60)
        self.value = None if advantage.estimator == "group" else ValueSettings()
        self.optimizer_settings = {
            "policy": OptimizerSettings(1e-6),
            "critic": OptimizerSettings(2e-6),
        }
        self.critic_is_pretrained = False

    def sum_over_ranks(self, statistics: torch.Tensor) -> torch.Tensor:
        """There is one rank."""
        return statistics

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.rollouts_done += 1
        self.rollout = invent_rollout(self.rollouts_done, self.advantage)
        rollout = self.rollout
        self.log_dict(
            {
                "rollout/reward_mean": rollout.scores_B.mean(),
                "rollout/accuracy": rollout.correct_B.float().mean(),
                "rollout/response_length": rollout.response_lengths_B.float().mean(),
                "critic/explained_variance": 1 - 2 / (1 + self.rollouts_done),
                "step": float(self.rollouts_done),
            }
        )
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()  # counts as a batch for the loggers, as the real updates do

    @override
    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[ResponseRecord]]:
        records = self.predict_step(batch, batch_idx)
        return {"records": [replace(r, evaluation_set=self.sets[dataloader_idx]) for r in records]}

    test_step = validation_step

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> list[ResponseRecord]:
        indices = batch.tolist()
        return [invent_record(i, sample) for i in indices for sample in range(self.k)]

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rollouts_done"] = self.rollouts_done

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rollouts_done = checkpoint["rollouts_done"]

    def export(self, folder: Path) -> None:
        """Leave a sign."""
        (folder / "actor").mkdir(parents=True)
        (folder / "critic").mkdir()


class PretrainTwice(Callback):
    """Two rollouts of value pretraining, ended, as by the real callback, with the second one."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InventingModule)
        pl_module.phase = Phase.VALUE_PRETRAINING

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        assert isinstance(pl_module, InventingModule)
        if pl_module.rollouts_done == 2:
            pl_module.phase = Phase.POLICY_OPTIMIZATION


def invent_rollout(number: int, settings: AdvantageSettings, size: int = 6) -> Rollout:
    """Invent responses whose values rise along the response, less so as training goes on."""
    generator = torch.Generator().manual_seed(number)
    lengths_B = torch.randint(20, 60, (size,), generator=generator)
    position_BT = torch.arange(int(lengths_B.max())).expand(size, -1)
    mask_BT = position_BT < lengths_B[:, None]
    correct_B = torch.rand(size, generator=generator) < 1 - 1 / (1 + 0.2 * number)
    scores_B = correct_B.float() * 2 - 1
    last_BT = position_BT == lengths_B[:, None] - 1
    rewards_BT = last_BT * scores_B[:, None]
    values_BT = (position_BT / 60 - 1) / number * mask_BT
    advantages_BT, returns_BT = decoupled_gae(
        rewards_BT,
        values_BT,
        mask_BT,
        lambda_actor=settings.lambda_actor,
        lambda_critic=settings.lambda_critic,
    )
    rollout = Rollout(
        problems=(Problem("1 + 6?", 7),) * size,
        responses=("\\boxed{7}",) * size,
        input_ids_BL=torch.zeros_like(mask_BT, dtype=torch.long),
        prompt_lengths_B=torch.zeros(size, dtype=torch.long),
        response_mask_BT=mask_BT,
        sampler_logprobs_BT=torch.zeros_like(values_BT),
        finished_B=torch.ones(size, dtype=torch.bool),
        positions_B=torch.arange(size),
        group_ids_B=torch.arange(size),
        scores_B=scores_B,
        correct_B=correct_B,
        entropy_BT=mask_BT.float(),
        rewards_BT=rewards_BT,
        values_BT=values_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
    )
    if settings.estimator == "group":  # there is no critic
        rollout = rollout.with_(values_BT=None, returns_BT=None)
    return rollout


def invent_record(index: int, sample: int) -> ResponseRecord:
    """Invent a response: right on sample 0 of even problems, cut off on problem 3."""
    correct, finished = index % 2 == 0 and sample == 0, index != 3
    return ResponseRecord(
        index=index,
        sample=sample,
        source="invented",
        problem=f"Is {index} even | odd?",
        answer=7,
        response="é\n7",
        prediction=("7" if correct else "8") if finished else None,
        correct=correct,
        length=10 * (index + 1),
        finished=finished,
    )


def make_trainer(root: Path, *callbacks: Callback, **kwargs: Any) -> Trainer:
    """Make a quiet trainer of four rollouts, an evaluation after every second one."""
    defaults: dict[str, Any] = {
        "logger": CSVLogger(root),
        "max_epochs": 1,
        "limit_train_batches": 4,
        "val_check_interval": 2,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
    }
    return Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=1,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **defaults | kwargs,
    )


def problems(count: int = 4) -> DataLoader[Any]:
    """Batches of one problem index."""
    return DataLoader(torch.arange(count), batch_size=1)  # type: ignore[arg-type]


def fit(trainer: Trainer, module: LightningModule, ckpt_path: str | Path | None = None) -> None:
    """Train on as many batches as the trainer wants."""
    trainer.fit(module, problems(1000), problems(), ckpt_path=ckpt_path, weights_only=True)


def logged(root: Path, key: str) -> dict[int, float]:
    """Read a metric from the CSV log, by its step."""
    (path,) = root.glob("lightning_logs/*/metrics.csv")
    with path.open() as file:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row[key]}


# RewardDecayMonitor ------------------------------------------------------------------------------


def test_reward_decay_is_measured_on_the_rollout(tmp_path: Path) -> None:
    settings = AdvantageSettings(lambda_actor=0.9)
    fit(make_trainer(tmp_path, RewardDecayMonitor()), InventingModule(settings))

    rollout = invent_rollout(3, settings)
    lengths = rollout.response_lengths_B.tolist()
    share = sum(0.9 ** (length - 1) for length in lengths) / len(lengths)
    assert logged(tmp_path, "decay/actor_reward_share_first")[3] == pytest.approx(share, rel=1e-4)
    assert logged(tmp_path, "decay/critic_reward_share_first")[3] == 1.0
    assert logged(tmp_path, "decay/actor_horizon")[3] == pytest.approx(10, rel=1e-4)
    assert (
        logged(tmp_path, "decay/entropy_first")[3] == logged(tmp_path, "decay/entropy_last")[3] == 1
    )

    assert rollout.values_BT is not None
    first = [
        (row, t) for row, length in enumerate(lengths) for t in range(length) if 10 * t < length
    ]
    value = sum(rollout.values_BT[at].item() for at in first) / len(first)
    returns = sum(rollout.scores_B[row].item() for row, _ in first) / len(first)
    assert logged(tmp_path, "decay/value_decile_0")[3] == pytest.approx(value, rel=1e-4)
    assert logged(tmp_path, "decay/bias_first")[3] == pytest.approx(value - returns, rel=1e-4)


def test_reward_decay_follows_each_length_when_lambda_is_adaptive(tmp_path: Path) -> None:
    settings = AdvantageSettings(length_adaptive_alpha=0.05)
    fit(make_trainer(tmp_path, RewardDecayMonitor()), InventingModule(settings))
    lengths = invent_rollout(1, settings).response_lengths_B.tolist()
    assert min(lengths) >= 20  # else lambda is clamped to 0 and the horizon to 1
    horizon = sum(0.05 * length for length in lengths) / len(lengths)
    assert logged(tmp_path, "decay/actor_horizon")[1] == pytest.approx(horizon, rel=1e-4)


def test_group_advantages_have_no_reward_decay(tmp_path: Path) -> None:
    module = InventingModule(AdvantageSettings(estimator="group"))
    fit(make_trainer(tmp_path, RewardDecayMonitor()), module)
    with pytest.raises(KeyError):
        logged(tmp_path, "decay/actor_horizon")
    assert logged(tmp_path, "decay/advantage_decile_9")


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

    folder = tmp_path / "evaluation"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"rollouts_{rollout:06d}{kind}"
        for rollout in (2, 4)
        for kind in (".jsonl", "_by_group.csv", "_by_problem.csv")
    ]
    records = [invent_record(i, sample) for i in range(4) for sample in range(2)]
    written = read_records(folder / "rollouts_000002.jsonl")
    assert written == [replace(record, evaluation_set="held_out") for record in records]
    with (folder / "rollouts_000002_by_problem.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [0.5, 0, 0.5, 0]


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


def test_tensorboard_gets_tables_and_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(
        make_trainer(tmp_path, AIMEEvaluation(), LearningCurves(), logger=logger), InventingModule()
    )
    events = EventAccumulator(logger.log_dir).Reload()
    assert {"plots/reward", "decay/value_heat_map"} <= set(events.Tags()["images"])
    (first, _) = events.Tensors("eval/samples/text_summary")
    assert "Is 0 even \\| odd?" in first.tensor_proto.string_val[0].decode()


def test_wandb_gets_tables_and_figures_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    try:
        trainer = make_trainer(tmp_path, AIMEEvaluation(), LearningCurves(), logger=logger)
        fit(trainer, InventingModule())
        assert logger.experiment.summary["eval/samples"]["nrows"] == 4
        assert logger.experiment.summary["plots/reward"]["count"] == 1
        assert logger.experiment.summary["decay/advantage_heat_map"]["count"] == 1
    finally:
        wandb.finish()


# LearningCurves ----------------------------------------------------------------------------------

PLOTS = {
    "reward",
    "accuracy",
    "response_length",
    "explained_variance",
    "value_by_position",
    "advantage_by_position",
    "value_by_token",
    "advantage_by_token",
    "reward_decay",
}


def test_learning_curves_are_drawn(tmp_path: Path) -> None:
    fit(make_trainer(tmp_path, AIMEEvaluation(), LearningCurves()), InventingModule())
    pictures = {path.stem: imread(path) for path in (tmp_path / "plots").glob("*.png")}
    assert set(pictures) == PLOTS
    for picture in pictures.values():
        assert picture.shape[:2] == (600, 960)
        assert (picture[..., :3].min(axis=2) < 0.9).mean() > 0.005  # there is ink


def test_learning_curves_go_on_after_a_resume(tmp_path: Path) -> None:
    whole = LearningCurves()
    fit(make_trainer(tmp_path / "whole", AIMEEvaluation(), whole), InventingModule())

    checkpoint = ModelCheckpoint(tmp_path, monitor="eval/accuracy", save_top_k=-1)
    first_half = make_trainer(
        tmp_path / "half", AIMEEvaluation(), LearningCurves(), checkpoint, limit_train_batches=2
    )
    fit(first_half, InventingModule())
    resumed = LearningCurves()
    second_half = make_trainer(
        tmp_path / "half", AIMEEvaluation(), resumed, limit_train_batches=2, max_epochs=2
    )
    fit(second_half, InventingModule(), checkpoint.best_model_path)

    assert resumed.state_dict() == whole.state_dict()
    assert resumed.state_dict()["rollouts"] == [1, 2, 3, 4]
    assert resumed.state_dict()["evaluations"] == [[2.0, 0.25], [4.0, 0.25]]


def test_profiles_start_anew_when_a_resumed_run_has_other_bins(tmp_path: Path) -> None:
    first, second = LearningCurves(), LearningCurves()
    fit(make_trainer(tmp_path, first, limit_train_batches=2), InventingModule())
    second.load_state_dict(first.state_dict())
    module = InventingModule()
    module.sampling = SamplingSettings(max_response_length=500)
    fit(make_trainer(tmp_path, second, limit_train_batches=2), module)
    history = second.state_dict()
    assert history["bins"] == [10, 50]
    profiles = history["by_token"]["value"]
    assert [len(profile) for profile in profiles] == [50] * 4
    assert [profile[0] is None for profile in profiles] == [True, True, False, False]
    assert (tmp_path / "plots" / "value_by_token.png").exists()


def test_a_rollout_belongs_to_the_phase_in_which_it_began(tmp_path: Path) -> None:
    curves = LearningCurves()
    fit(make_trainer(tmp_path, PretrainTwice(), curves), InventingModule())
    assert curves.state_dict()["phases"] == ["value_pretraining"] * 2 + ["policy_optimization"] * 2


def test_learning_curves_without_a_critic(tmp_path: Path) -> None:
    curves = LearningCurves(dirpath=str(tmp_path / "pictures"))
    module = InventingModule(AdvantageSettings(estimator="group"))
    fit(make_trainer(tmp_path, curves, RewardDecayMonitor()), module)
    drawn = {path.stem for path in (tmp_path / "pictures").iterdir()}
    assert drawn == PLOTS - {"value_by_position", "value_by_token", "reward_decay"}
    assert curves.state_dict()["by_decile"]["value"] == [[None] * 10] * 4


# The others --------------------------------------------------------------------------------------


def test_the_progress_bar_is_short_and_names_the_phase(tmp_path: Path) -> None:
    bar = RolloutProgressBar()
    trainer = make_trainer(tmp_path, bar, AIMEEvaluation(), enable_progress_bar=True)
    module = InventingModule()
    fit(trainer, module)
    shown = bar.get_metrics(trainer, module)
    assert list(shown) == ["phase", "reward", "acc", "len", "EV", "eval"]
    assert shown["phase"] == "policy optimization"
    assert shown["EV"] == "0.60"


def test_a_log_file_gets_a_plain_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(
        tmp_path,
        PretrainTwice(),
        RolloutProgressBar(),
        enable_progress_bar=True,
        limit_train_batches=25,
        max_epochs=2,
    )
    fit(trainer, InventingModule())
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("rollout ")]
    # The first rollout, the one after which the phase has changed, and the last.
    assert [line.split()[1] for line in lines] == ["1/50", "2/50", "50/50"]
    assert "left · value pretraining · reward" in lines[0]
    assert "left · policy optimization · reward" in lines[1]
    assert "50/50 · policy optimization · reward" in lines[2]  # nothing is left
    assert "\x1b" not in out


def test_a_log_file_gets_every_line_that_is_due(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = RolloutProgressBar(line_every_s=0)
    fit(make_trainer(tmp_path, bar, enable_progress_bar=True), InventingModule())
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("rollout ") for line in lines) == 4


@pytest.mark.parametrize("leave", [False, True])
def test_a_terminal_shows_the_numbers_below_the_bar(
    leave: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    bar = RolloutProgressBar(leave=leave)
    fit(make_trainer(tmp_path, bar, enable_progress_bar=True, max_epochs=2), InventingModule())
    out = capsys.readouterr().out
    last = re.sub(r"\x1b\[[\d;?]*\w", "", out[out.rindex("Epoch 1/1") :]).split("\n")
    assert last[0].rstrip().endswith("4/4")  # beside the bar there is nothing else
    assert last[1].startswith("rollout 8/8 · policy optimization")
    assert last[2].split()[0] == "reward" and len(last[2].split()[2]) == 8  # a bar a rollout
    assert [line.split()[0] for line in last[2:6]] == ["reward", "acc", "len", "EV"]


def test_no_bar_and_no_lines_where_it_is_switched_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = RolloutProgressBar(refresh_rate=0, line_every_s=0)
    fit(make_trainer(tmp_path, bar, enable_progress_bar=True), InventingModule())
    assert "rollout" not in capsys.readouterr().out


def test_a_sparkline_spans_its_numbers() -> None:
    assert sparkline([0.0, 1.0, math.nan, 7.0]) == "▁▂ █"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([math.inf]) == ""


def test_models_are_exported_at_the_end(tmp_path: Path) -> None:
    fit(make_trainer(tmp_path, ModelExport()), InventingModule())
    fit(make_trainer(tmp_path, ModelExport(str(tmp_path / "there"))), InventingModule())
    for folder in (tmp_path, tmp_path / "there"):
        assert (folder / "actor").is_dir() and (folder / "critic").is_dir()


def test_predictions_are_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ResponseWriter())
    trainer.predict(InventingModule(k=1), problems(3), return_predictions=False)
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [invent_record(i, 0) for i in range(3)]
    assert [ResponseRecord(**json.loads(line)) for line in lines] == expected


def test_a_negative_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="sample_table_rows"):
        AIMEEvaluation(sample_table_rows=-1)
