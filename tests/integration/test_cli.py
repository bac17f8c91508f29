"""The command line from cold start to prediction, on tiny models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lightning_vcppo.dashboards.workspace import PICTURES, SECTIONS, healthy_ranges, lines
from lightning_vcppo.data.sources import load_problems
from lightning_vcppo.metrics.glossary import define, definitions
from tests.support.rows import every
from tests.support.tiny_runs import (
    CONFIGS,
    ROLLOUTS,
    ROOT,
    TINY,
    assert_finite,
    logged,
    logged_keys,
    offline_run,
    run_program,
    vcppo,
)

PROBLEM_FILES = [
    "aime24_qwen25math.jsonl",
    "aime24_qwq.jsonl",
    "aime25_matharena.csv",
    "aime_1983_2023_deepscaler.json",
    "gsm8k_test_200.jsonl",
    "math500_simplerl.jsonl",
]


def records(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def weights(directory, model_class=AutoModelForCausalLM):
    model = model_class.from_pretrained(directory)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def cold_start(tmp_path_factory):
    """A run that has built and fine-tuned a tiny actor from a config."""
    directory = tmp_path_factory.mktemp("cold_start")
    vcppo(
        *("fit", "--model", CONFIGS / "model" / "tiny_qwen2.yaml", *TINY, "--loggers=[csv]"),
        *("--model.actor.hidden_size=32", "--model.actor.num_hidden_layers=1"),
        *("--data.prompts_per_rollout=8", f"--trainer.default_root_dir={directory}"),
    )
    return directory


@pytest.fixture(scope="module")
def reward_model(cold_start, tmp_path_factory):
    """A run that has trained a reward model on the actor's responses."""
    directory = tmp_path_factory.mktemp("reward_model")
    vcppo(
        *("fit", "--model=RewardModelModule", f"--model.actor={cold_start / 'actor'}", *TINY),
        *(
            "--model.reward=tests.support.tiny_runs.parity",
            "--model.sampling.max_response_length=12",
        ),
        *("--data.prompts_per_rollout=8", "--trainer.limit_train_batches=2", "--loggers=[csv]"),
        f"--trainer.default_root_dir={directory}",
    )
    return directory


@pytest.fixture(scope="module")
def trained(cold_start, tmp_path_factory):
    """A run of both phases with all loggers and every switch that logs something of its own."""
    wandb.finish()  # one that another test has left would go on
    directory = tmp_path_factory.mktemp("trained")
    problems = directory / "aime24.jsonl"
    rows = [
        {"problem": "1 + 1?", "answer": 2, "year": 2023, "level": 1, "subject": "sums"},
        {"problem": "2 * 3?", "answer": 6, "year": 2024, "level": 2, "subject": "products"},
    ]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    vcppo(
        *("fit", "--config", CONFIGS / "vcppo.yaml", f"--model.actor={cold_start / 'actor'}"),
        *(*ROLLOUTS, "--loggers=[csv,wandb,tensorboard]", "--trainer.max_epochs=2"),
        "--learning_curves.enabled=true",
        "--seed_everything=1",  # with which held-out rewards differ
        *("--model.policy.kl_coef=0.01", "--model.policy.importance_correction=truncate"),
        *("--model.update.order=actor_first", "--model.value.target_correction=importance"),
        *("--model.policy.clip_ratio_c=3", "--model.policy.positive_example_nll_weight=0.1"),
        *("--model.actor_optimizer.lr=1e-3", "--model.value.cliprange_value=0.2"),
        "--model.engine={name: transformers_copy, rollouts_ahead: 1}",
        *("--model.evaluation.num_generations=3", f"--data.evaluation_sets={{aime24: {problems}}}"),
        *("--critic_calibration.audit_every=1", "--critic_calibration.audit_prefixes=8"),
        "--critic_calibration.audit_continuations=2",
        f"--trainer.default_root_dir={directory}",
    )
    wandb.finish()
    return directory


# From cold start to prediction


def test_a_cold_start_builds_an_actor_that_others_can_read(cold_start):
    assert_finite(cold_start)
    losses = [row["cold_start/loss"] for row in logged(cold_start) if "cold_start/loss" in row]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert weights(cold_start / "actor").isfinite().all()


def test_a_run_leaves_what_it_promises(trained, cold_start):
    assert_finite(trained)
    for name in (
        "config.yaml",
        "actor",
        "critic",
        "value_pretraining/critic",
        "plots/reward.png",
        "plots/value_pretraining.png",
    ):
        assert (trained / name).exists(), name
    assert not torch.equal(weights(trained / "actor"), weights(cold_start / "actor"))
    evaluated = records(trained / "evaluation" / "rollouts_000006.jsonl")
    assert [(r["evaluation_set"], r["index"], r["sample"]) for r in evaluated] == [
        *(("held_out", i, sample) for i in range(2) for sample in range(3)),
        *(("aime24", i, sample) for i in range(2) for sample in range(3)),
    ]
    assert {r["year"] for r in evaluated} == {None, 2023, 2024}
    assert len({r["seed"] for r in evaluated}) == 12
    assert list((trained / "tensorboard").glob("events.*"))


def test_an_offline_run_is_ready_for_wandb_sync(trained):
    (run,) = (trained / "wandb").glob("offline-run-*")
    assert run.name.endswith((trained / "wandb" / "run_id").read_text())
    config, _ = offline_run(run)
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert {key: config[key] for key in saved} == saved
    assert config["model"]["init_args"]["policy"]["kl_coef"] == 0.01


def test_each_panel_of_the_dashboard_is_logged_and_defined(trained):
    (run,) = (trained / "wandb").glob("offline-run-*")
    _, keys = offline_run(run)
    panels = [key for plots in SECTIONS.values() for plot in plots for key in plot]
    assert {line for key in panels for line in lines(key)} <= keys
    assert {key for pictures in PICTURES.values() for key in pictures} <= keys
    assert [key for key in panels if not define(key).meaning] == []
    text = healthy_ranges(panels)
    assert "| `rollout/truncation_rate` | share of responses truncated" in text
    assert "decay/value_lines_table" in keys


def test_regrading_finds_the_written_accuracy(trained, capsys):
    file = trained / "evaluation" / "rollouts_000006.jsonl"
    (last,) = (row for row in logged(trained) if row["step"] == 6 and "eval/accuracy" in row)
    run_program("regrade", file, "--reward=tests.support.tiny_runs.parity")
    shares = {
        "held_out": 100 * last["eval/accuracy"],
        "aime24": 100 * last["eval/aime24/accuracy"],
    }
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: avg@3 {share:.2f} % (written: {share:.2f} %)" for name, share in shares.items()
    ]
    run_program("regrade", file)  # by another reward: these answers are all wrong
    differing = [r for r in records(file) if r["correct"]]
    assert capsys.readouterr().out.count("now wrong") == len(differing) > 0


def test_evaluation_and_prediction_leave_the_training_alone(trained, tmp_path):
    before = {name: (trained / name).read_text() for name in ("metrics.csv", "config.yaml")}
    actor, root = f"--model.actor={trained / 'actor'}", f"--trainer.default_root_dir={trained}"
    for stage, group in (("validate", "eval"), ("test", "test")):
        vcppo(stage, actor, *TINY, root, "--loggers=[csv]", "--model.evaluation.num_generations=3")
        (row,) = logged(trained / stage)
        assert (row[f"{group}/problems"], row[f"{group}/k"]) == (2, 3)
    out = tmp_path / "answers.jsonl"
    vcppo("predict", actor, *TINY, root, "--loggers=[csv]", f"--response_writer.path={out}")
    assert [r["index"] for r in records(out)] == list(range(40))
    assert before == {name: (trained / name).read_text() for name in before}


@pytest.mark.parametrize("name", every(9, PROBLEM_FILES))
def test_published_problems_can_be_validated_on(name, shared_data, tiny_actor, tmp_path):
    vcppo(
        *("validate", f"--model.actor={tiny_actor}", *TINY, f"--data.path={shared_data / name}"),
        *("--data.drop_invalid=true", "--data.val_size=64", "--data.max_prompt_length=1000"),
        "--data.on_long_prompt=drop",
        *("--trainer.limit_val_batches=1", "--loggers=[csv]"),
        f"--trainer.default_root_dir={tmp_path}",
    )
    (row,) = logged(tmp_path / "validate")
    assert row["eval/problems"] == 2
    evaluated = [r["source"] for r in records(tmp_path / "evaluation" / "rollouts_000000.jsonl")]
    sources = [p.source for p in load_problems(shared_data / name, drop_invalid=True)]
    if len(sources) <= 64:  # all of them, in their order, but for long prompts
        assert evaluated == [source for source in sources if source in evaluated]
        assert evaluated[0] == sources[0]


# The critic


def test_a_reward_model_becomes_the_critic(reward_model, cold_start, tmp_path):
    assert_finite(reward_model)
    directory = reward_model / "reward_model"
    assert weights(directory, AutoModelForSequenceClassification).isfinite().all()
    vcppo(
        *("fit", f"--model.actor={cold_start / 'actor'}", f"--model.critic={directory}", *ROLLOUTS),
        *("--loggers=[csv]", f"--trainer.default_root_dir={tmp_path}"),
    )
    first = logged(tmp_path)[0]
    assert first["value_pretraining/rollouts"] == 1
    assert first["critic/value_mean"] != 0  # the reward model's head, not a fresh one


def test_a_fitted_critic_needs_no_value_pretraining(trained, cold_start, tmp_path):
    critic = trained / "value_pretraining" / "critic"
    vcppo(
        *("fit", f"--model.actor={cold_start / 'actor'}", f"--model.critic={critic}", *ROLLOUTS),
        *("--loggers=[csv]", f"--trainer.default_root_dir={tmp_path}"),
    )
    assert not any(key.startswith("value_pretraining/") for key in logged_keys(tmp_path))
    assert "policy/loss" in logged(tmp_path)[0]


@pytest.mark.thorough
def test_a_file_of_predictions_pretrains_the_critic(tiny_actor, cold_start, tmp_path):
    path = tmp_path / "predictions.jsonl"
    common = [*TINY, "--model.reward=tests.support.tiny_runs.parity", "--loggers=[csv]"]
    vcppo(
        *("predict", f"--model.actor={tiny_actor}", *common, f"--response_writer.path={path}"),
        f"--trainer.default_root_dir={tmp_path}",
    )
    (first, *_) = records(path)
    assert len(first["response_ids"]) == first["length"] and first["prompt_ids"]
    saved = ["--value_pretraining.max_rollouts=2", f"--value_pretraining.rollouts_path={path}"]
    fit = ["fit", *ROLLOUTS, "--loggers=[csv]", *saved, f"--trainer.default_root_dir={tmp_path}"]
    vcppo(*fit, f"--model.actor={tiny_actor}", "--value_pretraining.min_rollouts=2")
    rows = logged(tmp_path)
    assert [row["value_pretraining/generated_tokens"] for row in rows[:2]] == [0, 0]
    assert "policy/loss" not in rows[1] and "policy/loss" in rows[2]
    with pytest.raises(
        ValueError, match=r"predictions\.jsonl: .* another policy: model \w+ instead"
    ):
        vcppo(*fit, f"--model.actor={cold_start / 'actor'}", "--overwrite")


# Interruptions and strategies


def test_the_progress_bar_is_switched_off_as_lightning_does_it(tiny_actor, tmp_path, capsys):
    cli = vcppo(
        *("validate", f"--model.actor={tiny_actor}", *TINY, "--loggers=[]"),
        *("--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"),
    )
    assert "held_out" in capsys.readouterr().out
    # The config that modules may save is the one that was checked.
    checked = cli.parser.dump(cli.config, skip_link_targets=False, skip_none=False)
    assert cli.config_dump == yaml.safe_load(checked)["validate"]


@pytest.mark.thorough
def test_a_resumed_run_goes_on_in_its_run_of_wandb(tiny_actor, tmp_path):
    for epochs, more in ((1, []), (2, ["--ckpt_path=last"]), (1, ["--overwrite"])):
        vcppo(
            *("fit", f"--model.actor={tiny_actor}", *ROLLOUTS, f"--trainer.max_epochs={epochs}"),
            *("--trainer.limit_train_batches=1", f"--trainer.default_root_dir={tmp_path}", *more),
        )
        wandb.finish()
    runs = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    first, resumed, anew = (run.stem for run in runs)
    assert first == resumed != anew


@pytest.mark.thorough
def test_two_processes_end_with_equal_weights(tiny_actor, tmp_path):
    shutil.copytree(tiny_actor, tmp_path / "actor")
    command = [sys.executable, "-m", "lightning_vcppo", "fit", *ROLLOUTS, "--loggers=[csv]"]
    command += ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.limit_val_batches=1"]
    command += ["--trainer.callbacks+=tests.support.tiny_runs.WeightsWatcher"]
    command += [f"--model.actor={tmp_path / 'actor'}", f"--trainer.default_root_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (records(tmp_path / f"weights_{rank}.jsonl") for rank in range(2))
    assert first == second and len(first) == 3
    assert len({line["critic"] for line in first}) == 3
    assert [line["actor"] == first[0]["actor"] for line in first] == [True, False, False]
    assert_finite(tmp_path)


# Documentation


@pytest.fixture(scope="module")
def in_parts(cold_start, tmp_path_factory):
    """A run whose responses are sampled in parts, which rollouts ahead exclude."""
    directory = tmp_path_factory.mktemp("in_parts")
    vcppo(
        *("fit", "--config", CONFIGS / "ppo.yaml", f"--model.actor={cold_start / 'actor'}"),
        *(*ROLLOUTS, "--loggers=[csv]", "--model.engine.partial_length=6"),
        f"--trainer.default_root_dir={directory}",
    )
    return directory


def test_every_metric_is_documented_and_every_documented_metric_is_logged(
    cold_start, reward_model, trained, in_parts
):
    runs = (cold_start, reward_model, trained, in_parts)
    keys = {k.replace("/aime24/", "/") for run in runs for k in logged_keys(run)} - {"epoch"}
    rows = definitions()
    assert {key for key in keys if not any(row.covers(key) for row in rows)} == set()
    assert {row.key for row in rows if not any(map(row.covers, keys))} == set()
