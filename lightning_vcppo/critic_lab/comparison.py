"""Fit several critics on the same rollouts, and rank them on the same held-out prompts."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.files import complete_file
from lightning_vcppo.common.processes import ONE_THREAD
from lightning_vcppo.common.suggestions import did_you_mean
from lightning_vcppo.report.drawing import color, plain, spec
from lightning_vcppo.report.page import offline_page
from lightning_vcppo.settings import OptimizerSettings, ValueSettings

KINDS: dict[str, dict[str, Any]] = {
    "mse": {},
    "huber": {"value.loss": "huber"},
    "bounded": {"value.head": "bounded"},
    "sigmoid": {"value.head": "sigmoid", "value.loss": "bce"},
    "hl_gauss": {"value.head": "hl_gauss"},
}
"""Names of critics, and the settings that they are."""
ONLINE = {
    "side": "it reads the actor's activations",
    "answer": "stored rollouts have no prompt with the answer",
    "siblings": "stored rollouts have no prompt with other responses",
}
NOT_DECIDED = (
    "not decided: from stored rollouts alone the bias of the values inside a response cannot be "
    "told from what the next tokens change; continue from prefixes with the policy to decide it"
)


@dataclass(frozen=True)
class CriticSpec:
    """A critic to fit.

    Attributes:
        name: As the user gave it.
        settings: Flags of `vcppo critic fit` without the dashes.
    """

    name: str
    settings: Mapping[str, Any]


def read_specs(texts: Sequence[str]) -> list[CriticSpec]:
    """Read the names of critics: `mse`, `hl_gauss:num_bins=101,lr=1e-4`, or a YAML file.

    Raises:
        ValueError: There is no such critic or setting, or a name comes twice.
    """
    specs = [_read_spec(text) for text in texts]
    names = [spec.name for spec in specs]
    twice = {name for name in names if names.count(name) > 1}
    require(not twice, f"--critics: {', '.join(sorted(twice))} is there twice")
    return specs


def _read_spec(text: str) -> CriticSpec:
    if text.endswith((".yaml", ".yml")):
        try:
            given = yaml.safe_load(Path(text).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{text}: broken YAML, {str(error).splitlines()[0]}") from error
        require(isinstance(given, dict), f"{text}: expected settings such as value.head: hl_gauss")
        return CriticSpec(Path(text).stem, dict(_checked(text, _flat(given))))
    kind, _, options = text.partition(":")
    require(
        kind not in ONLINE,
        f"--critics: {kind} cannot be fitted on stored rollouts alone: {ONLINE.get(kind)}",
    )
    require(
        kind in KINDS,
        f"--critics: no critic {kind!r}{did_you_mean(kind, KINDS)}; expected {', '.join(KINDS)} or "
        "a YAML file",
    )
    given = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        require(bool(equals), f"--critics: {text}: expected key=value, got {option!r}")
        given[key] = yaml.safe_load(value)
    return CriticSpec(text, KINDS[kind] | dict(_checked(text, given)))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _checked(place: str, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield settings with the names of their groups."""
    groups = {"value": ValueSettings, "critic_optimizer": OptimizerSettings}
    known = {
        f"{group}.{f.name}": f"{group}.{f.name}" for group, c in groups.items() for f in fields(c)
    }
    short = {name.partition(".")[2]: name for name in reversed(known)}
    for key, value in given.items():
        name = key if key in known else short.get(key)
        if name is None:
            raise ValueError(f"{place}: no setting {key!r}{did_you_mean(key, [*short, *known])}")
        yield name, value


def compare_critics(
    rollouts: str,
    model: str,
    specs: Sequence[CriticSpec],
    output: Path,
    *,
    jobs: int,
    flags: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Fit all critics, each in a process of its own, and write table and page.

    A critic whose fit is in the output already is not fitted again.

    Args:
        rollouts: File, pattern or directory.
        model: Directory or hub id of the backbone.
        specs: The critics.
        output: Directory to write to.
        jobs: Processes at the same time.
        flags: Further flags of each fit.

    Returns:
        What each fit has written, the best first.

    Raises:
        ValueError: A fit failed; the message has its last line.
    """
    output.mkdir(parents=True, exist_ok=True)
    folders = [output / f"{n}_{_safe(spec.name)}" for n, spec in enumerate(specs)]

    def run(spec: CriticSpec, folder: Path) -> str | None:
        if (folder / "fit.json").exists():
            return None
        settings = [f"--{key}={_flag(value)}" for key, value in spec.settings.items()]
        arguments = [rollouts, f"--model={model}", f"--output={folder}", *settings, *flags]
        program = [sys.executable, "-m", "lightning_vcppo", "critic", "fit"]
        environment = os.environ | (ONE_THREAD if jobs > 1 else {})
        folder.mkdir(exist_ok=True)
        with (folder / "fit.log").open("w", encoding="utf-8") as log:
            done = subprocess.run(
                [*program, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        if not done.returncode:
            return None
        lines = (folder / "fit.log").read_text(encoding="utf-8").strip().splitlines()
        return f"{spec.name}: {lines[-1] if lines else f'ended with code {done.returncode}'}"

    with ThreadPoolExecutor(jobs) as pool:
        faults = [fault for fault in pool.map(run, specs, folders) if fault]
    require(not faults, "; ".join(faults))
    fits = []
    for spec_, folder in zip(specs, folders, strict=True):
        fits.append({"name": spec_.name} | json.loads((folder / "fit.json").read_text()))
    fits.sort(key=lambda fit: -(fit["measures"]["r2"] or float("-inf")))
    _write(output, fits, rollouts, model)
    return fits


COLUMNS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
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


def table(fits: Sequence[Mapping[str, Any]]) -> str:
    """Return the ranking as text, a critic a line."""
    shown = ("r2", "explained_variance", "bias", "ece", "auc_50", "tokens_per_s", "peak_mib")
    width = max(len(fit["name"]) for fit in fits)
    lines = [f"{'critic':<{width}}  " + "  ".join(f"{name:>18}" for name in shown)]
    for fit in fits:
        cells = [COLUMNS[name](fit) for name in shown]
        texts = ["-" if c is None else f"{c:.3f}" if abs(c) < 100 else f"{c:.0f}" for c in cells]
        lines.append(f"{fit['name']:<{width}}  " + "  ".join(f"{text:>18}" for text in texts))
    return "\n".join(lines)


def _write(output: Path, fits: Sequence[Mapping[str, Any]], rollouts: str, model: str) -> None:
    whole = {
        "rollouts": rollouts,
        "model": model,
        "critics": fits,
        "lambda_actor": {"recommended": None, "reason": NOT_DECIDED},
    }
    with complete_file(output / "compare.json") as file:
        json.dump(whole, file, indent=1)
    with complete_file(output / "compare.csv") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([read(fit) for read in COLUMNS.values()] for fit in fits)
    figures = [*_figures(fits)]
    page = offline_page(
        Path(__file__).with_name("critics.html"),
        [plot for _, _, plot in figures],
        notes=[
            f"{len(fits)} critics on {fits[0]['responses']} responses of {rollouts}; "
            f"backbone {model}.",
            "Ranked by R^2 on held-out prompts: 1 is perfect, 0 no better than the mean reward.",
            f"lambda_actor: {NOT_DECIDED}.",
        ],
        columns=list(COLUMNS),
        rows=[[_cell(read(fit)) for read in COLUMNS.values()] for fit in fits],
        colors={fit["name"]: color(place) for place, fit in enumerate(fits)},
        figures=[(title, text) for title, text, _ in figures],
    )
    with complete_file(output / "compare.html") as file:
        file.write(page)


def _figures(fits: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    def lines(x: Sequence[Any], read: Callable[[Any], list[Any]]) -> list[dict[str, Any]]:
        return [
            {
                "x": x,
                "y": read(fit["measures"]),
                "name": plain(fit["name"]),
                "mode": "lines+markers",
                "line": {"color": color(place)},
            }
            for place, fit in enumerate(fits)
        ]

    tenths = [(d + 0.5) / 10 for d in range(10)]
    lambdas = [str(a["lam"]) for a in fits[0]["measures"]["advantages"]]
    along = "share of the response"
    yield (
        "R^2 by position",
        "How much of the reward V explains at each tenth of a response.",
        spec(lines(tenths, lambda m: [d["r2"] for d in m["deciles"]]), x=along, y="R^2"),
    )
    yield (
        "Bias by position",
        "Mean of V - R: a critic that is right on average lies on 0 everywhere.",
        spec(lines(tenths, lambda m: [d["bias"] for d in m["deciles"]]), x=along, y="V - R"),
    )
    yield (
        "Noise of the advantages by lambda",
        "Standard deviation of A within a tenth, over that of R - V. A lower lambda buys less "
        "noise with more trust in V.",
        spec(
            lines(lambdas, lambda m: [a["noise"] for a in m["advantages"]]),
            x="lambda",
            y="relative noise",
        ),
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)


def _flag(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
