"""Fit several critics on the same rollouts, and rank them on the same held-out prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.processes import ONE_THREAD
from lightning_vcppo.critic_lab.comparison_page import write_comparison
from lightning_vcppo.critic_lab.hints import Hints
from lightning_vcppo.critic_lab.judging import ActorOptions, continue_rollouts, judge_fits
from lightning_vcppo.critic_lab.remarks import explains
from lightning_vcppo.critic_lab.running import read_rollouts
from lightning_vcppo.critic_lab.specs import CriticSpec
from lightning_vcppo.critic_lab.truth import Recommendation
from lightning_vcppo.models import loading

NOT_DECIDED = Recommendation(
    None,
    "not decided: stored rollouts alone do not separate the bias of the values inside a response "
    "from the effect of the next tokens; name the policy with --actor",
)
NOT_RANKED = Recommendation(
    None, "not decided: no critic has an R^2 that is distinguishable from 0, so none is the best"
)


@dataclass(frozen=True)
class Split:
    """The choice of the held-out prompts, on which critics are judged.

    Attributes:
        held_out_share: Share of the prompts that are held out.
        seed: Seed of the choice.
    """

    held_out_share: float
    seed: int


def compare_critics(
    rollouts: str,
    model: str,
    specs: Sequence[CriticSpec],
    output: Path,
    *,
    jobs: int,
    split: Split,
    flags: Sequence[str] = (),
    options: ActorOptions | None = None,
    drop_invalid: bool = False,
) -> list[dict[str, Any]]:
    """Fit all critics, each in its own process, and write the tables and the page.

    A critic that is already fitted in the output directory is not fitted again.

    Args:
        rollouts: File, pattern or directory.
        model: Directory or hub id of the backbone.
        specs: The critics.
        output: Directory to write to.
        jobs: Number of fits at the same time.
        split: Held-out prompts; the same as in the flags.
        flags: Further flags of each fit.
        options: The policy that continues responses; None leaves lambda undecided.
        drop_invalid: Skip rows that cannot be read; each fit takes it from its flags.

    Returns:
        Contents of the `fit.json` of each critic, the best first; in the order given if none has an
        R^2 that is distinguishable from 0.

    Raises:
        ValueError: If the rollouts lack data that a critic reads, the actor is not their policy,
            or a fit failed; the message then has the last line of its log.
    """
    store, origin = read_rollouts(rollouts, model, drop_invalid=drop_invalid)
    tokenizer = loading.load_tokenizer(model)
    for spec in specs:  # before hours of fitting
        try:
            Hints(store, tokenizer, spec.hints)
        except ValueError as error:
            raise ValueError(f"--critics: {spec.name}: {error}") from error
    output.mkdir(parents=True, exist_ok=True)
    continued = None
    if options is not None:
        _, held_out = store.split(split.held_out_share, split.seed)
        path = output / "continuations.jsonl"
        continued = continue_rollouts(path, store, origin, held_out, model, options, split.seed)

    actor = options.actor if options is not None else None
    directories = [output / f"{n}_{_safe(spec.name)}" for n, spec in enumerate(specs)]
    shared = [rollouts, f"--model={model}", *flags]
    with ThreadPoolExecutor(jobs) as pool:
        fit_one = partial(_fit, shared=shared, actor=actor, alone=jobs == 1)
        faults = [fault for fault in pool.map(fit_one, specs, directories) if fault]
    require(not faults, "; ".join(faults))
    fits = [_read(spec, place, split) for spec, place in zip(specs, directories, strict=True)]
    if options is not None and continued is not None:
        critics = [directory / "critic" for directory in directories]
        truths = judge_fits(fits, critics, store, continued, options, split.seed)
        for fit, truth in zip(fits, truths, strict=True):
            fit["truth"] = truth.as_json()
    if any(map(explains, fits)):
        fits.sort(key=_rank)
    write_comparison(output, fits, rollouts, model, recommendation(fits))
    return fits


def _rank(fit: Mapping[str, Any]) -> float:
    r2 = fit["measures"]["r2"]
    return float("inf") if r2 is None else -r2


def recommendation(fits: Sequence[Mapping[str, Any]]) -> Recommendation:
    """Return the recommendation for the first critic, which is the best if there is a best."""
    if "truth" not in fits[0]:
        return NOT_DECIDED
    if not any(map(explains, fits)):
        return NOT_RANKED
    found = fits[0]["truth"]["lambda_actor"]
    return Recommendation(found["recommended"], f"{fits[0]['name']}: {found['reason']}")


def _fit(
    spec: CriticSpec, directory: Path, shared: Sequence[str], actor: str | None, *, alone: bool
) -> str | None:
    """Fit a critic unless it is fitted already; return the error message if the fit failed."""
    if (directory / "fit.json").exists():
        return None
    arguments = [*shared, f"--output={directory}"]
    arguments += [f"--{key}={_flag(value)}" for key, value in spec.settings.items()]
    arguments += [f"--actor={actor}"] if spec.is_side else []
    program = [sys.executable, "-m", "lightning_vcppo", "critic", "fit"]
    environment = os.environ | ({} if alone else ONE_THREAD)
    directory.mkdir(exist_ok=True)
    with (directory / "fit.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [*program, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    if not done.returncode:
        return None
    lines = (directory / "fit.log").read_text(encoding="utf-8").strip().splitlines()
    return f"{spec.name}: {lines[-1] if lines else f'ended with code {done.returncode}'}"


def _read(spec: CriticSpec, directory: Path, split: Split) -> dict[str, Any]:
    fit = json.loads((directory / "fit.json").read_text(encoding="utf-8"))
    own = Split(fit["held_out_share"], fit["seed"])
    require(
        own == split,
        f"{directory}: fitted with held_out_share={own.held_out_share} and seed={own.seed}, so its "
        "prompts differ from those of the others; name another --output",
    )
    return {"name": spec.name} | dict(fit)


def _flag(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
