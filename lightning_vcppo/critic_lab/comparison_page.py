"""Write the comparison of critics as a page, as tables, and as JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_vcppo.common.files import complete_file
from lightning_vcppo.critic_lab.remarks import explains, headline, of_comparison
from lightning_vcppo.critic_lab.truth import EIGHTHS, Recommendation
from lightning_vcppo.report.drawing import Spec, color, jsonable, plain, spec
from lightning_vcppo.report.page import offline_page

Fit = Mapping[str, Any]

COLUMNS: dict[str, Callable[[Fit], Any]] = {
    "critic": lambda fit: fit["name"],
    "r2": lambda fit: fit["measures"]["r2"],
    "explained_variance": lambda fit: fit["measures"]["explained_variance"],
    "bias": lambda fit: fit["measures"]["bias"],
    "ece": lambda fit: fit["measures"]["ece"],
    "brier": lambda fit: fit["measures"]["brier"],
    "rank_correlation": lambda fit: fit["measures"]["rank_correlation"],
    "auc_25": lambda fit: fit["measures"]["auc"]["25%"],
    "auc_50": lambda fit: fit["measures"]["auc"]["50%"],
    "auc_75": lambda fit: fit["measures"]["auc"]["75%"],
    "r2_first_decile": lambda fit: fit["measures"]["deciles"][0]["r2"],
    "r2_last_decile": lambda fit: fit["measures"]["deciles"][-1]["r2"],
    "epochs": lambda fit: fit["epochs"],
    "tokens_per_s": lambda fit: fit["tokens_per_s"],
    "peak_mib": lambda fit: fit["peak_mib"],
}
TRUE_COLUMNS: dict[str, Callable[[Fit], Any]] = {
    "true_r2": lambda fit: fit["truth"]["r2"],
    "true_bias": lambda fit: fit["truth"]["values"]["bias"],
    "true_variance": lambda fit: fit["truth"]["values"]["variance"],
    "lambda_actor": lambda fit: fit["truth"]["lambda_actor"]["recommended"] or "not decided",
}
"""Columns of comparisons with an actor."""
LABELS = {
    "r2": "R^2",
    "explained_variance": "explained variance",
    "ece": "ECE",
    "brier": "Brier",
    "rank_correlation": "rank correlation",
    "auc_25": "AUC at 25\N{NO-BREAK SPACE}%",
    "auc_50": "AUC at 50\N{NO-BREAK SPACE}%",
    "auc_75": "AUC at 75\N{NO-BREAK SPACE}%",
    "r2_first_decile": "R^2, first tenth",
    "r2_last_decile": "R^2, last tenth",
    "epochs": "passes",
    "tokens_per_s": "tokens/s",
    "peak_mib": "peak MiB",
    "true_r2": "true R^2",
    "true_bias": "true bias",
    "true_variance": "variance of the error",
}
"""Titles of columns on the page; others are those of the CSV file."""
COSTS = ("epochs", "tokens_per_s", "peak_mib")
ERRORS = ("bias", "bias_squared", "reaching_gradient", "noise", "mse")


def columns_of(fits: Sequence[Fit]) -> dict[str, Callable[[Fit], Any]]:
    """Return the columns that the fits have."""
    return COLUMNS | (TRUE_COLUMNS if "truth" in fits[0] else {})


def table(fits: Sequence[Fit]) -> str:
    """Return the ranking as text, one line for each critic."""
    shown = ["r2", "explained_variance", "bias", "ece", "auc_50", "tokens_per_s", "peak_mib"]
    shown += ["true_r2", "lambda_actor"] if "truth" in fits[0] else []
    columns, width = columns_of(fits), max(len(fit["name"]) for fit in fits)
    lines = [f"{'critic':<{width}}  " + "  ".join(f"{name:>18}" for name in shown)]
    for fit in fits:
        texts = [_cell(columns[name](fit)) or "-" for name in shown]
        lines.append(f"{fit['name']:<{width}}  " + "  ".join(f"{text:>18}" for text in texts))
    return "\n".join(lines)


def write_comparison(
    output: Path,
    fits: Sequence[Fit],
    rollouts: str,
    model: str,
    recommendation: Recommendation,
) -> None:
    """Write `compare.json`, `compare.csv`, `compare.html`, and `compare_truth.csv` with an actor.

    Args:
        output: Directory to write to.
        fits: Contents of each `fit.json`, the best first if they are ranked; all of them with
            `truth`, or none.
        rollouts: File, pattern or directory that they were fitted on.
        model: Directory or hub id of the backbone.
        recommendation: Recommended lambda for the best critic.
    """
    whole = {
        "rollouts": rollouts,
        "model": model,
        "critics": fits,
        "lambda_actor": asdict(recommendation),
        "ranked": any(map(explains, fits)),
        "warnings": of_comparison(fits),
    }
    with complete_file(output / "compare.json") as file:
        json.dump(jsonable(whole), file, indent=1)
    columns = columns_of(fits)
    with complete_file(output / "compare.csv") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([read(fit) for read in columns.values()] for fit in fits)
    if "truth" in fits[0]:
        with complete_file(output / "compare_truth.csv") as file:
            writer = csv.writer(file)
            writer.writerow(["critic", "of", "lambda", "position", *ERRORS, "variance", "signal"])
            writer.writerows(row for fit in fits for row in truth_rows(fit))
    with complete_file(output / "compare.html") as file:
        file.write(_page(fits, rollouts, model, recommendation))


def truth_rows(fit: Fit) -> Iterator[list[Any]]:
    """Yield the rows of `compare_truth.csv`: errors of V and A, overall and by position."""
    truth = fit["truth"]
    positions = ["all", *(f"{e}/{EIGHTHS}" for e in range(EIGHTHS))]
    values = [truth["values"], *truth["values_by_position"]]
    for position, found in zip(positions, values, strict=True):
        if found is not None:
            errors = [found["bias"], "", "", "", found["mse"], found["variance"], ""]
            yield [fit["name"], "V", "", position, *errors]
    for of_lambda in truth["lambdas"]:
        for position, found in zip(
            positions, [of_lambda["errors"], *of_lambda["by_position"]], strict=True
        ):
            if found is not None:
                signal = of_lambda["signal"] if position == "all" else ""
                errors = [found[name] for name in ERRORS]
                yield [fit["name"], "A", of_lambda["lam"], position, *errors, "", signal]


# The page ----------------------------------------------------------------------------------------


def _page(fits: Sequence[Fit], rollouts: str, model: str, recommendation: Recommendation) -> str:
    figures = [*_figures(fits), *(_true_figures(fits) if "truth" in fits[0] else [])]
    measures = fits[0]["measures"]
    whose = "lambda_actor of " if "truth" in fits[0] else "lambda_actor: "
    of_lambda = f"{whose}{recommendation.reason}."
    if recommendation.recommended is not None:
        of_lambda += f" Such a recommendation {recommendation.label}."
    notes = [
        f"{len(fits)} critics, fitted on {fits[0]['responses'] - measures['responses']} responses "
        f"of {rollouts} and judged on {measures['responses']} others, to "
        f"{measures['prompts']} held-out prompts. Backbone: {model}.",
        of_lambda,
    ]
    return offline_page(
        Path(__file__).with_name("critics.html"),
        [plot for _, _, plot in figures],
        headline=headline(fits),
        warnings=of_comparison(fits),
        notes=notes,
        tables=_tables(fits),
        advantages=[row for fit in fits if "truth" in fit for row in _of_lambdas(fit)],
        reasons=[
            (fit["name"], fit["truth"]["lambda_actor"]["reason"]) for fit in fits if "truth" in fit
        ],
        colors={fit["name"]: color(place) for place, fit in enumerate(fits)},
        figures=[(title, text) for title, text, _ in figures],
    )


def _tables(fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """Return the tables of the page: quality, what the policy reaches, and cost."""
    quality = [name for name in COLUMNS if name != "critic" and name not in COSTS]
    order = "Ranked by R^2" if any(map(explains, fits)) else "Not ranked; R^2"
    tables = [
        _part(
            "On held-out prompts",
            f"{order}: 1 is perfect, 0 is no better than the mean reward. AUC is the chance "
            "that V is higher on a right response than on a wrong one to the same prompt, after a "
            "share of their tokens: 0.5 is a guess. Differences between critics have no interval "
            "here; with few prompts, another seed may change the order.",
            fits,
            quality,
        )
    ]
    if "truth" in fits[0]:
        truth = fits[0]["truth"]
        tables.append(
            _part(
                "Against the policy",
                f"The policy continued {truth['states']} held-out states "
                f"{truth['continuations']} times each, and as often each state with its token. "
                "V* is the mean reward that it reached. All estimates are unbiased, so squares "
                "may be below 0.",
                fits,
                TRUE_COLUMNS,
            )
        )
    tables.append(
        _part(
            "Cost of the fit",
            "Tokens a second while it was fitted, beside the other fits; peak memory of the "
            "process, or of the GPU.",
            fits,
            COSTS,
        )
    )
    return tables


def _part(title: str, text: str, fits: Sequence[Fit], names: Iterable[str]) -> dict[str, Any]:
    columns = columns_of(fits)
    shown = ["critic", *names]
    return {
        "title": title,
        "text": text,
        "columns": [LABELS.get(name, name) for name in shown],
        "rows": [[_cell(columns[name](fit)) for name in shown] for fit in fits],
    }


def _of_lambdas(fit: Fit) -> Iterator[list[str]]:
    """Yield the rows of the table of advantages on the page; the first one has the name."""
    for place, found in enumerate(fit["truth"]["lambdas"]):
        low, high = found["interval"]
        errors = [_cell(found["errors"][name]) for name in ERRORS]
        interval = f"{_cell(low)} to {_cell(high)}"
        name = fit["name"] if place == 0 else ""
        yield [name, f"{found['lam']:g}", *errors, _cell(found["signal"]), interval]


def _lines(x: Sequence[Any], curves: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return a line for each curve, in the order of the colours."""
    return [
        {
            "x": x,
            "y": y,
            "name": plain(name),
            "mode": "lines+markers",
            "line": {"color": color(place)},
        }
        for place, (name, y) in enumerate(curves.items())
    ]


def _of_critics(
    fits: Sequence[Fit], x: Sequence[Any], read: Callable[[Fit], list[Any]]
) -> list[dict[str, Any]]:
    """Return a line for each critic, in its colour."""
    return _lines(x, {fit["name"]: read(fit) for fit in fits})


def _over_lambdas(curves: list[dict[str, Any]], y: str, **layout: Any) -> Spec:
    """Return a figure over lambdas as categories: below 1 they are close to each other."""
    return spec(curves, x="lambda", y=y, xaxis={"type": "category"}, **layout)


def _figures(fits: Sequence[Fit]) -> Iterator[tuple[str, str, Spec]]:
    tenths = [(d + 0.5) / 10 for d in range(10)]
    lambdas = [f"{a['lam']:g}" for a in fits[0]["measures"]["advantages"]]
    along = "share of the response"
    yield (
        "R^2 by position",
        "The share of the variance of the reward that V explains in each tenth of a response.",
        spec(
            _of_critics(fits, tenths, lambda fit: [d["r2"] for d in fit["measures"]["deciles"]]),
            x=along,
            y="R^2",
        ),
    )
    yield (
        "Bias by position",
        "Mean of V - R: it is 0 everywhere for a critic that is right on average.",
        spec(
            _of_critics(fits, tenths, lambda fit: [d["bias"] for d in fit["measures"]["deciles"]]),
            x=along,
            y="V - R",
        ),
    )
    yield (
        "Noise of the advantages by lambda",
        "Standard deviation of A within a tenth, divided by that of R - V. A lower lambda reduces "
        "noise and relies more on V.",
        _over_lambdas(
            _of_critics(
                fits, lambdas, lambda fit: [a["noise"] for a in fit["measures"]["advantages"]]
            ),
            "relative noise",
        ),
    )


def _true_figures(fits: Sequence[Fit]) -> Iterator[tuple[str, str, Spec]]:
    along = "share of the response"
    eighths = [(e + 0.5) / EIGHTHS for e in range(EIGHTHS)]
    lambdas = [f"{found['lam']:g}" for found in fits[0]["truth"]["lambdas"]]

    def at(name: str) -> Callable[[Fit], list[Any]]:
        return lambda fit: [found and found[name] for found in fit["truth"]["values_by_position"]]

    def by_lambda(name: str) -> Callable[[Fit], list[Any]]:
        # Rounded, because an axis would show errors of 1e-19 in full.
        return lambda fit: [round(found["errors"][name], 12) for found in fit["truth"]["lambdas"]]

    yield (
        "True bias of V by position",
        "Mean of V - V*, where V* is the mean reward that the policy reaches from the state.",
        spec(_of_critics(fits, eighths, at("bias")), x=along, y="V - V*"),
    )
    yield (
        "True variance of V's error by position",
        "Variance of V - V* over states: the error that remains after a constant correction.",
        spec(_of_critics(fits, eighths, at("variance")), x=along, y="variance of V - V*"),
    )
    yield (
        "Bias that reaches the gradient, by lambda",
        "Mean square of the part of A's bias that differs between the tokens of a state. With "
        "lambda = 1 it is 0.",
        _over_lambdas(_of_critics(fits, lambdas, by_lambda("reaching_gradient")), "squared bias"),
    )
    yield (
        "Variance of the advantages, by lambda",
        "Mean variance of A given state and token, which a lower lambda reduces.",
        _over_lambdas(_of_critics(fits, lambdas, by_lambda("noise")), "variance"),
    )
    signals = _of_critics(fits, lambdas, lambda fit: [f["signal"] for f in fit["truth"]["lambdas"]])
    for line, fit in zip(signals, fits, strict=True):
        found = fit["truth"]["lambdas"]
        line["error_y"] = {
            "array": [f["interval"][1] - f["signal"] for f in found],
            "arrayminus": [f["signal"] - f["interval"][0] for f in found],
            "thickness": 1,
        }
    yield (
        "Signal of the advantages, by lambda",
        "Cov(A, A*) / SD(A): the part of the standard deviation of the true advantages that those "
        "of the critic recover, whatever their scale. Bars are 95 % intervals over prompts.",
        # Grouped: the intervals of several critics would cover each other.
        _over_lambdas(signals, "signal", scattermode="group"),
    )
    best = fits[0]["truth"]["lambdas"]
    for title, name, text in (
        ("Bias of A by position", "bias", "Mean of A - A* for the first critic."),
        (
            "Variance of A by position",
            "noise",
            "Mean variance of A given state and token, for the first critic.",
        ),
    ):
        curves = {
            f"lambda {found['lam']:g}": [there and there[name] for there in found["by_position"]]
            for found in best
        }
        yield title, text, spec(_lines(eighths, curves), x=along, y=name)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
        return "0.000" if text == "-0.000" else text
    return "" if value is None else str(value)
