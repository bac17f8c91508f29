"""Run `vcppo critic fit|compare|evaluate`: fit, rank and evaluate critics on stored rollouts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_vcppo.common.errors import OneLineArguments, fail, require_seed
from lightning_vcppo.common.processes import cores
from lightning_vcppo.common.ranks import own_rank
from lightning_vcppo.common.suggestions import did_you_mean
from lightning_vcppo.common.terminal import waiting_for

if TYPE_CHECKING:
    from lightning_vcppo.cli.parser import OneLineParser

USAGE = """\
vcppo critic fit ROLLOUTS --model NAME --output DIRECTORY
    fit a critic on stored rollouts, without an actor
vcppo critic compare ROLLOUTS --model NAME --critics mse hl_gauss ... --output DIRECTORY
    fit several critics on the same rollouts and rank them
vcppo critic evaluate CRITIC ROLLOUTS
    evaluate an existing critic

ROLLOUTS: output of `vcppo predict` or `vcppo import`, or a dump of another trainer.
Flags: vcppo critic fit --help"""
ACTOR_FLAGS: dict[str, tuple[type, str]] = {
    "prefixes": (int, "number of places in held-out responses to continue; default: 256"),
    "continuations": (int, "number for each place, and with its stored token; default: 8"),
    "lambdas": (float, "lambdas to compare; default: 0.9 0.95 0.99 1"),
    "reward": (str, "the rollouts' style of the verifier or reward function; default: boxed"),
    "temperature": (float, "temperature of sampling; default: that of the rollouts"),
    "top_p": (float, "top-p of sampling; default: that of the rollouts"),
    "max_response_length": (int, "largest number of tokens; default: that of the rollouts"),
}
"""Flags of `compare` for continuations by the actor, with type and help."""


def main(arguments: Sequence[str]) -> None:
    """Run `vcppo critic`.

    Args:
        arguments: Arguments after the command's name.

    Raises:
        ValueError: If rollouts, critics or settings cannot be used.
    """
    name, *rest = arguments or ["--help"]
    actions = {"fit": _fit, "compare": _compare, "evaluate": _evaluate}
    if name in ("--help", "-h", "help"):
        print(USAGE)
    elif name in actions:
        actions[name](rest)
    else:
        fail(
            f"critic {name}: no such action{did_you_mean(name, actions)}; expected fit, compare "
            "or evaluate"
        )


def _fit(arguments: Sequence[str]) -> None:
    parser = fit_parser()
    options = parser.instantiate_classes(parser.parse_args([*arguments]))
    from lightning_vcppo.critic_lab.running import fit_critic

    measures = fit_critic(**{k: v for k, v in vars(options).items() if k != "config"})
    if own_rank() != 0:
        return
    print(
        f"Held out: R^2 {measures.r2:.3f}, explained variance {measures.explained_variance:.3f}, "
        f"bias {measures.bias:+.3f}"
    )
    written = json.loads((Path(options.output) / "fit.json").read_text(encoding="utf-8"))
    for warning in written["warnings"]:
        print(f"warning: {warning}")
    print(f"The critic and its card are in {Path(options.output) / 'critic'}")


def fit_parser() -> OneLineParser:
    """Return the parser of `vcppo critic fit`."""
    with waiting_for("Loading"):
        from lightning_vcppo.cli.parser import OneLineParser
        from lightning_vcppo.critic_lab.running import fit_critic

    parser = OneLineParser(prog="vcppo critic fit")
    parser.add_argument("rollouts", type=str, help="file, pattern or directory")
    parser.add_function_arguments(fit_critic, skip={"rollouts"}, as_group=False)
    parser.add_argument("--config", action="config", help="a YAML file of these flags")
    return parser


def _compare(arguments: Sequence[str]) -> None:
    options, flags = compare_parser().parse_known_args(arguments)
    with waiting_for("Loading"):
        from lightning_vcppo.critic_lab.comparison import Split, compare_critics
        from lightning_vcppo.critic_lab.comparison_page import table
        from lightning_vcppo.critic_lab.judging import ActorOptions
        from lightning_vcppo.critic_lab.remarks import of_comparison
        from lightning_vcppo.critic_lab.specs import read_specs
    specs = read_specs(options.critics, options.actor)
    # Report a wrong flag here and not in every fit.
    needed = [options.rollouts, f"--model={options.model}", f"--output={options.output}"]
    of_fit = fit_parser().parse_args([*needed, *flags])
    require_seed("--seed", of_fit.seed)
    of_actor = {name: getattr(options, name) for name in ACTOR_FLAGS}
    given = {name: value for name, value in of_actor.items() if value is not None}
    if given and options.actor is None:
        fail(f"--{next(iter(given))}: needs --actor, whose continuations it sets")
    if "lambdas" in given:
        given["lambdas"] = tuple(given["lambdas"])
    jobs = options.jobs or _jobs(len(specs))
    with waiting_for(f"Fitting {len(specs)} critics"):
        fits = compare_critics(
            options.rollouts,
            options.model,
            specs,
            options.output,
            jobs=jobs,
            split=Split(of_fit.held_out_share, of_fit.seed),
            drop_invalid=of_fit.drop_invalid,
            flags=flags,
            options=ActorOptions(options.actor, **given) if options.actor else None,
        )
    print(table(fits))
    for warning in of_comparison(fits):
        print(f"warning: {warning}")
    print(f"The page is {options.output / 'compare.html'}")


def compare_parser() -> argparse.ArgumentParser:
    """Return the parser of `vcppo critic compare`; unknown flags are passed to fit."""
    parser = OneLineArguments(
        "vcppo critic compare", description="Fit several critics and rank them."
    )
    parser.add_argument("rollouts", help="file, pattern or directory")
    parser.add_argument("--model", required=True, help="directory or hub id of the backbone")
    parser.add_argument(
        "--critics",
        nargs="+",
        required=True,
        metavar="SPEC",
        help="mse, huber, bounded, sigmoid, hl_gauss, side, answer, siblings, each also as "
        "NAME:key=value,...; or a YAML",
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write to")
    parser.add_argument(
        "--jobs", type=int, help="critics to fit at the same time; default: number of cores"
    )
    parser.add_argument(
        "--actor", help="directory or hub id of the rollouts' policy: continues held-out responses"
    )
    for name, (kind, text) in ACTOR_FLAGS.items():
        parser.add_argument(
            f"--{name}", type=kind, help=text, nargs="+" if name == "lambdas" else None
        )
    return parser


def _evaluate(arguments: Sequence[str]) -> None:
    options = evaluate_parser().parse_args(arguments)
    with waiting_for("Loading"):
        from lightning_vcppo.common.files import complete_file
        from lightning_vcppo.critic_lab.values import measure_critic
    with waiting_for("Reading values"):
        measures, reward_range = measure_critic(
            options.critic,
            options.rollouts,
            actor=options.actor,
            drop_invalid=options.drop_invalid,
        )
    ready, reasons = measures.verdict(reward_range)
    print(f"{measures.responses} responses to {measures.prompts} prompts")
    if _fitted_on(options.critic, options.rollouts):
        print(
            "The critic was fitted on a part of these responses, which flatters it; fit.json next "
            "to it has the measures on the held-out part"
        )
    print("\n".join(reasons))
    print("Verdict: " + ("ready for policy optimization" if ready else "not ready"))
    if options.output:
        result = {"ready": ready, "reasons": reasons, "measures": measures.as_json()}
        with complete_file(options.output) as file:
            json.dump(result, file, indent=1)


def _fitted_on(critic: str, rollouts: str) -> bool:
    """Return whether `vcppo critic fit` has fitted a critic on these rollouts."""
    fit = Path(critic).absolute().parent / "fit.json"
    if not fit.is_file():
        return False
    return (
        Path(json.loads(fit.read_text("utf-8"))["rollouts"]).resolve() == Path(rollouts).resolve()
    )


def evaluate_parser() -> OneLineArguments:
    """Return the parser of `vcppo critic evaluate`."""
    parser = OneLineArguments("vcppo critic evaluate", description="Evaluate a critic.")
    parser.add_argument("critic", help="directory or hub id")
    parser.add_argument("rollouts", help="file, pattern or directory")
    parser.add_argument("--actor", help="directory or hub id of the model that a side critic reads")
    parser.add_argument("--output", type=Path, help="also write the measures as JSON")
    parser.add_switch("--drop_invalid", "skip rows that cannot be read")
    return parser


def _jobs(critics: int) -> int:
    """Return the number of fits at the same time: one per core, or one in all with a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else min(critics, cores())
