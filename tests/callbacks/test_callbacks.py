"""Callbacks on a real Trainer, with a small module that invents its rollouts."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from lightning_vcppo.callbacks.progress import sparkline

from lightning_vcppo.callbacks import (
    AIMEEvaluation,
    ModelExport,
    ResponseWriter,
    RewardDecayMonitor,
    RolloutProgressBar,
)
from lightning_vcppo.rollouts.records import ResponseRecord
from lightning_vcppo.settings import AdvantageSettings
from tests.support.inventing import (
    InventingModule,
    PretrainTwice,
    fit,
    invent_record,
    invent_rollout,
    logged,
    make_trainer,
    problems,
)

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
    monkeypatch.setattr("rich._console", None)  # nor do later tests inherit its colours
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
    for directory in (tmp_path, tmp_path / "there"):
        assert (directory / "actor").is_dir() and (directory / "critic").is_dir()


def test_predictions_are_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ResponseWriter())
    trainer.predict(InventingModule(k=1), problems(3), return_predictions=False)
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [invent_record(i, 0) for i in range(3)]
    assert [ResponseRecord(**json.loads(line)) for line in lines] == expected


def test_a_negative_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="sample_table_rows"):
        AIMEEvaluation(sample_table_rows=-1)
