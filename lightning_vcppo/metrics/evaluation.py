"""Compute avg@k, pass@k and maj@k of an evaluation, with confidence intervals.

1. Each problem gets a score for every rate (`problem_scores`); a rate is their mean over problems.
2. An interval is a bootstrap over problems, or exact if all scores are equal, see
   `bootstrap_intervals`.
3. Rows with the same text are one problem: a file with each problem 32 times has 32 samples of
   each, not 32 times as many problems, because the bootstrap draws problems.
4. Tables by problem and by group (year, level, subject, or source) break the results down.

Shapes: P problems, M rates, R resamples.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import torch
from torch import Tensor

from lightning_vcppo.common.shares import share_interval
from lightning_vcppo.rewards.answers import AnswerKind, kind_of
from lightning_vcppo.rewards.equality import group_equal
from lightning_vcppo.rollouts.records import ResponseRecord

LEVEL = 0.95
RESAMPLES = 2000

Cell = str | int | float | None

PROBLEM_COLUMNS = (
    "set",
    "index",
    "source",
    "year",
    "answer",
    "k",
    "accuracy",
    "maj_at_k",
    "response_length",
    "truncation_rate",
)
GROUP_COLUMNS = (
    "set",
    "by",
    "group",
    "problems",
    "k",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "pass_at_k",
    "maj_at_k",
    "response_length",
    "truncation_rate",
)


GROUPINGS = ("year", "level", "subject")
"""Fields by which problems are grouped if their data have them."""
MAX_GROUPS = 50
"""Largest number of levels or subjects of a column that is used as a grouping."""
MAX_LOGGED_GROUPS = 20
"""Largest number of groups of a grouping that is logged; larger ones are only in the table."""


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate, without bias, the probability that at least one of k samples is correct.

    It is 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, equation 1).

    Args:
        num_samples: Number n of responses to the problem.
        num_correct: Number c of correct responses among them.
        k: Size of the subset, at most n.

    Raises:
        ValueError: If not 0 <= c <= n or not 1 <= k <= n.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct: expected 0..{num_samples}, got {num_correct}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k: expected 1..{num_samples} (the samples drawn), got {k}")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_vote(
    predictions: Sequence[str | None], correct: Sequence[bool], kind: AnswerKind | None = None
) -> float:
    """Return the probability that the most frequent answer is correct, ties broken at random.

    Correct responses vote together, however they write the answer, and so do wrong ones with equal
    answers; wrong ones without an answer do not vote.

    Args:
        predictions: Answers of the k samples of one problem; None if a sample has none.
        correct: Whether each sample is correct.
        kind: Kind of comparison; None compares answers as math.
    """
    num_right = sum(correct)
    if num_right == 0:
        return 0.0
    wrong = tuple(p for p, is_right in zip(predictions, correct, strict=True) if not is_right)
    rivals = [votes for votes in _votes(wrong, kind) if votes >= num_right]
    return 0.0 if any(votes > num_right for votes in rivals) else 1 / (1 + len(rivals))


@lru_cache(maxsize=2**12)  # the set and each of its groups need the same problems
def _votes(predictions: tuple[str | None, ...], kind: AnswerKind | None) -> tuple[int, ...]:
    """Count the votes of each answer."""
    numbers = group_equal(predictions, kind)
    return tuple(Counter(number for number in numbers if number is not None).values())


def bootstrap_intervals(
    scores_PM: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Compute percentile-bootstrap intervals of the mean scores (Efron, 1979).

    P problems are drawn with replacement, each with all its responses. So an interval covers the
    choice of problems and the sampling of responses, but not the training run: another seed gives
    another policy. All rates use the same draws. With few problems the interval is somewhat too
    narrow. If every problem has the same score, draws do not differ, although 0 of 30 correct does
    not mean that the next one is wrong: the interval is then the exact one of that share.

    Args:
        scores_PM: Score of each problem for each rate, in [0, 1].
        level: Nominal probability that an interval contains the true mean.
        resamples: Number of draws R.
        seed: Seed of the draws; the same seed gives the same interval.

    Returns:
        Lower and upper ends, (M,) each.

    Raises:
        ValueError: If there are no problems.
    """
    problems = len(scores_PM)
    if problems == 0:
        raise ValueError("an interval needs at least one problem; got none")
    generator = torch.Generator().manual_seed(seed)
    drawn_RP = torch.randint(problems, (resamples, problems), generator=generator)
    counts_RP = torch.zeros(resamples, problems, dtype=scores_PM.dtype)
    counts_RP.scatter_add_(1, drawn_RP, torch.ones_like(counts_RP))
    means_RM = counts_RP @ scores_PM / problems
    tail = (1 - level) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=scores_PM.dtype)
    low_M, high_M = means_RM.quantile(ends, dim=0)
    for m in (scores_PM == scores_PM[0]).all(0).nonzero()[:, 0].tolist():
        share = float(scores_PM[0, m])
        low_M[m], high_M[m] = share_interval(share * problems, problems, level)
    return low_M, high_M


@dataclass(frozen=True)
class Estimate:
    """A rate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EvaluationSummary:
    """The numbers of an evaluation.

    Attributes:
        problems: Number of distinct problems.
        k: Number of samples per problem (the smallest, if they differ).
        rates: Means over problems. `accuracy` is avg@k, the share of correct samples; `pass_at_2`,
            `pass_at_4`, ... below k and `pass_at_k` are the shares of problems that at least one of
            so many samples solves; `maj_at_k` is the share that the majority of samples solves.
        response_length: Mean length in tokens, over responses.
        truncation_rate: Share of responses cut off at the limit.
    """

    problems: int
    k: int
    rates: dict[str, Estimate]
    response_length: float
    truncation_rate: float

    def metrics(self) -> dict[str, float]:
        """Return all numbers by name; `accuracy_low` and `accuracy_high` are an interval's ends."""
        numbers = {"problems": float(self.problems), "k": float(self.k)}
        for name, rate in self.rates.items():
            numbers |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return numbers | {
            "response_length": self.response_length,
            "truncation_rate": self.truncation_rate,
        }


def summarize(records: Sequence[ResponseRecord]) -> EvaluationSummary:
    """Compute the numbers of an evaluation.

    Args:
        records: All samples of all problems of one set, each sample once.

    Raises:
        ValueError: If there are no records.
    """
    if not records:
        raise ValueError("an evaluation needs at least one response; got none")
    groups = by_problem(records)
    k = min(map(len, groups))
    names, scores_PM = problem_scores(groups, k)
    low_M, high_M = bootstrap_intervals(scores_PM)
    ends = zip(scores_PM.mean(0).tolist(), low_M.tolist(), high_M.tolist(), strict=True)
    return EvaluationSummary(
        problems=len(groups),
        k=k,
        rates={name: Estimate(*numbers) for name, numbers in zip(names, ends, strict=True)},
        response_length=fmean(record.length for record in records),
        truncation_rate=fmean(not record.finished for record in records),
    )


def problem_scores(groups: Sequence[Sequence[ResponseRecord]], k: int) -> tuple[list[str], Tensor]:
    """Score each problem for each rate.

    Args:
        groups: Samples of each of P problems.
        k: Number of samples that every problem has.

    Returns:
        Names of the M rates and the float64 scores_PM.
    """
    subsets = {f"pass_at_{m}": m for m in _powers_of_two_below(k)} | {"pass_at_k": k}
    rows = []
    for group in groups:
        n, c = len(group), sum(record.correct for record in group)
        majority = majority_vote(
            [r.prediction for r in group],
            [r.correct for r in group],
            kind_of(group[0].answer, group[0].answer_kind),
        )
        rows.append([c / n, *(pass_at_k(n, c, m) for m in subsets.values()), majority])
    return ["accuracy", *subsets, "maj_at_k"], torch.tensor(rows, dtype=torch.float64)


def by_set(records: Iterable[ResponseRecord]) -> dict[str, list[ResponseRecord]]:
    """Split records by the name of their evaluation set, in the order of appearance."""
    parts: dict[str, list[ResponseRecord]] = defaultdict(list)
    for record in records:
        parts[record.evaluation_set].append(record)
    return dict(parts)


def problem_table(records: Sequence[ResponseRecord]) -> list[list[Cell]]:
    """Return a row of `PROBLEM_COLUMNS` for each problem of one set."""
    groups = by_problem(records)
    names, scores_PM = problem_scores(groups, min(map(len, groups)))
    accuracy_P, majority_P = (
        scores_PM[:, names.index(name)].tolist() for name in ("accuracy", "maj_at_k")
    )
    return [
        [
            group[0].evaluation_set,
            group[0].index,
            group[0].source,
            group[0].year,
            group[0].answer,
            len(group),
            accuracy,
            majority,
            fmean(record.length for record in group),
            fmean(not record.finished for record in group),
        ]
        for group, accuracy, majority in zip(groups, accuracy_P, majority_P, strict=True)
    ]


def group_table(records: Sequence[ResponseRecord]) -> list[list[Cell]]:
    """Return a row of `GROUP_COLUMNS` for each year, level and subject of one set, in order.

    Problems that have none of these are grouped by their source: file, data set or family.
    """
    rows: list[list[Cell]] = []
    for (by, name), of_group in _grouped(records).items():
        summary = summarize(of_group)
        numbers = summary.metrics()
        cells: list[Cell] = [numbers[column] for column in GROUP_COLUMNS[5:]]
        rows.append([of_group[0].evaluation_set, by, name, summary.problems, summary.k, *cells])
    return rows


def shown_groups(rows: Sequence[Sequence[Cell]]) -> list[Sequence[Cell]]:
    """Return the rows of a group table that are logged and printed.

    These are the years, levels and subjects, where there are several but no more than
    `MAX_LOGGED_GROUPS`.

    Args:
        rows: The group table of one set.
    """
    counts = Counter(by for _, by, *_ in rows)
    return [row for row in rows if row[1] in GROUPINGS and 2 <= counts[row[1]] <= MAX_LOGGED_GROUPS]


def group_metrics(rows: Sequence[Sequence[Cell]]) -> dict[str, float]:
    """Return the accuracies of a set's shown groups by name, such as `by_level/5`.

    Args:
        rows: The group table of one set.
    """
    place = GROUP_COLUMNS.index("accuracy")
    return {
        f"by_{by}/{re.sub('[^a-z0-9]+', '_', str(name).lower()).strip('_') or 'other'}": float(
            row[place] or 0
        )
        for row in shown_groups(rows)
        for _, by, name, *_ in (row,)
    }


def _grouped(
    records: Iterable[ResponseRecord],
) -> dict[tuple[str, str], list[ResponseRecord]]:
    """Split records by (grouping, group); a record may be in several groups."""
    groups: dict[tuple[str, str], list[ResponseRecord]] = defaultdict(list)
    for record in records:
        named = [(by, str(v)) for by in GROUPINGS if (v := getattr(record, by)) is not None]
        source = record.source.rpartition(":")[0] or record.source  # "file.jsonl:12", "sum"
        for group in named or [("source", source)]:
            groups[group].append(record)
    counts = Counter(by for by, _ in groups)
    kept = [
        group
        for group in groups
        if group[0] in ("year", "source") or counts[group[0]] <= MAX_GROUPS
    ]
    return {group: groups[group] for group in sorted(kept, key=_in_order)}


def _in_order(group: tuple[str, str]) -> tuple[int, float, str]:
    """Return a sort key: by grouping, then numbers by value, then words."""
    by, name = group
    number = float(name) if re.fullmatch(r"\d+(\.\d+)?", name) else math.inf
    return (*GROUPINGS, "source").index(by), number, name


def by_problem(records: Iterable[ResponseRecord]) -> list[list[ResponseRecord]]:
    """Group the records of one set by the text of their problem, whatever their rows.

    White space makes no difference. Problems without a text are distinguished by their row.
    """
    groups: dict[str | int, list[ResponseRecord]] = defaultdict(list)
    for record in records:
        groups[" ".join(record.problem.split()) or record.index].append(record)
    return list(groups.values())


def _powers_of_two_below(k: int) -> list[int]:
    return [2**i for i in range(1, k.bit_length()) if 2**i < k]
