"""What `vcppo` says of itself; it imports nothing that takes time."""

from __future__ import annotations

COMMANDS = {
    "fit": "train: cold start, value pretraining and VC-PPO, as the configs say",
    "validate": "evaluate a model on held-out problems",
    "test": "the same, kept apart from the evaluations during training",
    "predict": "write a model's graded responses to a file",
    "plan": "memory and time of a run, before it is paid for",
    "export": "turn a checkpoint into ordinary Hugging Face folders",
    "report": "one HTML page about one or more runs",
    "regrade": "grade the responses in a file again",
    "dashboard": "build a workspace on Weights & Biases",
    "doctor": "what this machine has, and what will work on it",
    "completion": "have bash, zsh or tcsh complete commands and flags",
}
"""Each command in a line."""


def overview() -> str:
    """Return what `vcppo --help` prints: a screen of 80 by 24."""
    commands = "\n".join(f"  {name:<11} {does}" for name, does in COMMANDS.items())
    return f"""\
vcppo COMMAND [--flag=value ...]
Value-calibrated PPO for the reasoning of language models.

{commands}

Start here:
  vcppo doctor
  python -m lightning_vcppo.demo
  vcppo fit --config vcppo --model.actor FOLDER --data.path FILE.jsonl

A command's flags: vcppo COMMAND --help. The model's: vcppo fit --model.help
What would run: vcppo fit ... --print_config. Trying it out: --trainer.fast_dev_run=true
Tracebacks: --debug. Version: --version"""
