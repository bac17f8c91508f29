"""Run the program `vcppo`: find the command by its name and run it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_vcppo import __version__
from lightning_vcppo.cli.commands.registry import COMMANDS, overview
from lightning_vcppo.cli.quiet import quieten
from lightning_vcppo.common.errors import fail, in_one_line
from lightning_vcppo.common.suggestions import did_you_mean


def run() -> None:
    """Run the command line: a user's mistake ends in one line and exit code 2.

    With `--debug` a traceback precedes it. Commands without training do not wait for its imports.
    """
    if "--debug" in sys.argv:
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
        os.environ["VCPPO_DEBUG"] = "1"
    name, *arguments = sys.argv[1:] or ["--help"]
    if not getattr(sys.flags, "safe_path", False):
        sys.path.append(os.getcwd())  # for rewards and classes in the working directory
    quieten()
    with in_one_line(), _exit_code_of_ctrl_c():
        if name in ("--help", "-h", "help"):
            print(overview())
        elif name == "--version":
            print(f"vcppo {__version__}")
        elif name in COMMANDS:
            COMMANDS[name].run(name, arguments)
        elif name.startswith("-"):  # a flag before the command, as LightningCLI allows
            COMMANDS["fit"].run(name, arguments)
        else:
            fail(
                f"{name}: no such command{did_you_mean(name, COMMANDS)} (`vcppo --help` lists them)"
            )


@contextmanager
def _exit_code_of_ctrl_c() -> Iterator[None]:
    """End with the exit code of the signal after Ctrl-C; Lightning leaves with code 1."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from None
        raise
