"""Search the learning rate of each arm on a seed of the pilot: `--search`.

The protocol names seed and rates. An arm starts with the rate in the middle, then tries the
neighbours of its best rate, the higher one first, until both have been tried. So a rate that lies
beyond a worse one is not run: accuracy is taken to have one maximum. The score of a run is its mean
accuracy over the last rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from experiments.protocol_report import LAST
from experiments.runner import Arm, Results, run
from experiments.runs import curves_of, read_rows


def next_rate(rates: Sequence[float], scores: Mapping[float, float]) -> float | None:
    """Return the rate to try next, or None at the end of the search.

    Args:
        rates: Rates in ascending order.
        scores: Scores of the rates that were tried, in the order of their runs; of equal ones the
            first is the best.
    """
    if not scores:
        return rates[len(rates) // 2]
    best = rates.index(max(scores, key=lambda rate: scores[rate]))
    for place in (best + 1, best - 1):
        if 0 <= place < len(rates) and rates[place] not in scores:
            return rates[place]
    return None


def scores_of(arm: Arm, seed: int, results: Results) -> dict[float, float]:
    """Return the scores of an arm's finished runs by learning rate, in the order of the runs."""
    accuracies: dict[float, list[float]] = {}
    for point in read_rows(curves_of(results.path)):
        rate = float(point["actor_lr"])
        if (point["arm"], int(point["seed"])) == (arm.name, seed) and point["policy_rollout"]:
            accuracies.setdefault(rate, []).append(float(point["accuracy"]))
    return {
        rate: fmean(of_run[-LAST:])
        for rate, of_run in accuracies.items()
        if results.holds(arm.at(rate), seed)
    }


def search(
    arms: Sequence[Arm], rates: Sequence[float], seed: int, results: Results, runs: Path
) -> dict[str, float]:
    """Do the missing runs of the search and return the best rate of each arm.

    All arms do their first run before one of them does its second, so that an interrupted search
    has something of each.
    """
    rates = sorted(rates)
    while todo := [
        arm.at(rate)
        for arm in arms
        if (rate := next_rate(rates, scores_of(arm, seed, results))) is not None
    ]:
        run(todo, [seed], results, runs, processes=1)
    best = {}
    for arm in arms:
        scores = scores_of(arm, seed, results)
        best[arm.name] = max(scores, key=lambda rate: scores[rate])
        tried = ", ".join(f"{rate:g}: {100 * score:.1f} %" for rate, score in scores.items())
        print(f"{arm.name}: {best[arm.name]:g} ({tried})", flush=True)
    return best
