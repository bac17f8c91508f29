"""A user's mistake ends in one line that names it, exit code 2, and nothing half-written."""

import json
import subprocess
import sys
from unittest import mock

import pytest

from lightning_vcppo import cli
from tests.tiny_runs import ROLLOUTS, TINY

ERROR = "vcppo: error: "


@pytest.fixture
def mistake(tiny_actor, tmp_path, monkeypatch, capfd):
    """Return a function that runs `vcppo` and returns the line with which it ends."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, base=ROLLOUTS, actor=tiny_actor):
        command = ["vcppo", "fit", f"--model.actor={actor}", *base, *arguments]
        command += ["--loggers=[csv]", "--trainer.default_root_dir=run"]
        with mock.patch.object(sys, "argv", command), pytest.raises(SystemExit) as end:
            cli.run()
        assert end.value.code == 2
        error = capfd.readouterr().err
        assert "Traceback" not in error and error.count(ERROR) == 1
        for written in ("run/metrics.csv", "run/actor", "run/critic", "run/checkpoints"):
            assert not (tmp_path / written).exists(), written
        return error.splitlines()[-1].removeprefix(ERROR)

    return run


@pytest.fixture
def problems(tmp_path):
    """Return a function that writes a file of problems, by default twelve right ones."""

    def write(*rows, name="problems.jsonl"):
        right = [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(12)]
        lines = [row if isinstance(row, str) else json.dumps(row) for row in [*right, *rows]]
        (tmp_path / name).write_text("\n".join(lines))
        return f"--data.path={name}"

    return write


# Data


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "1 + 1?", "answer": "x^2"}, "expected an integer answer in 0..999, got 'x^2'"),
        ({"problem": "1 + 1?", "answer": 1000}, "expected an integer answer in 0..999, got 1000"),
        ({"problem": "1 + 1?", "answer": -1}, "expected an integer answer in 0..999, got -1"),
        ({"problem": "", "answer": 1}, "no field problem, question, prompt, messages, conv"),
        ({"task": "1 + 1?", "answer": 1}, "no field problem, question, prompt, messages, conv"),
        ({"problem": "1 + 1?"}, "no field answer, final_answer"),
        ('{"problem": "1 + 1?", "answer": 2', "broken JSON"),
        ("[1, 2]", "expected a JSON object, got [1, 2]"),
    ],
)
def test_a_wrong_row_is_named(mistake, problems, row, message):
    line = mistake(problems(row), "--data.val_size=1")
    assert line.startswith(f"problems.jsonl:13: {message}"), line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.path=no/file.jsonl"], "no/file.jsonl: no such file, the folder no does not"),
        (["--data.path=problem.jsonl"], "problem.jsonl: no such file; did you mean problems.jsonl"),
        (
            ["--data.answer_field=gold"],
            "problems.jsonl: none of 12 rows is valid; problems.jsonl:1: no",
        ),
        (["--data.max_prompt_length=5"], "problems.jsonl:"),
        (["--data.val_size=12"], "val_size: 12 of 12 problems leaves none to train on"),
        (["--data.prompts_per_rollout=20"], "prompts_per_rollout: 20 is more than the 10 training"),
        (["--data.path=reasoning_gym:chain_summ"], "reasoning_gym:chain_summ: no such task; did"),
        (["--data.chat_template=chat"], "chat_template: the tokenizer has none"),
    ],
)
def test_data_that_cannot_be_used(mistake, problems, arguments, message):
    line = mistake(problems(), *arguments)
    assert line.startswith(message), line


def test_a_long_prompt_says_what_to_do(mistake, problems):
    line = mistake(problems(), "--data.max_prompt_length=5")
    assert "tokens, more than max_prompt_length=5" in line and "--data.on_long_prompt=drop" in line


def test_cold_start_needs_solutions(mistake, problems):
    module = ["--model=ColdStartModule", *TINY, "--data.prompts_per_rollout=2"]
    line = mistake(problems(), base=module)
    assert line.startswith("problems.jsonl:") and "no worked solution" in line, line


# Models and settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.advantage.lambda_actor=1.5"],
            "lambda_actor: expected a number in [0, 1], got 1",
        ),
        (["--model.advantage.gamma=-0.1"], "gamma: expected a number in [0, 1], got -0.1"),
        (["--model.advantage.estimator=group"], "sampling.num_generations: the group estimator"),
        (["--model.sampling.temperature=0"], "sampling.temperature: training needs more than 0"),
        (["--model.sampling.top_p=0"], "top_p: expected a share in (0, 1], got 0"),
        (["--model.update.ppo_epochs=0"], "ppo_epochs: expected >= 1, got 0"),
        (["--model.critic=./no_critic"], "./no_critic: no such folder"),
        (["--model.critic=./no_critic", "--trainer.strategy=fsdp2"], "./no_critic: no such folder"),
        (["--model.reward=no.such"], "reward 'no.such': No module named 'no'"),
        (["--model.actor_optimizer.class_path=torch.optim.Adamm"], "optimizer torch.optim.Adamm: "),
        (["--value_pretraining.patience=0"], "patience: expected >= 1 rollout, got 0"),
        (["--trainer.strategy=deepspeed"], "--trainer.strategy=deepspeed: Lightning's DeepSpeed"),
        (["--trainer.strategy=fsdp"], "--trainer.strategy=fsdp: FSDP1 does not work with two"),
        (["--trainer.strategy=FSDPStrategy"], "--trainer.strategy=fsdp: FSDP1 does not work with"),
        (
            ["--trainer.strategy=ModelParallelStrategy"],
            "--trainer.strategy=model_parallel: this strategy leaves the sharding to the module",
        ),
        (
            ["--trainer.strategy=fsdp2", "--trainer.precision=16-true"],
            "--trainer.precision=16-true: fsdp2 takes one of 32-true, 64-true, bf16-true, bf16-mi",
        ),
        (
            ["--trainer.strategy=FSDP2Strategy", "--trainer.strategy.shards=3"],
            "--trainer.strategy.shards=3: 1 processes are no multiple of it",
        ),
        (["--ckpt_path=no.ckpt"], "Checkpoint file not found: no.ckpt"),
        (["--model.lambda_actor=0.9"], "--model: Problem with given class_path"),
        (["--no_such_flag=1"], "unrecognized arguments: --no_such_flag=1"),
        (["--data.train_size=many"], "--data.train_size: Expected a int"),
        (
            ["--config=vcppoo"],
            "--config: vcppoo: no such file, and no config of that name;",
        ),
        (["--model=NoSuchModule"], "--model: "),
        (["--loggers=[neptune]"], "--loggers: "),
    ],
)
def test_a_wrong_flag_is_named(mistake, arguments, message):
    line = mistake(*arguments)
    assert line.startswith(message), line


def test_a_sharded_checkpoint_needs_its_strategy(mistake, tmp_path):
    (tmp_path / "x.ckpt").mkdir()
    (tmp_path / "x.ckpt" / "meta.pt").touch()
    line = mistake("--ckpt_path=x.ckpt")
    assert line.startswith("x.ckpt: a sharded checkpoint; go on with --trainer.strategy=fsdp2")


def test_an_unknown_key_of_a_config_is_named(mistake, tmp_path):
    (tmp_path / "run.yaml").write_text("data: {trainsize: 3}\n")
    line = mistake("--config=run.yaml")
    assert line == "Subcommand 'fit' does not accept option 'data.trainsize'"
    (tmp_path / "run.yaml").write_text("data: {train_size: 3\n")
    line = mistake("--config=run.yaml")
    assert "run.yaml" in line, line


@pytest.mark.parametrize("actor", ["./no_folder", "empty", "broken"])
def test_a_folder_without_a_model(mistake, tmp_path, tiny_actor, actor):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for file in tiny_actor.iterdir():
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes()[:2000])
    line = mistake(actor=actor)
    assert line.startswith(f"{actor}: "), line


def test_the_program_itself(tmp_path):
    command = [sys.executable, "-m", "lightning_vcppo", "fit", "--model.actor=x", "--dat.path=y"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{ERROR}unrecognized arguments: --dat.path=y\n"
    assert not list(tmp_path.iterdir())


def test_a_traceback_on_request(monkeypatch, tiny_actor):
    monkeypatch.setenv("VCPPO_DEBUG", "1")
    command = ["vcppo", "fit", f"--model.actor={tiny_actor}", "--model.advantage.gamma=2"]
    with mock.patch.object(sys, "argv", command), pytest.raises(ValueError, match="gamma"):
        cli.run()
