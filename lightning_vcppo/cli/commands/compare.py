"""Run `vcppo compare`: test whether arms of runs differ. It starts without torch.

    vcppo compare runs/ppo runs/vcppo --reference ppo --output runs/compared

Each argument is the directory of a run, a directory of `seed_N` runs (as `vcppo fit --seeds` writes
it), or a CSV file with a row for each run.
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
RUN is the directory of a run, a directory of seed_0, seed_1, ..., or a CSV file with a row for each
run (arm, seed, accuracy, ...). Runs with the same settings are an arm; arms are paired by seed."""


def main(args: Sequence[str]) -> None:
    """Run `vcppo compare`.

    Args:
        args: Arguments after the command's name.

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
    """Return the contents of all files, so that none is written if one fails."""
    return {
        "compare.json": output.to_json(comparison),
        "compare.csv": output.to_csv(comparison),
        "compare.md": output.to_markdown(comparison),
        "compare.html": page.render(comparison),
    }


def _parser() -> OneLineArguments:
    parser = OneLineArguments(
        "vcppo compare",
        description="Compare arms of runs over seeds: intervals, tests, and open questions.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    add = parser.add_argument
    add("--reference", metavar="ARM", help="the arm to compare with; default: the first")
    add("--names", nargs="+", metavar="NAME", help="names of the arms, in the order of runs")
    add("--metric", default=ACCURACY, help=f"metric to compare; default: {ACCURACY} (held out)")
    add(
        "--axis",
        default="rollouts",
        choices=AXES,
        help="axis on which runs are compared where the shortest ends; default: rollouts",
    )
    add("--output", type=Path, metavar="DIR", help="directory of compare.json, .csv, .md, .html")
    add("--by", default="arm", metavar="COLUMN,...", help="columns of a CSV file that name the arm")
    add("--problems", type=int, help="for a CSV file: held-out problems per accuracy")
    add("--search_seeds", nargs="+", type=int, metavar="SEED", help="used to choose settings")
    return parser
