"""`vcppo compare`: whether a difference between runs is one to believe. It starts without torch.

    vcppo compare runs/ppo runs/vcppo --reference ppo --output runs/compared

Each argument is the directory of a run, one that holds `seed_N` of them (as `vcppo fit --seeds`
makes it), or a CSV file with a row for each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightning_vcppo.common.errors import OneLineArguments
from lightning_vcppo.common.files import complete_file
from lightning_vcppo.common.terminal import waiting_for
from lightning_vcppo.comparison import output, page
from lightning_vcppo.comparison.contrasts import Comparison, Options, compare, read
from lightning_vcppo.comparison.runs import ACCURACY, AXES

EPILOG = """\
RUN is the directory of a run, one that holds seed_0, seed_1, ..., or a CSV file with a row for each
run (arm, seed, accuracy, ...). Runs with the same settings are an arm; arms are paired by seed."""


def main(args: Sequence[str]) -> None:
    """Run `vcppo compare`.

    Args:
        args: What follows the command.

    Raises:
        ValueError: If runs cannot be read, grouped or paired.
        ImportError: If the extra `report` is not installed.
    """
    arguments = _parser().parse_args(args)
    options = Options(
        metric=arguments.metric,
        axis=arguments.axis,
        reference=arguments.reference,
        names=arguments.names or (),
        by=arguments.by.split(","),
        problems=arguments.problems,
        search_seeds=arguments.search_seeds or (),
    )
    with waiting_for("Comparing the runs"):
        comparison = compare(read(arguments.runs, options), options)
        files = _files(comparison) if arguments.output else {}
    console = Console()
    if not console.is_terminal:  # a pipe has no width, and a table needs one
        console = Console(width=160)
    output.print_comparison(comparison, console)
    for name, text in files.items():
        with complete_file(arguments.output / name) as file:
            file.write(text)
    if files:
        print(f"The comparison is in {arguments.output}: {', '.join(files)}")


def _files(comparison: Comparison) -> dict[str, str]:
    """Return the contents of all files, before the first of them is written."""
    return {
        "compare.json": output.to_json(comparison),
        "compare.csv": output.to_csv(comparison),
        "compare.md": output.to_markdown(comparison),
        "compare.html": page.render(comparison),
    }


def _parser() -> OneLineArguments:
    parser = OneLineArguments(
        "vcppo compare",
        description="Compare arms of runs over seeds: intervals, tests, and what they leave open.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    add = parser.add_argument
    add("--reference", metavar="ARM", help="the arm to compare with; default: the first")
    add("--names", nargs="+", metavar="NAME", help="of the arms, in the order of their first runs")
    add("--metric", default=ACCURACY, help=f"what is compared; default: {ACCURACY} (held out)")
    add(
        "--axis",
        default="rollouts",
        choices=AXES,
        help="runs are compared where the shortest of them ends on it; default: rollouts",
    )
    add("--output", type=Path, metavar="DIR", help="folder for compare.json, .csv, .md and .html")
    add("--by", default="arm", metavar="COLUMN,...", help="columns of a CSV file that name the arm")
    add("--problems", type=int, help="of a CSV file: held-out problems behind each accuracy")
    add("--search_seeds", nargs="+", type=int, metavar="SEED", help="on which rates were chosen")
    return parser
