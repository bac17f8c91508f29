"""Run `vcppo completion`: print a script for the shell's completion of commands and flags."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning_vcppo.cli.commands.registry import COMMANDS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SHELLS = ("bash", "zsh", "tcsh")
USAGE = """\
vcppo completion bash|zsh|tcsh
Print a script for the shell's completion of commands, flags and their values. For bash:

  vcppo completion bash > ~/.vcppo-completion
  echo 'source ~/.vcppo-completion' >> ~/.bashrc"""


def main(arguments: Sequence[str]) -> None:
    """Run `vcppo completion`.

    Args:
        arguments: Arguments after the command's name.

    Raises:
        ValueError: If the argument is none of the shells.
    """
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
    elif len(arguments) == 1 and arguments[0] in SHELLS:
        from lightning_vcppo.cli.lightning_cli import parser  # it takes seconds

        print(completion_script(parser(), arguments[0]))
    else:
        got = " ".join(arguments) or "nothing"
        raise ValueError(f"vcppo completion: expected one of {', '.join(SHELLS)}, got {got}")


def completion_script(parser: ArgumentParser, shell: str) -> str:
    """Return the script; the parser cannot be used afterwards.

    Args:
        parser: Parser of the complete command line.
        shell: Shell that will read the script.

    Raises:
        ImportError: If the extra `completion` is not installed.
    """
    if find_spec("shtab") is None or not hasattr(parser, "get_completion_script"):
        raise ImportError("vcppo completion: needs `pip install 'lightning-vcppo[completion]'`")
    subcommands = parser._subcommands_action
    assert subcommands is not None
    for name, command in COMMANDS.items():
        if name not in subcommands.choices:
            subcommands.add_subcommand(name, type(parser)(), help=command.does)
    script: str = parser.get_completion_script(f"shtab-{shell}")
    return script
