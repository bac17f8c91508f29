"""Say what measures do not show: critics that are not fitted, and ranks that mean nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_vcppo.algorithm.value_pretraining import Progress
from lightning_vcppo.critic_lab.measures import EXPLAINS, READY, Measures

Fit = Mapping[str, Any]


def of_fit(measures: Measures, progress: Progress, updates: int, lr: float) -> list[str]:
    """Return a line if the fit has not given a useful critic, with the flags to change.

    Args:
        measures: Measures of the best critic.
        progress: State of the stop rule at the end.
        updates: Number of updates in all passes.
        lr: Learning rate.
    """
    if measures.r2 >= READY["r2"]:
        return []
    little = "little" if measures.r2 >= EXPLAINS else "hardly anything"
    if progress.best_rollout == progress.rollouts:
        advice = (
            "it was still rising: try a higher --critic_optimizer.lr, or more passes (--patience, "
            "--max_epochs)"
        )
    else:
        advice = (
            f"it was highest after pass {progress.best_rollout}: try another "
            "--critic_optimizer.lr, or more rollouts"
        )
    return [
        f"V explains {little}: held-out R^2 {measures.r2:.3f} after {progress.rollouts} passes "
        f"({updates} updates) with --critic_optimizer.lr={lr:g}; {advice}"
    ]


def explains(fit: Fit) -> bool:
    """Return whether the held-out R^2 of a critic is distinguishable from 0.

    Args:
        fit: Contents of its `fit.json`; those of earlier versions have no interval.
    """
    r2, interval = fit["measures"]["r2"], fit["measures"].get("r2_interval")
    return r2 is not None and r2 >= EXPLAINS and (interval is None or interval[0] > 0)


def of_comparison(fits: Sequence[Fit]) -> list[str]:
    """Return the reasons to doubt a comparison, one line for each."""
    return list(_of_comparison(fits))


def _of_comparison(fits: Sequence[Fit]) -> Iterator[str]:
    if not any(map(explains, fits)):
        prompts = fits[0]["measures"]["prompts"]
        yield (
            "no ranking: no critic has an R^2 distinguishable from 0, which is at least "
            f"{EXPLAINS} with a 95 % interval above 0 over the {prompts} held-out prompts; critics "
            "are in the order given, and another seed may turn any difference between them"
        )
    for fit in fits:
        yield from (f"{fit['name']}: {warning}" for warning in fit.get("warnings", ()))


def headline(fits: Sequence[Fit]) -> str:
    """Return the result in a line; a critic that is no better than the mean is not a choice."""
    best, r2 = fits[0], fits[0]["measures"]["r2"]
    if not any(map(explains, fits)):
        return "No ranking: no critic is distinguishable from the mean reward"
    if r2 < READY["r2"]:
        return f"{best['name']} is first, but its R^2 of {r2:.3f} is below {READY['r2']}: not ready"
    return f"{best['name']}, with a held-out R^2 of {r2:.3f}"
