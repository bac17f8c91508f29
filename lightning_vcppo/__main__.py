"""`vcppo`, and `python -m lightning_vcppo`."""

import sys


def run() -> None:
    """Run the command line; a report does not wait for the imports of training."""
    if sys.argv[1:2] == ["report"]:
        from lightning_vcppo.report import main

        main(sys.argv[2:])
    elif sys.argv[1:2] == ["plan"]:
        from lightning_vcppo import cli, plan

        cli.run(plan.main)
    else:
        from lightning_vcppo import cli

        cli.run()


if __name__ == "__main__":
    run()
