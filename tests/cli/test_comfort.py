"""What `vcppo` says of itself and of the machine, and how it says that it is busy."""

import contextlib
import io
import json
import subprocess
import sys
from importlib import metadata
from typing import ClassVar

import pytest
from rich.console import Console

from lightning_vcppo import __version__
from lightning_vcppo.cli import lightning_cli
from lightning_vcppo.cli.commands import completion, doctor
from lightning_vcppo.cli.commands.registry import COMMANDS
from lightning_vcppo.common import terminal
from lightning_vcppo.common.suggestions import did_you_mean, name_flag, nearest_flag
from tests.support.tiny_runs import run_program

FLAGS = [
    "--config",
    "--data.train_size",
    "--data.val_size",
    "--model.advantage.lambda_actor",
    "--model.advantage.lambda_critic",
    "--model.evaluation.num_generations",
    "--model.sampling.num_generations",
    "--trainer.max_epochs",
    "--trainer.max_steps",
]


def printed(*arguments):
    """Return what `vcppo` prints, and its exit code."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            run_program(*arguments)
        except SystemExit as end:
            return out.getvalue(), end.code or 0
    return out.getvalue(), 0


# Help


def test_the_overview_fits_a_screen_and_names_the_next_command():
    text, code = printed("--help")
    assert code == 0
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 90
    assert "vcppo doctor" in text and "vcppo fit --config" in text
    assert printed() == printed("-h") == printed("help") == (text, 0)


def test_the_help_of_a_command_has_its_flags():
    text, code = printed("fit", "--help")
    assert code == 0 and "--trainer.max_epochs" in text and "--value_pretraining.patience" in text
    # Last, where a terminal shows it: the algorithm's own flags, which depend on the model's class.
    assert text.splitlines()[-1].startswith("The model's flags: vcppo fit --model.help ")
    assert "[--trainer.max_epochs" not in text  # no list of the flags before their descriptions
    for command in ("fit", "validate", "test", "predict"):
        text, code = printed(command, "--help")
        assert code == 0 and text.split("\n\n")[1] == COMMANDS[command].does
    text, code = printed("fit", "--model.help")
    assert code == 0 and "--model.advantage.lambda_actor" in text
    for command in ("report", "regrade", "doctor", "completion", "dashboard"):
        text, code = printed(command, "--help")
        assert code == 0 and "vcppo" in text and len(text.splitlines()) > 2, command


def test_the_version():
    assert printed("--version") == (f"vcppo {__version__}\n", 0)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["doctor", "--help"], ["report", "--help"], ["completion", "--help"]]
)
def test_help_does_not_wait_for_torch(arguments):
    program = (
        f"import contextlib, sys; sys.argv = ['vcppo', *{arguments!r}]\n"
        "from lightning_vcppo.cli import main\n"
        "with contextlib.suppress(SystemExit): main.run()\n"
        "print({'torch', 'lightning', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


# Suggestions


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--trainer.max_epoch", "--trainer.max_epochs"),
        ("--data.trainsize", "--data.train_size"),
        ("--lambda_actor", "--model.advantage.lambda_actor"),
        ("--model.lambda_critic", "--model.advantage.lambda_critic"),
        ("--conf", "--config"),
        ("--quite_another", None),
    ],
)
def test_what_a_flag_may_have_meant(flag, meant):
    assert nearest_flag(flag, FLAGS) == meant


def test_what_a_name_may_have_meant():
    assert did_you_mean("modelcheckpoint", ["ModelCheckpoint", "Timer"]) == (
        "; did you mean ModelCheckpoint?"
    )
    assert did_you_mean("x", ["ModelCheckpoint"]) == ""


def test_a_message_gets_the_flag_whose_value_it_tells():
    values = {"model.sampling.num_generations": 4, "model.evaluation.num_generations": 0}
    message = "num_generations: expected >= 1, got 0"
    assert name_flag(message, values) == f"--model.evaluation.{message}"
    values["model.sampling.num_generations"] = 0
    assert name_flag(message, values).startswith(
        "--model.sampling.num_generations or --model.evaluation.num_generations: expected"
    )
    for other in ("no_setting: no", "problems.jsonl:3: no", "No flag here"):
        assert name_flag(other, values) == other


@pytest.mark.parametrize("by_flag", [True, False])
def test_a_former_name_works_with_one_line_of_warning(by_flag, tmp_path):
    former = "--model.policy.reuse_sampler_logprobs=false"
    if not by_flag:
        path = tmp_path / "former.yaml"
        path.write_text("model: {init_args: {policy: {reuse_sampler_logprobs: false}}}")
        former = f"--config={path}"
    with pytest.warns(FutureWarning) as warnings, pytest.raises(SystemExit):
        run_program("fit", former, "--model.actor=/nowhere", "--trainer.accelerator=cpu")
    told = [str(w.message) for w in warnings if "reuse_sampler_logprobs" in str(w.message)]
    assert told == [
        "policy.reuse_sampler_logprobs=false is now policy.old_logprobs=recomputed, and will be "
        "refused in the next version"
    ]


# The doctor


def test_the_doctor_says_what_works_here():
    text, code = printed("doctor")
    assert code == 0
    for word in (
        "Python",
        "packages",
        "memory",
        "train on the CPU",
        "Weights & Biases",
        "cache of",
    ):
        assert word in text, word


def test_the_doctor_writes_json_for_bug_reports(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-key")
    text, code = printed("doctor", "--json")
    found = json.loads(text)
    assert code == 0 and found["problems"] == []
    assert found["packages"]["torch"]["ok"] and found["torch"]["threads"] >= 1
    assert found["memory"]["total_gib"] >= found["memory"]["available_gib"] > 0
    assert found["tracking"] == {"account": True}
    assert "a-secret-key" not in text


def test_the_doctor_finds_what_is_missing(monkeypatch):
    wanted = [
        "torch>=99",
        "no-such-package>=1",
        "rich>=1",
        'no-such-extra>=2; extra == "vllm"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    found = doctor.examine()
    assert [problem.partition(",")[0] for problem in found["problems"]] == [
        "torch>=99 is required",
        "no-such-package>=1 is required",
    ]
    assert found["extras"] == {"vllm": {"ok": False, "lacking": ["no-such-extra>=2"]}}
    assert {"what": "train on the CPU", "ok": False, "note": "see the problems"} in found["works"]
    assert printed("doctor")[1] == 1


def test_the_doctor_does_not_promise_to_train_on_apples_gpu(monkeypatch):
    here = doctor._torch() | {"mps": True, "gpus": []}
    monkeypatch.setattr(doctor, "_torch", lambda: here)
    (row,) = [row for row in doctor.examine()["works"] if row["what"] == "train on a GPU"]
    assert not row["ok"] and "float64" in row["note"]


def test_a_finding_that_fails_does_not_end_the_examination(monkeypatch):
    def broken(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", broken)
    monkeypatch.setattr(doctor, "_torch", lambda: 1 / 0)
    found = doctor.examine()
    assert found["torch"] == {"failed": "ZeroDivisionError: division by zero"}
    assert len(found["problems"]) == 2
    doctor._show(found, Console(file=io.StringIO()))


# Completion


@pytest.mark.thorough
def test_bash_completes_commands_flags_and_values(tmp_path):
    pytest.importorskip("shtab")
    script = tmp_path / "completion.bash"
    script.write_text(completion.completion_script(lightning_cli.parser(), "bash"))
    subprocess.run(["bash", "-n", script], check=True, timeout=60)
    asked = {
        "do": ["doctor"],
        "fit --model.advantage.lambda_c": ["--model.advantage.lambda_critic"],
    }
    asked["fit --model.advantage.estimator "] = ["gae", "group", "rloo", "batch"]
    for line, answer in asked.items():
        words = ["vcppo", *line.split(" ")]
        quoted = " ".join(f"'{word}'" for word in words)
        ask = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_vcppo"
        done = subprocess.run(
            ["bash", "-c", f'{ask}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.split() == answer, done


# Waiting


def test_a_terminal_sees_what_is_being_done_and_a_pipe_does_not(monkeypatch):
    for is_terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal)
        monkeypatch.setattr(terminal, "Console", lambda stderr, c=console: c)
        with terminal.waiting_for("Loading the actor"):
            pass
        assert ("Loading the actor" in file.getvalue()) == is_terminal
    monkeypatch.setenv("RANK", "1")
    file.truncate(0)
    monkeypatch.setattr(terminal, "Console", lambda stderr: Console(file=file, force_terminal=True))
    with terminal.waiting_for("Loading the actor"):
        pass
    assert "Loading" not in file.getvalue()


def test_only_the_flags_of_the_given_command_are_built():
    with pytest.raises(SystemExit):
        lightning_cli.main(["fit", "--help"], Parsers)
    assert Parsers.flags["fit"] > 100
    assert Parsers.flags["validate"] == Parsers.flags["test"] == Parsers.flags["predict"] < 10


class Parsers(lightning_cli.VCPPOCLI):
    """Counts the flags of each command before it reads any."""

    flags: ClassVar[dict[str, int]] = {}

    def parse_arguments(self, parser, args):
        for name, each in self._subcommand_parsers.items():
            self.flags[name] = len(each._option_string_actions)
        super().parse_arguments(parser, args)
