"""Flags and configs: the whole name of what is wrong, what was expected, what may be meant."""

import json
import re

import pytest

from lightning_vcppo.cli.commands import registry
from tests.support.rows import every
from tests.support.tiny_runs import ROLLOUTS, TINY, vcppo

GROUP = "--model.advantage.estimator=group"

FLAGS = [
    # Names
    ("--no_such_flag=1", "--no_such_flag: no such option"),
    (
        "--trainer.max_epoch=1",
        "--trainer.max_epoch: no such option; did you mean --trainer.max_epo",
    ),
    ("--data.trainsize=3", "--data.trainsize: no such option; did you mean --data.train_size?"),
    ("--lambda_actor=1", "--lambda_actor: no such option"),
    (
        "--model.lambda_actor=1",
        "--model.lambda_actor: no such option; did you mean --model.advanta",
    ),
    ("--model.advantage.lambda_actr=1", "--model.advantage.lambda_actr: no such option; did you "),
    (
        "--value_pretraing.enabled=no",
        "--value_pretraing.enabled: no such option; did you mean --va",
    ),
    ("extra", "unexpected argument 'extra'; expected --flag=value"),
    ("--ckpt_path", "--ckpt_path: expected a value, --ckpt_path=VALUE"),
    ("--model=VCPPOModul", "--model: no such class VCPPOModul; did you mean VCPPOModule?"),
    (
        "--trainer.callbacks+=ModelCheckpoin",
        "--trainer.callbacks: no such class ModelCheckpoin; did",
    ),
    (
        "--trainer.logger=CSVLoger",
        "--trainer.logger: no such class CSVLoger; did you mean CSVLogger",
    ),
    (
        "--learning_rate=1",
        "--learning_rate: no such option; did you mean --model.actor_optimizer.lr",
    ),
    (
        "--trainer.strategy.timeout=0:10:00",
        "--trainer.strategy=auto: a strategy with arguments must be given by its class, such",
    ),
    ("--trainer.strategy=dpp", "--trainer.strategy=dpp: no such strategy; did you mean ddp?"),
    ("--trainer.accelerator=gpuu", "--trainer.accelerator=gpuu: no such accelerator; did you mean"),
    # Types and choices
    ("--data.train_size=many", "--data.train_size: expected an integer, got many"),
    ("--value_pretraining.max_rollouts=1.5", "--value_pretraining.max_rollouts: expected an integ"),
    ("--model.actor_optimizer.lr=nan", "--model.actor_optimizer.lr: expected a number, got nan"),
    ("--model.advantage.whiten=maybe", "--model.advantage.whiten: expected true or false, got may"),
    (
        "--data.evaluation_sets=7",
        "--data.evaluation_sets: expected a path or a mapping {name: value}, got 7",
    ),
    (
        "--loggers=csvv",
        "--loggers: expected a list [a, b] or one of csv, wandb, tensorboard, tracki",
    ),
    (
        "--loggers=csv,wandb",
        "--loggers: expected a list [a, b] or one of csv, wandb, tensorboard, t",
    ),
    (
        "--loggers=[neptune]",
        "--loggers: expected one of csv, wandb, tensorboard, trackio, got neptune",
    ),
    (
        "--model.advantage.estimator=gea",
        "--model.advantage.estimator: expected one of gae, group, ",
    ),
    (
        "--model.engine.name=vlm",
        "--model.engine.name: expected one of transformers, transformers_copy, vllm, vllm_server, ",
    ),
    ("--trainer.precision=bf15", "--trainer.precision: expected an integer or one of transformer"),
    ("--data.generated.families=[summ]", "--data.generated.families: 'summ' is not one of sum, pr"),
    ("--value_pretraining=5", "--value_pretraining: no such file 5"),
    # Ranges
    (
        "--model.advantage.lambda_actor=1.5",
        "--model.advantage.lambda_actor: expected a number in [0",
    ),
    ("--model.advantage.lambda_critic=-0.1", "--model.advantage.lambda_critic: expected a number "),
    ("--model.advantage.gamma=2", "--model.advantage.gamma: expected a number in [0, 1], got 2.0"),
    ("--model.actor_optimizer.lr=-1", "--model.actor_optimizer.lr: expected > 0, got -1.0"),
    ("--model.evaluation.num_generations=0", "--model.evaluation.num_generations: expected >= 1"),
    ("--model.sampling.top_p=0", "--model.sampling.top_p: expected a share in (0, 1], got 0.0"),
    ("--model.update.ppo_epochs=0", "--model.update.ppo_epochs: expected >= 1, got 0"),
    ("--model.update.ppo_mini_batch_size=0", "--model.update.ppo_mini_batch_size: expected >= 1"),
    ("--model.policy.clip_ratio_low=1.5", "--model.policy.clip_ratio_low: expected <= 1, as 1 - "),
    ("--model.value.huber_delta=0", "--model.value.huber_delta: expected > 0, got 0.0"),
    ("--model.value.cliprange_value=0", "--model.value.cliprange_value: expected > 0, got 0.0"),
    (
        "--model.value.value_min=2",
        "--model.value.value_min: expected below value_max, got 2.0 and ",
    ),
    ("--value_pretraining.patience=0", "--value_pretraining.patience: expected >= 1 rollout, got"),
    ("--data.prompts_per_rollout=0", "--data.prompts_per_rollout: expected >= 1, got 0"),
    (
        "--data.generated.slip_rate=2",
        "--data.generated.slip_rate: expected a probability in [0, 1]",
    ),
    ("--seed_everything=-1", "--seed_everything: expected a seed in 0..4294967295, got -1"),
    ("--threads=0", "--threads: expected >= 1, got 0"),
    # Contradictions
    (
        GROUP,
        "--model.sampling.num_generations: the group estimator compares responses to the same ",
    ),
    (
        "--model.advantage.estimator=rloo",
        "--model.sampling.num_generations: the rloo estimator compares responses to the same ",
    ),
    (
        "--model.value.target_correction=importance",
        "--model.value.target_correction: before the actor's update there is nothing to correct; ",
    ),
    ("--model.value.target_max_ratio=1", "--model.value.target_max_ratio: expected > 1, got 1.0"),
    ("--model.value.prompt_noise_floor=0", "--model.value.prompt_noise_floor: expected > 0, got "),
    (
        "--model.sampling.dynamic_sampling=true",
        "--model.sampling.dynamic_sampling: it drops groups",
    ),
    ("--model.sampling.temperature=0", "--model.sampling.temperature: expected more than 0"),
    (
        "--model.advantage.length_adaptive_alpha=0.05",
        "--model.advantage.length_adaptive_alpha: with 0.05, lambda_actor = 1 - 1 / (alpha le",
    ),
    (
        "--model.reward_shaping.overlong_buffer_len=50",
        "--model.reward_shaping.overlong_buffer_len: 50 is more than sampling.max_resp",
    ),
    (
        "--model.sampling.max_response_length=1024",
        "--model.sampling.max_response_length: 1024 tokens after a prompt of ",
    ),
    (
        "--trainer.gradient_clip_val=1",
        "--trainer.gradient_clip_val: actor and critic have their own norms",
    ),
    (
        "--trainer.accumulate_grad_batches=2",
        "--trainer.accumulate_grad_batches: gradients are always acc",
    ),
    (
        "--trainer.strategy=deepspeed",
        "--trainer.strategy=deepspeed: Lightning's DeepSpeed strategy",
    ),
    ("--trainer.strategy=fsdp", "--trainer.strategy=fsdp: FSDP1 does not work with two networks"),
    ("--trainer.strategy=FSDPStrategy", "--trainer.strategy=fsdp: FSDP1 does not work with "),
    (
        "--trainer.strategy=ModelParallelStrategy",
        "--trainer.strategy=model_parallel: this strategy",
    ),
    # What a name leads to
    ("--model.reward=no.such", "--model.reward: No module named 'no'; expected one of boxed"),
    ("--model.reward=math.sqrt", "--model.reward: not an f(response, answer): x cannot be"),
    (
        "--model.actor_optimizer.class_path=torch.optim.Adamm",
        "--model.actor_optimizer.class_path: module 'torch.optim' has no attribute 'Adamm'; got ",
    ),
]


@pytest.mark.parametrize(("flag", "message"), every(12, FLAGS), ids=lambda value: value[:50])
def test_a_wrong_flag(mistake, flag, message):
    line = mistake(flag)
    assert line.startswith(message), line


def test_an_actor_is_needed(mistake):
    assert mistake(actor=None) == "--model.actor: required by VCPPOModule"


CONFIGS = [
    (
        "value_pretrainin: {max_rollouts: 1}",
        "run.yaml:1: value_pretrainin: no such option; did you",
    ),
    (
        "data:\n  trainsize: 3",
        "run.yaml:2: data.trainsize: no such option; did you mean data.train",
    ),
    (
        "trainer: {max_epocs: 1}",
        "run.yaml:1: trainer.max_epocs: no such option; did you mean train",
    ),
    ("fit: {trainer: {max_epochs: 1}}", "run.yaml:1: fit: no such option"),
    (
        "model: {init_args: {advantage: {lambda_acto: 1}}}",
        "run.yaml: --model.advantage.lambda_acto: no such option; did you mean --model.advantage",
    ),
    ("data: {train_size: many}", "run.yaml: --data.train_size: expected an integer, got many"),
    (
        "trainer: {callbacks: [{class_path: ModelCheckpoit}]}",
        "run.yaml: --trainer.callbacks: no such class ModelCheckpoit; did you mean Model",
    ),
    (
        "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {save_lst: true}}]}",
        "run.yaml: --trainer.callbacks.save_lst: no such option; did you mean --trainer.callba",
    ),
    (
        "model: {class_path: VCPPOModul}",
        "run.yaml: --model: no such class VCPPOModul; did you mean",
    ),
    ("data: {train_size: 3\n", "run.yaml:2: broken YAML, expected ',' or '}'"),
    (
        "data:\n\ttrain_size: 3\n",
        "run.yaml:2: broken YAML, found character '\\t' that cannot start",
    ),
    ("data:\n  seed: 1\n  seed: 2\n", "run.yaml:3: duplicate key data.seed, first in line 2"),
    ("- a\n- b\n", "run.yaml: expected options as `name: value`, found a list"),
    ("text", "run.yaml: expected options as `name: value`, found a value"),
    ("", "run.yaml: expected options as `name: value`, found nothing"),
    ("data: data/none.yaml", "run.yaml: --data: no such file data/none.yaml"),
    (
        'data: {train_size: "${..nothing}"}',
        "--data.train_size: the reference ${..nothing} does not",
    ),
    (
        "model: {init_args: {advantage: {gamma: 2}}}",
        "--model.advantage.gamma: expected a number in [0, 1], got 2.0",
    ),
]


@pytest.mark.parametrize(("text", "message"), every(4, CONFIGS), ids=lambda value: value[:30])
def test_a_wrong_config(mistake, tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    line = mistake("--config=run.yaml")
    assert line.startswith(message), line


def test_a_config_that_is_no_text(mistake, tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert mistake("--config=run.yaml") == "run.yaml: expected YAML as UTF-8 text"
    assert mistake("--config=.").startswith("--config: .: no such file, and no config of that name")


def test_a_config_with_a_mark_and_windows_ends_is_read(tmp_path, tiny_actor, capsys):
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfdata:\r\n  train_size: 77\r\n")
    with pytest.raises(SystemExit) as end:
        vcppo("fit", "--config=run.yaml", f"--model.actor={tiny_actor}", "--print_config")
    assert not end.value.code
    assert "train_size: 77" in capsys.readouterr().out


# Commands


COMMAND_LINES = [
    (["fti"], "fti: no such command; did you mean fit? (`vcppo --help` lists them)"),
    (["evaluate"], "evaluate: no such command"),
    (["report"], "the following arguments are required: RUN"),
    (["report", "nowhere"], "nowhere: "),
    (["report", ".", "--outptu=x"], "--outptu: no such option; did you mean --output?"),
    (["plan", "--gpus=x"], "--gpus: expected an integer, got x"),
    (["plan", "--gpus"], "--gpus: expected a value, --gpus=VALUE"),
    (["regrade"], "the following arguments are required: file"),
    (["regrade", "no.jsonl"], "no.jsonl: no such file or directory"),
    (["regrade", "."], ".: is a directory"),
    (["regrade", "empty.jsonl"], "empty.jsonl: no responses"),
    (["regrade", "number.jsonl"], "number.jsonl:1: expected a graded response"),
    (["regrade", "half.jsonl"], "half.jsonl:1: expected a graded response"),
    (["regrade", "binary.jsonl"], "binary.jsonl: expected UTF-8 text"),
    (["regrade", "half.jsonl", "--rewrd=x"], "--rewrd: no such option; did you mean --reward?"),
    (["regrade", "half.jsonl", "--reward=x.y"], "reward: No module named 'x'"),
    (["dashboard", "--projct=x"], "--projct: no such option; did you mean --project?"),
    (["doctor", "--jsn"], "vcppo doctor: --jsn: no such option; expected --json"),
    (["completion", "fish"], "vcppo completion: expected one of bash, zsh, tcsh, got fish"),
]


@pytest.mark.parametrize(("arguments", "message"), COMMAND_LINES, ids=lambda v: str(v)[:40])
def test_a_wrong_command(command_mistake, tmp_path, arguments, message):
    (tmp_path / "half.jsonl").write_text('{"problem": "1 + 1?", "answ')
    (tmp_path / "number.jsonl").write_text("5\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    line = command_mistake(*arguments)
    assert line.startswith(message), line


def test_every_command_is_in_the_overview():
    assert {"fit", "validate", "test", "predict", "report", "demo"} <= registry.COMMANDS.keys()


# Tracebacks


def test_a_traceback_on_request(mistake, capfd):
    with pytest.raises(AssertionError, match="Traceback"):
        mistake("--model.advantage.gamma=2", "--debug")
    with pytest.raises(AssertionError, match=r"Traceback(.|\n)*train_size: expected an integer"):
        mistake("--data.train_size=x", "--debug")


def test_a_fault_of_ours_is_not_called_the_users(tiny_actor, monkeypatch):
    def broken(*arguments, **settings):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("lightning_vcppo.data.datamodule.generate_problems", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        vcppo("fit", f"--model.actor={tiny_actor}", *ROLLOUTS, "--loggers=[csv]")


def test_saved_rollouts_of_another_policy(mistake, tmp_path):
    (tmp_path / "row.jsonl").write_text(json.dumps({"problem": "1?"}) + "\n")
    for file, message in {
        "no.jsonl": "no.jsonl: no such file or directory",
        "row.jsonl": "row.jsonl:1: expected a graded response",
    }.items():
        line = mistake(f"--value_pretraining.rollouts_path={file}", leaves=("run/",))
        assert line.startswith(message), line


def test_a_module_without_the_flag(mistake):
    line = mistake("--model.optimizer.lr=1")
    assert re.match(
        "--model.optimizer.lr: no such option; did you mean --model.*optimizer.lr", line
    )
    line = mistake("--model.critic=x", base=["--model=ColdStartModule", *TINY])
    assert line.startswith("--model.critic: no such option"), line
