"""Run `vcppo dashboard`: build a workspace on Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_vcppo.cli.parser import run_function
from lightning_vcppo.dashboards.workspace import dashboard


def main(arguments: Sequence[str]) -> None:
    """Run `vcppo dashboard`.

    Args:
        arguments: Arguments after the command's name.
    """
    run_function(dashboard, "dashboard", arguments)
