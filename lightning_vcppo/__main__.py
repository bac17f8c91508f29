"""`vcppo`, and `python -m lightning_vcppo`."""

import os
import sys

from lightning_vcppo import __version__, usage
from lightning_vcppo.messages import fail, in_one_line
from lightning_vcppo.suggestions import did_you_mean


def run() -> None:
    """Run the command line: a user's mistake ends in one line and exit code 2.

    With `--debug` a traceback stands in front of it. What needs no training does not wait for its
    imports.
    """
    if "--debug" in sys.argv:
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
        os.environ["VCPPO_DEBUG"] = "1"
    command, *arguments = sys.argv[1:] or ["--help"]
    if not getattr(sys.flags, "safe_path", False):
        sys.path.append(os.getcwd())  # a reward or a class in a file beside the user
    with in_one_line():
        if command in ("--help", "-h", "help"):
            print(usage.overview())
        elif command == "--version":
            print(f"vcppo {__version__}")
        elif command == "report":
            from lightning_vcppo import report

            report.main(arguments)
        elif command == "doctor":
            from lightning_vcppo import doctor

            doctor.main(arguments)
        elif command == "completion":
            from lightning_vcppo import cli, completion

            completion.main(arguments, cli.parser)
        elif command == "plan":
            from lightning_vcppo import cli, plan

            plan.main(arguments)
        elif command in usage.COMMANDS or command.startswith("-"):
            from lightning_vcppo import cli

            cli.run()
        else:
            fail(
                f"{command}: no such command{did_you_mean(command, usage.COMMANDS)} "
                "(`vcppo --help` lists them)"
            )


if __name__ == "__main__":
    run()
