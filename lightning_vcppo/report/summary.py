"""Summarise a run: headline numbers, profiles by position, the reach of the reward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lightning_vcppo.report import plotting
from lightning_vcppo.report.reading import DECILES, Run

MAX_STAGES = 4
"""Largest number of stages of a run, which are the lines of a profile plot."""
LAST_PART = 4
"""Numbers about the end of a run are means over its last 1 / LAST_PART of rollouts."""


@dataclass(frozen=True)
class Change:
    """A number before and after training, and the data on which it was measured."""

    before: float
    after: float
    where: str


@dataclass(frozen=True)
class Headline:
    """The numbers at the top of the page; None if the run has not measured it.

    Attributes:
        accuracy: Accuracy on held-out problems, otherwise on the first and last rollouts.
        interval: 95 % interval of the accuracy after training, if it is on held-out problems.
        explained_variance: Explained variance of the critic, on the first rollout that the policy
            learns from.
        length: Mean tokens of a response, in the first and last tenth of the rollouts.
        rollouts: Rollouts done.
        pretraining: Number of them that were value pretraining.
    """

    accuracy: Change | None
    interval: tuple[float, float] | None
    explained_variance: float | None
    length: Change | None
    rollouts: int
    pretraining: int


def headline(run: Run) -> Headline:
    """Return the headline numbers of a run."""
    accuracy, interval = _held_out_accuracy(run)
    policy = [
        value
        for step, value in zip(*run.curve("critic/explained_variance"), strict=True)
        if step > run.policy_start
    ]
    return Headline(
        accuracy=accuracy or _ends(run, "rollout/accuracy", "training rollouts"),
        interval=interval,
        explained_variance=policy[0] if policy else None,
        length=_ends(run, "rollout/response_length", "training rollouts"),
        rollouts=max(run.rows),
        pretraining=len(run.pretraining_steps),
    )


def _held_out_accuracy(run: Run) -> tuple[Change | None, tuple[float, float] | None]:
    first_set = [e for e in run.evaluations if e.name == run.evaluations[0].name]
    before = [e for e in first_set if e.step <= run.policy_start]
    if not before or before[-1] is first_set[-1]:
        return None, None
    last = first_set[-1]
    where = f"{last.problems} {last.name.replace('_', '-')} problems"
    return Change(before[-1].accuracy, last.accuracy, where), last.interval


def _ends(run: Run, key: str, where: str) -> Change | None:
    """Compare the means of the first and the last tenth of a curve."""
    values = run.curve(key)[1]
    part = max(1, len(values) // 10)
    return Change(fmean(values[:part]), fmean(values[-part:]), where) if values else None


# Along the response


def profiles(run: Run, quantity: str, split: str = "all") -> list[tuple[int, list[float]]]:
    """Return a quantity's mean in each decile of the response, rollout by rollout.

    Args:
        run: The run.
        quantity: value, return, bias, advantage or entropy.
        split: Subset of responses: all, correct, incorrect, short or long.

    Returns:
        Rollouts, each with ten means, NaN for those that are missing.
    """
    found = []
    for row in run.positions:
        means = row["deciles"].get(quantity, {}).get(split)
        if means:
            found.append((int(row["rollout"]), [math.nan if m is None else m for m in means]))
    if found or split != "all":
        return found
    keys = [f"decay/{quantity}_decile_{i}" for i in range(DECILES)]
    return [
        (step, [row.get(key, math.nan) for key in keys])
        for step, row in run.rows.items()
        if any(key in row for key in keys)
    ]


def stages(run: Run, quantity: str, split: str = "all") -> list[tuple[str, list[float]]]:
    """Cut a run into stages of equal length, early to late; for the arguments see `profiles`.

    Returns:
        Label of each stage, and ten means over its rollouts.
    """
    found = profiles(run, quantity, split)
    cut = plotting.stages([rollout for rollout, _ in found], MAX_STAGES)
    return [(span, mean_profile(profile for _, profile in found[part])) for span, part in cut]


def mean_profile(rows: Iterable[Sequence[float]]) -> list[float]:
    """Return the mean of each column over the rows that have it, NaN if none has."""
    columns = ([x for x in column if not math.isnan(x)] for column in zip(*rows, strict=True))
    return [fmean(column) if column else math.nan for column in columns]


# Reach of the reward


@dataclass(frozen=True)
class Reach:
    """The reach of a run's terminal reward.

    Attributes:
        actor: gamma times lambda of the advantages.
        critic: gamma times lambda of the critic's targets.
        length: Mean tokens of a response at the end of the run.
    """

    actor: float
    critic: float
    length: float

    @property
    def shares(self) -> tuple[float, float]:
        """Weight of the reward at the first token, for the actor and for the critic."""
        return self.actor ** (self.length - 1), self.critic ** (self.length - 1)


def reach(run: Run) -> Reach | None:
    """Return the lambdas and the length of a run; None without a critic, or if they are unknown.

    The monitor's file has the lambdas that were used, the config has those that were set.
    """
    length = last_length(run)
    settings = run.setting("model.init_args.advantage", {})
    if length is None or settings.get("estimator", "gae") != "gae":
        return None
    if run.positions:
        row = run.positions[-1]
        gamma, actor, critic = (row.get(k) for k in ("gamma", "lambda_actor", "lambda_critic"))
    else:
        gamma, actor, critic = (settings.get(k) for k in ("gamma", "lambda_actor", "lambda_critic"))
        if alpha := settings.get("length_adaptive_alpha"):
            actor = min(1.0, max(0.0, 1 - 1 / (alpha * length)))
    if gamma is None or actor is None or critic is None:
        return None
    return Reach(gamma * actor, gamma * critic, length)


def last_length(run: Run) -> float | None:
    """Return the mean tokens of a response at the end of a run, if they are known."""
    lengths = run.curve("rollout/response_length")[1]
    last = lengths[-max(1, len(lengths) // LAST_PART) :]
    return max(1.0, fmean(last)) if last else None


# Calibration


def reliability(run: Run) -> list[tuple[str, list[tuple[float, float, int]]]]:
    """Return the reliability curve when the policy starts, after value pretraining, and at the end.

    Returns:
        The moment, and for each bin the predicted and observed pass rate and the number of prompts.
    """
    moments = [("as the policy starts", r) for r in run.calibrations[:-1] if _is_start(run, r)]
    moments += [("at the end", row) for row in run.calibrations[-1:]]
    return [
        (moment, [(b["predicted"], b["observed"], b["count"]) for b in row["bins"] if b["count"]])
        for moment, row in moments
    ]


def _is_start(run: Run, row: dict[str, Any]) -> bool:
    return bool(row["rollout"] == run.policy_start)
