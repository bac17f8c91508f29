"""Define the figures of a report, each with a text on what to look for.

The texts explain VC-PPO (arXiv 2503.01491); the healthy ranges are those of docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lightning_vcppo.report import drawing, positions
from lightning_vcppo.report.drawing import Spec
from lightning_vcppo.report.plotting import CURVES, DECAY_LAMBDAS, LOSS, R2, Curve
from lightning_vcppo.report.reading import Run
from lightning_vcppo.report.summary import last_length, reach


class Panel(NamedTuple):
    """A plot: its specification, and the position of its run if it belongs to a single one."""

    spec: Spec
    place: int | None = None


@dataclass(frozen=True)
class Figure:
    """Plots that belong together, or the reason why there are none.

    Attributes:
        key: Anchor of the figure in the page.
        title: Title.
        text: What to look for, and the healthy range.
        panels: The plots.
        facts: One line about each run.
        missing: Reason why there is no plot.
    """

    key: str
    title: str
    text: str
    panels: list[Panel]
    facts: list[str] = field(default_factory=list)
    missing: str = ""


@dataclass(frozen=True)
class Section:
    """Figures under one heading."""

    title: str
    figures: list[Figure]


def sections(runs: Sequence[Run]) -> list[Section]:
    """Return the figures of the runs; those without data say what is missing."""
    found = [
        Section("Results", list(_results(runs))),
        Section("The critic", list(_critic(runs))),
        Section("Along the response", list(_along_the_response(runs))),
        Section("The updates", list(_updates(runs))),
    ]
    return [section for section in found if section.figures]


def _results(runs: Sequence[Run]) -> Iterator[Figure]:
    if drawing.has(runs, "cold_start/loss"):
        yield _curve(
            runs,
            Curve("cold_start/loss", "Cold start", "loss (nats a token)"),
            "Cross-entropy of the worked solutions. It should fall and level off.",
        )
    yield _curve(
        runs,
        CURVES["accuracy"],
        "Lines are the responses sampled in training (faint: each rollout, strong: moving average);"
        " points are held-out problems with 95 % intervals. It should rise once the policy moves,"
        " and stay level while the critic is pretrained, because the policy is frozen then.",
        form=".0%",
        evaluations=True,
    )
    yield _curve(
        runs,
        CURVES["reward"],
        "The mean score of a rollout, shaping included; +1 right, -1 wrong. At either extreme"
        " nothing is left to learn from.",
    )
    yield _curve(
        runs,
        CURVES["response_length"],
        "Steady or rising is healthy. A fall by half is the signature of the collapse that the"
        " paper describes (5000 to 1100 tokens within 80 steps); accuracy follows it down.",
        form=".1f",
    )
    if drawing.has(runs, "rollout/response_characters"):
        yield _curve(
            runs,
            Curve(
                "rollout/response_characters",
                "Response length in characters",
                "mean characters of a response",
            ),
            "In place of tokens, which these dumps do not count.",
            form=".1f",
        )
    yield _curve(
        runs,
        Curve("rollout/truncation_rate", "Truncated responses", "share cut off at the limit"),
        "Below 10 % is healthy. Above 20 % the limit decides the reward rather than the answer.",
        form=".1%",
    )


def _critic(runs: Sequence[Run]) -> Iterator[Figure]:
    yield _curve(
        runs,
        CURVES["explained_variance"],
        "The share of the variance of the returns that V predicts, on rollouts that it has not"
        " learned from: 1 is all of it, 0 is no better than predicting the mean. It does not show a"
        " constant bias of V. Our rule of thumb is above 0.3 when the policy starts to move. It may"
        " fall later: a policy that makes fewer mistakes leaves less to predict.",
    )
    yield _curve(
        runs,
        CURVES["r2"],
        "1 - mean((R - V)²) / Var(R): the explained variance minus what a constant bias of V costs."
        " If it is far below the explained variance, V is not in the range of the returns, and a"
        " policy trained with it may collapse. Below 0 the mean return would be a better guess than"
        " V.",
    )
    for ending, title, label, text in (
        (
            "loss",
            "Value pretraining: loss",
            LOSS,
            "Falls fast while V moves into the range of the returns, then slowly while it learns"
            " which tokens carry value. The paper finds that the slow part matters. If the loss on"
            " held-out rollouts rises again, the critic overfits.",
        ),
        (
            "r2",
            "Value pretraining: R²",
            R2,
            "On rollouts of the frozen policy. It rises, then levels off: the critic is ready, and"
            " the phase ends. The critic with the highest R² on held-out responses is kept.",
        ),
        (
            "explained_variance",
            "Value pretraining: explained variance",
            "explained variance",
            "As R², without the cost of a constant bias: the two meet once V is in the range of the"
            " returns.",
        ),
    ):
        plot = drawing.pretraining(runs, ending, label)
        missing = "" if plot else "no run has a measure of value pretraining"
        yield Figure(f"pretraining_{ending}", title, text, _panels(plot), missing=missing)
    plot = drawing.calibration(runs)
    yield Figure(
        "calibration",
        "Calibration of the critic",
        "Prompts grouped by the pass rate that V(prompt) predicts, against the observed pass rate"
        " of their responses. Large points are many prompts; pale ones are as the policy starts. On"
        " the diagonal V predicts the outcome. A critic that cannot tell hard prompts from easy"
        " ones has a single point. The calibration error should be below 0.1, the rank correlation"
        " above 0.2.",
        _panels(plot),
        _calibration_facts(runs),
        "" if plot else "no diagnostics/calibration.jsonl",
    )


def _along_the_response(runs: Sequence[Run]) -> Iterator[Figure]:
    for quantity, title, label, text in (
        (
            "value",
            "Value by position",
            "mean V",
            "Nearly level is healthy. A steep rise from the first to the last token is the"
            " initialisation bias of a critic that has not been pretrained (the paper: -1.5 to"
            " -0.6): only the end is rewarded, so the mean of V has no reason to drift.",
        ),
        (
            "advantage",
            "Advantage by position",
            "mean advantage",
            "Near 0 everywhere is healthy. If advantages are above 0 for early tokens and below 0"
            " for late ones, early tokens are pushed up, late ones down, and responses shrink (the"
            " paper: +0.7 to -0.5).",
        ),
        (
            "bias",
            "Bias by position",
            "mean V - R",
            "The amount by which V is too high, on average. Near 0 everywhere is healthy; a slope"
            " means that V drifts along a response although the outcome does not.",
        ),
    ):
        panels = [
            Panel(plot, place) for place, plot in positions.by_position(runs, quantity, label)
        ]
        text = f"Pale lines are early in the run, strong ones late. {text}"
        missing = _no_values(runs, panels, "advantages" if quantity == "advantage" else "values")
        yield Figure(f"{quantity}_by_position", title, text, panels, missing=missing)
    if any(run.trainer for run in runs):
        panels = [
            Panel(plot, place)
            for place, plot in positions.by_position(
                runs, "accuracy_by_length", "share of right answers", x=positions.LENGTHS
            )
        ]
        text = (
            "Responses of a step, from the shortest to the longest. A steep fall to the right means"
            " that long responses fail, often because they are cut off; the reward then favours"
            " short ones."
        )
        yield Figure("accuracy_by_length", "Accuracy by length", text, panels)
    plot = positions.right_and_wrong(runs)
    yield Figure(
        "right_and_wrong",
        "Value of right and wrong responses",
        "V along responses that turned out right (solid) and wrong (dotted), in the last quarter of"
        " the run. Where the lines part, the critic predicts the outcome of a response. Lines that"
        " stay together up to the end mean that it judges only the problem.",
        _panels(plot),
        missing=_no_values(runs, _panels(plot)),
    )
    plot = positions.reward_decay(runs)
    yield Figure(
        "reward_decay",
        "Reach of the reward",
        "The weight of the terminal reward by the number of tokens before the end, for the lambda"
        " of the actor (solid), of the critic's targets (dashed) and some others (grey). The point"
        " is the first token of a response of mean length. The critic's share should be 100 %, the"
        " actor's should not be zero: 0.95 over 100 tokens leaves 0.6 %.",
        _panels(plot),
        _reach_facts(runs),
        "" if plot else "neither config.yaml nor diagnostics/ names lambdas",
    )


def _updates(runs: Sequence[Run]) -> Iterator[Figure]:
    for curve, text, form in (
        (
            Curve("policy/entropy", "Entropy", "nats a token"),
            "The uncertainty of the policy. A slow fall is healthy. If it is near 0 and accuracy"
            " does not rise, no exploration is left.",
            ".3f",
        ),
        (
            Curve("policy/approx_kl", "Size of an update", "KL (nats a token)"),
            "How far the updates of one rollout move the policy. 0 to 0.05 is healthy; above 0.1"
            " they are too large for the data.",
            ".2e",
        ),
    ):
        if drawing.has(runs, curve.key):
            yield _curve(runs, curve, text, form=form)


def _curve(
    runs: Sequence[Run], curve: Curve, text: str, *, form: str = ".3f", evaluations: bool = False
) -> Figure:
    key, title, label = curve
    anchor = key.split("/")[1]
    if not drawing.has(runs, key):
        return Figure(anchor, title, text, [], missing=f"{key} has no values")
    return Figure(anchor, title, text, [Panel(drawing.curves(runs, key, label, form, evaluations))])


def _panels(plot: Spec | None) -> list[Panel]:
    return [Panel(plot)] if plot else []


def _no_values(runs: Sequence[Run], panels: Sequence[Panel], what: str = "values") -> str:
    if panels:
        return ""
    dumped = all(run.trainer for run in runs)
    return f"the dumps have no {what}" if dumped else "no diagnostics/positions.jsonl"


def _calibration_facts(runs: Sequence[Run]) -> list[str]:
    facts = []
    for run in runs:
        last = run.calibrations[-1] if run.calibrations else {}
        parts = [
            f"{title} {round(last[key], 2) + 0.0:.2f}"  # + 0.0 removes the minus sign of zero
            for key, title in (
                ("ece", "expected calibration error"),
                ("brier", "Brier score"),
                ("rank_correlation", "rank correlation"),
            )
            if last.get(key) is not None
        ]
        if parts:
            facts.append(f"{run.name}: {', '.join(parts)}")
    return facts


def _reach_facts(runs: Sequence[Run]) -> list[str]:
    facts = []
    for run in runs:
        if found := reach(run):
            actor, critic = found.shares
            facts.append(
                f"{run.name}: {actor:.2%} of the reward reach the first of {found.length:.0f}"
                f" tokens with the actor's lambda, {critic:.2%} with the critic's"
            )
        elif run.trainer and (length := last_length(run)):
            shares = (f"{lam ** (length - 1):.2%} with {lam:g}" for lam in DECAY_LAMBDAS)
            facts.append(
                f"{run.name}: of the reward, {', '.join(shares)} reach the first of {length:.0f}"
                " tokens; dumps do not record their lambda (with 1 nothing is lost)"
            )
    return facts
