"""All commands of `vcppo`: one line each, and the file that runs it. It imports nothing slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

_LIGHTNING = "lightning_vcppo.cli.lightning_cli"


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        does: What it does, in a line.
        module: Where its `main(arguments)` is; imported when the command is run.
        passes_name: Whether `main` gets the command's name too, as the first argument.
    """

    does: str
    module: str
    passes_name: bool = False

    def run(self, name: str, arguments: Sequence[str]) -> None:
        """Run the command with what follows its name."""
        import_module(self.module).main([name, *arguments] if self.passes_name else [*arguments])


def _own(name: str, does: str) -> Command:
    return Command(does, f"lightning_vcppo.cli.commands.{name}")


COMMANDS = {
    "fit": Command(
        "train: cold start, value pretraining and VC-PPO, as the configs say", _LIGHTNING, True
    ),
    "validate": Command("evaluate a model on held-out problems", _LIGHTNING, True),
    "test": Command("the same, kept apart from the evaluations during training", _LIGHTNING, True),
    "predict": Command("write a model's graded responses to a file", _LIGHTNING, True),
    "demo": _own("demo", "plain PPO and VC-PPO from the same start, on a CPU"),
    "plan": _own("plan", "memory and time of a run, before it is paid for"),
    "serve": _own("serve", "run vLLM's server for --model.engine.name=vllm_server"),
    "export": _own("export", "turn a checkpoint into ordinary Hugging Face folders"),
    "report": _own("report", "one HTML page about one or more runs"),
    "compare": _own("compare", "whether arms of runs differ: intervals and tests over seeds"),
    "import": _own("import_", "turn the rollouts of another trainer into this project's"),
    "critic": _own("critic", "fit, choose and judge critics on stored rollouts"),
    "regrade": _own("regrade", "grade the responses in a file again"),
    "dashboard": _own("dashboard", "build a workspace on Weights & Biases"),
    "doctor": _own("doctor", "what this machine has, and what will work on it"),
    "completion": _own("completion", "have bash, zsh or tcsh complete commands and flags"),
}


def overview() -> str:
    """Return what `vcppo --help` prints: a screen of 80 by 24."""
    commands = "\n".join(f"  {name:<11} {command.does}" for name, command in COMMANDS.items())
    return f"""\
vcppo COMMAND [--flag=value ...]: value-calibrated PPO for language models that reason

{commands}

Start here: vcppo doctor; vcppo demo
  vcppo fit --config vcppo --model.actor FOLDER --data.path FILE.jsonl
A command's flags: vcppo COMMAND --help. The model's: vcppo fit --model.help
What would run: vcppo fit ... --print_config. Trying it out: --trainer.fast_dev_run=true
Tracebacks: --debug. Version: --version"""
