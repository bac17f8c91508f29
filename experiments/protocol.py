"""Run an experiment by its protocol: `python -m experiments.dose_response --seeds 0 1`.

A protocol is the file `protocol.yaml` in the directory of the experiment. It is committed before
the first run of a reported seed, and states the comparisons, the predictions, and the results that
would falsify them. Each row of the results names the commit at which it was measured. `runner`
describes the runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from experiments.ablation_report import draw_curves
from experiments.protocol_report import report
from experiments.runner import Arm, Results, run
from experiments.runs import curves_of, read_rows
from experiments.search import search

ROOT = Path(__file__).parents[1]
FIELDS = (
    *("question", "setting", "seeds", "pilot_seeds", "arms", "outcomes", "contrasts", "gates"),
    *("predictions", "falsified_by", "decision"),
)


@dataclass(frozen=True)
class Contrast:
    """A paired difference that the protocol names.

    Attributes:
        arm: Name of the arm.
        reference: Name of the arm that is subtracted.
        primary: Whether it has a p value, which is corrected for all primary contrasts; exploratory
            contrasts have none.
    """

    arm: str
    reference: str
    primary: bool


@dataclass(frozen=True)
class Protocol:
    """The plan of an experiment, fixed before its runs.

    Attributes:
        name: Name of the directory.
        settings: Directory with the configs of starts and runs, by task; the name is empty in an
            experiment with one task.
        seeds: Reported seeds, all or none.
        pilot_seeds: Seeds on which settings may be tried.
        arms: Arms in the order of their runs.
        contrasts: Contrasts, primary ones first.
        to_be_set: Settings that the pilot must fix before a reported seed may run.
        search: Seed, rates (`actor_lr`) and `fewer_rollouts` of the search for learning rates.
    """

    name: str
    settings: Mapping[str, Path]
    seeds: tuple[int, ...]
    pilot_seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    to_be_set: tuple[str, ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> Path:
        """Directory of the first task."""
        return next(iter(self.settings.values()))

    def pick(self, names: Sequence[str]) -> list[Arm]:
        """Return the arms of the given names, or all arms without names.

        Raises:
            ValueError: If there is no arm of that name.
        """
        known = {arm.name: arm for arm in self.arms}
        for name in names:
            if name not in known:
                raise ValueError(f"--arms: {name!r} is not one of {', '.join(known)}")
        return [known[name] for name in names] or list(self.arms)

    def check_seeds(self, seeds: Sequence[int]) -> None:
        """Check that the protocol has the seeds, and is complete if they are reported.

        Raises:
            ValueError: If a seed is neither reported nor of the pilot, or if it is reported and the
                pilot has not fixed all settings.
        """
        for seed in seeds:
            if seed not in self.seeds + self.pilot_seeds:
                expected = ", ".join(map(str, self.seeds + self.pilot_seeds))
                raise ValueError(f"--seeds: {seed} is not in the protocol, which has {expected}")
            if seed in self.seeds and self.to_be_set:
                raise ValueError(
                    f"--seeds: {seed} is reported, and the protocol is not complete; "
                    f"the pilot must set {'; '.join(self.to_be_set)}"
                )


def read_protocol(name: str) -> Protocol:
    """Return the protocol of an experiment.

    Raises:
        ValueError: If a required field is missing, or an arm is unknown.
    """
    path = Path(__file__).parent / name / "protocol.yaml"
    text: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if missing := [field for field in FIELDS if not text.get(field)]:
        raise ValueError(f"{path}: a protocol must have {', '.join(missing)}")
    given = text["setting"] if isinstance(text["setting"], dict) else {"": text["setting"]}
    settings = {task: ROOT / place for task, place in given.items()}
    arms = tuple(
        Arm(arm, **{k: v for k, v in fields.items() if k != "task"}, setting=setting)
        for arm, fields in text["arms"].items()
        for setting in [settings[fields.get("task", "")]]
    )
    contrasts = []
    for kind, pairs in text["contrasts"].items():
        for arm, reference in pairs:
            if unknown := {arm, reference} - text["arms"].keys():
                raise ValueError(f"{path}: contrasts: no arm is called {unknown.pop()!r}")
            contrasts.append(Contrast(arm, reference, kind == "primary"))
    seeds, pilot_seeds = (tuple(text[field]) for field in ("seeds", "pilot_seeds"))
    to_be_set = tuple(text.get("to_be_set") or ())
    rates = text.get("search") or {}
    return Protocol(
        name, settings, seeds, pilot_seeds, arms, tuple(contrasts), to_be_set, search=rates
    )


def search_rates(protocol: Protocol, arms: Sequence[Arm], results: Results, runs: Path) -> None:
    """Search the learning rates of arms as the protocol says.

    Raises:
        ValueError: If the protocol has no search, or its seed is not one of the pilot.
    """
    settings = protocol.search
    if settings.get("seed") not in protocol.pilot_seeds:
        raise ValueError("--search: expected a protocol with `search` on a seed of the pilot")
    shorter = [arm.shorter(settings["fewer_rollouts"]) for arm in arms]
    search(shorter, settings["actor_lr"], settings["seed"], results, runs)


def main(name: str) -> None:
    """Read the command line of an experiment and do the missing runs.

    Args:
        name: Name of the experiment's directory.
    """
    parser = argparse.ArgumentParser(
        f"python -m experiments.{name}", description="Do the missing runs of the protocol."
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="default: those of the protocol")
    parser.add_argument("--arms", nargs="+", default=[], help="default: all")
    parser.add_argument("--results", type=Path, help="default: docs/experiments/NAME[_pilot].csv")
    parser.add_argument("--runs", type=Path, default=Path("runs") / name, help="directory of runs")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--report", action="store_true", help="print a report of the results")
    parser.add_argument("--figure", type=Path, help="with --report: image of the curves to write")
    parser.add_argument("--actor_lr", nargs="+", type=float, help="rates to try, only in pilots")
    parser.add_argument("--search", action="store_true", help="search the rates of the arms")
    arguments = parser.parse_args()
    stem = f"{name}_pilot" if arguments.search else name
    results = Results(arguments.results or ROOT / "docs/experiments" / f"{stem}.csv")
    try:
        protocol = read_protocol(name)
        if arguments.report:
            curves = read_rows(curves_of(results.path))
            pairs = [(c.arm, c.reference, c.primary) for c in protocol.contrasts]
            names = [arm.name for arm in protocol.arms]
            print(report(results.rows(), curves, names, protocol.seeds, pairs))
            if arguments.figure:
                draw_curves(curves, names, arguments.figure, over="policy_rollout")
            return
        if arguments.search:
            search_rates(protocol, protocol.pick(arguments.arms), results, arguments.runs)
            return
        seeds = arguments.seeds or list(protocol.seeds)
        protocol.check_seeds(seeds)
        arms = protocol.pick(arguments.arms)
        if arguments.actor_lr:
            if set(seeds) & set(protocol.seeds):
                raise ValueError("--actor_lr: expected only seeds of the pilot")
            arms = [arm.at(lr) for arm in arms for lr in arguments.actor_lr]
        run(arms, seeds, results, arguments.runs, arguments.processes)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
