"""Judge a recommended lambda by runs, with the rules of `protocol.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from experiments.ablation_report import Estimate, paired
from lightning_vcppo.comparison.statistics import holm

ALPHA = 0.05
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Verdict:
    """The test of one task.

    Attributes:
        outcome: "held", "falsified", "inconclusive", "nothing to test" or "unfinished".
        best: Lambda with the highest mean accuracy; None if runs are missing.
        difference: Accuracy of the best minus that of the recommended lambda; None if runs are
            missing, or nothing is recommended.
        separated: Pairs of lambdas that the sweep separates.
    """

    outcome: str
    best: float | None = None
    difference: Estimate | None = None
    separated: tuple[tuple[float, float], ...] = ()

    def line(self, task: str, recommended: float | None) -> str:
        """Return the verdict in one line."""
        if self.best is None:
            return f"{task}: unfinished, no verdict before all runs are complete."
        pairs = ", ".join(f"{a:g} and {b:g}" for a, b in self.separated) or "no two lambdas"
        text = f"{task}: best {self.best:g}; the sweep separates {pairs}; "
        if self.difference is None:
            return f"{text}no lambda was recommended. {self.outcome.capitalize()}."
        difference = self.difference.percent("+")
        text += f"recommended {recommended:g}, best minus recommended {difference} points. "
        return text + f"{self.outcome.capitalize()}."


def verdict(
    accuracy: Mapping[float, BySeed], recommended: float | None, seeds: tuple[int, ...]
) -> Verdict:
    """Compare the best lambda of a task with the recommended one.

    Args:
        accuracy: Accuracy of the last policy, by lambda and seed.
        recommended: The recommended lambda; None if it was not decided.
        seeds: Seeds of the protocol.

    Raises:
        ValueError: If no arm has the recommended lambda.
    """
    if any(set(of_seed) != set(seeds) for of_seed in accuracy.values()) or not accuracy:
        return Verdict("unfinished")
    best = max(accuracy, key=lambda lam: fmean(accuracy[lam].values()))
    pairs = [*combinations(sorted(accuracy), 2)]
    corrected = holm([paired(accuracy[a], accuracy[b]).p for a, b in pairs])
    separated = tuple(pair for pair, p in zip(pairs, corrected, strict=True) if p < ALPHA)
    if recommended is None:
        return Verdict("nothing to test", best, None, separated)
    if recommended not in accuracy:
        raise ValueError(f"no arm has the recommended lambda {recommended:g}")
    if best == recommended:
        difference = Estimate(0.0, 0.0)
    else:
        difference = paired(accuracy[best], accuracy[recommended])
    if not separated:
        return Verdict("inconclusive", best, difference, separated)
    half = 0.0 if math.isnan(difference.half_width) else difference.half_width
    is_worse = difference.mean - half > 0
    return Verdict("falsified" if is_worse else "held", best, difference, separated)
