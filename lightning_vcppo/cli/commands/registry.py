"""List all commands of `vcppo` with their files, without slow imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

_LIGHTNING = "lightning_vcppo.cli.lightning_cli"


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        does: Description in one line.
        module: Module of its `main(arguments)`, imported when the command is run.
        passes_name: Whether `main` gets the command's name as the first argument.
    """

    does: str
    module: str
    passes_name: bool = False

    def run(self, name: str, arguments: Sequence[str]) -> None:
        """Run the command with the arguments after its name."""
        import_module(self.module).main([name, *arguments] if self.passes_name else [*arguments])


def _own(name: str, does: str) -> Command:
    return Command(does, f"lightning_vcppo.cli.commands.{name}")


COMMANDS = {
    "fit": Command(
        "train: cold start, value pretraining and VC-PPO, as set by configs", _LIGHTNING, True
    ),
    "validate": Command("evaluate a model on held-out problems", _LIGHTNING, True),
    "test": Command("evaluate as validate does, with metrics test/*", _LIGHTNING, True),
    "predict": Command("write a model's graded responses to a file", _LIGHTNING, True),
    "demo": _own("demo", "plain PPO and VC-PPO from the same start, on a CPU"),
    "plan": _own("plan", "estimate memory and time of a run"),
    "serve": _own("serve", "run vLLM's server for --model.engine.name=vllm_server"),
    "export": _own("export", "write a checkpoint as ordinary Hugging Face directories"),
    "report": _own("report", "one HTML page about one or more runs"),
    "compare": _own("compare", "compare arms of runs: intervals and tests over seeds"),
    "import": _own("import_", "convert rollouts of another trainer"),
    "critic": _own("critic", "fit, rank and evaluate critics on stored rollouts"),
    "regrade": _own("regrade", "grade the responses in a file again"),
    "dashboard": _own("dashboard", "build a workspace on Weights & Biases"),
    "doctor": _own("doctor", "show what this machine has, and what will work on it"),
    "completion": _own("completion", "print a script that completes commands in bash, zsh or tcsh"),
}


def overview() -> str:
    """Return the output of `vcppo --help`, which fits a screen of 80 by 24."""
    commands = "\n".join(f"  {name:<11} {command.does}" for name, command in COMMANDS.items())
    return f"""\
vcppo COMMAND [--flag=value ...]: value-calibrated PPO for language models that reason

{commands}

Start here: vcppo doctor; vcppo demo
  vcppo fit --config vcppo --model.actor DIRECTORY --data.path FILE.jsonl
A command's flags: vcppo COMMAND --help. The model's: vcppo fit --model.help
All settings: vcppo fit ... --print_config. Trial: --trainer.fast_dev_run=true
Tracebacks: --debug. Version: --version"""
