"""Compare a run with others that its user may not think of: in bfloat16, or sampled in turn."""

from __future__ import annotations

from collections.abc import Callable

from lightning_vcppo.planning.advice import advise, fits
from lightning_vcppo.planning.memory import peak
from lightning_vcppo.planning.run import GB, Run
from lightning_vcppo.planning.seconds import rounded

Change = dict[str, object]
"""Values of settings by their names, without dashes."""


def in_bfloat16(run: Run) -> list[Change]:
    """Return the settings of bfloat16 that a run in float32 on GPUs may have instead.

    Small updates are lost in bfloat16 weights, so these need master weights, except adapters, which
    are float32 anyway. fsdp2 has no master weights.
    """
    if run.device != "cuda" or not run.precision.startswith(("32", "64")):
        return []
    half: Change = {"trainer.precision": "bf16-true"}
    if run.lora_rank is None:
        half["model.master_weights"] = "stochastic"
    refused = run.strategy == "fsdp2" and run.lora_rank is None
    return [{"trainer.precision": "bf16-mixed"}, *([] if refused else [half])]


def in_turn(engine: str) -> Change:
    """Return the settings with which an engine samples and the run learns in turn."""
    change: Change = {"model.engine.rollouts_ahead": 0}
    if engine == "transformers_copy":
        change |= {"model.engine.name": "transformers", "model.engine.init_args": {}}
    return change


def flags(change: Change) -> str:
    """Return settings as flags; empty ones are omitted."""
    return " ".join(f"--{name}={value}" for name, value in change.items() if value != {})


def describe(change: Change, run: Run, seconds: Callable[[Run], float]) -> str:
    """Return memory and time of a changed run, and what else it needs to fit.

    Args:
        change: The changed settings.
        run: The changed run.
        seconds: Returns the seconds of a rollout.
    """
    text = f"{flags(change)}  ->  {peak(run) / GB:.1f} GB, {rounded(seconds(run))} s a rollout"
    if fits(run):
        return f"{text}: it fits"
    others, enough = advise(run)
    if not enough or any(other.name == "--trainer.precision" for other in others):
        return f"{text}: it does not fit either"
    more = " ".join(other.flag for other in others)
    return f"{text}; it fits with {more}"


def ahead_on_the_same_devices(ahead: Run, turns: Run, seconds: Callable[[Run], float]) -> str:
    """Return that sampling ahead saves nothing where the devices that train do it, with numbers.

    Args:
        ahead: The run.
        turns: The run that samples and learns in turn.
        seconds: Returns the seconds of a rollout, as if nothing happened at the same time.
    """
    return (
        "--model.engine.rollouts_ahead: the devices that train also sample, so they do not work at "
        f"the same time: {rounded(seconds(ahead))} s a rollout and {peak(ahead) / GB:.1f} GB; in "
        f"turn {rounded(seconds(turns))} s and {peak(turns) / GB:.1f} GB"
    )
