"""Decide whether a run fits, and find flags with which it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from lightning_vcppo.planning.memory import engine_memory, engine_needs, peak, present
from lightning_vcppo.planning.run import Run

Pulled: TypeAlias = "tuple[str, Run] | None"
Lever: TypeAlias = Callable[[Run], Pulled]


@dataclass(frozen=True)
class Change:
    """A flag that lowers the peak.

    Attributes:
        flag: Flag to add to the command.
        peak: Peak in bytes with it and with the changes before it.
    """

    flag: str
    peak: int

    @property
    def name(self) -> str:
        """Name of the flag without its value, or "devices"."""
        return self.flag.lstrip("0123456789 ").partition("=")[0]


def fits(run: Run) -> bool:
    """Return whether the memory of a device is enough, and vLLM's share of it for vLLM."""
    return not starved(run) and peak(run) <= run.memory


def advise(run: Run) -> tuple[list[Change], bool]:
    """Find changes with which a run fits.

    Returns:
        The changes, and whether the run fits with them. The changes are the first one of `FLAGS`
        that is enough by itself; otherwise those that help together, in order; if they are not
        enough, the same from `LEVERS`.
    """
    changes: list[Change] = []
    for levers in (FLAGS, LEVERS):
        for lever in levers:
            alone, changed = _pull(run, lever)
            if fits(changed):
                return alone, True
        changes, changed = [], run
        for lever in (*levers, *levers):  # a change may help again when the peak has moved
            more, changed = _pull(changed, lever)
            names = {change.name for change in more}
            changes = [change for change in changes if change.name not in names] + more
        if fits(changed):
            return changes, True
    return changes, False


def _pull(run: Run, lever: Lever) -> tuple[list[Change], Run]:
    """Apply a change as often as it helps and is needed; return the last application."""
    changes: list[Change] = []
    while not fits(run) and (pulled := lever(run)) is not None:
        flag, changed = pulled
        if not (peak(changed) < peak(run) or (starved(run) and not starved(changed))):
            break
        run = changed
        changes = [Change(flag, peak(run))]
    return changes, run


def starved(run: Run) -> bool:
    """Return whether vLLM's share is too small for one response, here or on a server."""
    run = run.sampler
    return run.engine == "vllm" and engine_needs(run) > engine_memory(run)


def _one_response_at_a_time(run: Run) -> Pulled:
    longest = run.prompt_length + run.response_length
    if run.max_tokens < 2 * longest:
        return None
    tokens = max(longest, run.max_tokens // 2)
    return f"--model.update.ppo_max_token_len_per_gpu={tokens}", replace(run, max_tokens=tokens)


def _fewer_rows(run: Run) -> Pulled:
    if run.engine == "vllm" or run.rows < 2:
        return None
    rows = run.rows // 2
    return f"--model.engine.max_num_seqs={rows}", replace(run, max_num_seqs=rows)


def _checkpointing(run: Run) -> Pulled:
    if run.checkpointing:
        return None
    return "--model.activation_checkpointing=true", replace(run, checkpointing=True)


def _sharding(run: Run) -> Pulled:
    if run.strategy == "fsdp2" or run.devices == 1:
        return None
    changed = replace(run, strategy="fsdp2", shards=run.devices)
    return "--trainer.strategy=fsdp2", changed


def _offload(run: Run) -> Pulled:
    """Offload unused networks and states to the host; fsdp2 places its shards itself."""
    if run.offload or run.strategy == "fsdp2" or run.device == "cpu":
        return None
    kinds = [*(["reference"] if run.reference else []), "idle_optimizer"]
    kinds += ["idle_network"] if run.critic is not None else []
    return f"--model.offload=[{','.join(kinds)}]", replace(run, offload=tuple(kinds))


def _fitting_sampler(run: Run) -> Pulled:
    """Give vLLM the memory that the trainer leaves free."""
    free = run.memory - present(run, "policy").total
    share = free * 100 // run.memory / 100
    if run.engine != "vllm" or share * run.memory < engine_needs(run) or share == run.engine_share:
        return None
    flag = f"--model.engine.gpu_memory_utilization={share:g}"
    return flag, replace(run, engine_share=share)


def _mixed_precision(run: Run) -> Pulled:
    if not run.precision.startswith(("32", "64")):
        return None
    return "--trainer.precision=bf16-mixed", replace(run, precision="bf16-mixed")


def _adapters(run: Run) -> Pulled:
    if run.lora_rank is not None:
        return None
    return "--model.lora.rank=32", replace(run, lora_rank=32)


def _half_precision(run: Run) -> Pulled:
    if run.precision == "bf16-true":
        return None
    changed = replace(run, precision="bf16-true")
    if run.lora_rank is not None:  # adapters are float32 anyway
        return "--trainer.precision=bf16-true", changed
    if run.strategy == "fsdp2":  # it supports no master weights for bfloat16 weights
        return None
    flags = "--trainer.precision=bf16-true --model.master_weights=stochastic"
    return flags, replace(changed, master_weights="stochastic")


def _more_devices(run: Run) -> Pulled:
    if run.strategy != "fsdp2" or run.devices >= 1024:
        return None
    devices = 2 * run.devices
    changed = replace(run, devices=devices, shards=devices)
    return f"{devices} devices", changed


FLAGS = (
    _one_response_at_a_time,
    _fewer_rows,
    _checkpointing,
    _sharding,
    _offload,
    _fitting_sampler,
    _mixed_precision,
)
"""Changes in order of preference: first those that cost only time, then other arithmetic."""

LEVERS = (*FLAGS, _more_devices, _adapters, _half_precision)
"""`FLAGS`, then changes that need more machines or train other weights."""
