"""Run `vcppo doctor`: show what this machine has, and which features will work on it.

Each check may fail without affecting the others, because the installation may be broken. The
command does not use the network and prints no keys.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_vcppo import __version__
from lightning_vcppo.dashboards.tracking import has_account

PACKAGE = "lightning-vcppo"
NOT_FOR_USERS = {"bench", "dev", "docs"}
"""Extras for development of this package."""
VARIABLES = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "WANDB_MODE",
    "WORLD_SIZE",
)
"""Environment variables to show; none contains a secret."""
GIB = 2**30
USAGE = """\
vcppo doctor [--json]
Show what this machine has, and what will work on it. --json is for bug reports.
The exit code is 0 unless something required is missing."""

Findings = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Run `vcppo doctor`; exit code 1 if something required is missing.

    Args:
        arguments: Arguments after the command's name.

    Raises:
        ValueError: For any argument but `--json` and `--help`.
    """
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    if unknown := [argument for argument in arguments if argument != "--json"]:
        raise ValueError(f"vcppo doctor: {unknown[0]}: no such option; expected --json")
    findings = examine()
    if "--json" in arguments:
        print(json.dumps(findings, indent=2))
    else:
        _show(findings, Console())
    if findings["problems"]:
        raise SystemExit(1)


def examine() -> Findings:
    """Return all findings as plain types, to print or for bug reports."""
    findings: Findings = {
        "system": _try(_system),
        "packages": _try(_packages),
        "extras": _try(_extras),
        "torch": _try(_torch),
        "memory": _try(_memory),
        "tracking": _try(_tracking),
        "places": _try(_places),
    }
    findings["problems"] = _problems(findings)
    findings["works"] = _what_works(findings)
    return findings


def _try(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except Exception as error:  # anything may be broken here
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


# Findings


def _system() -> Findings:
    return {
        "lightning-vcppo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _requirements() -> list[tuple[str, Requirement]]:
    """Return the package's requirements, each with its extra or ""."""
    found = []
    for line in metadata.requires(PACKAGE) or []:
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        name = extra[1] if extra else ""
        if not requirement.marker or requirement.marker.evaluate({"extra": name}):
            found.append((name, requirement))
    return found


def _state(requirement: Requirement) -> Findings:
    """Return the installed version, or None, and whether it meets the requirement."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return {"version": None, "wanted": str(requirement.specifier), "ok": False}
    ok = requirement.specifier.contains(version, prereleases=True)
    return {"version": version, "wanted": str(requirement.specifier), "ok": ok}


def _packages() -> Findings:
    return {r.name: _state(r) for extra, r in _requirements() if not extra}


def _extras() -> Findings:
    extras: dict[str, list[str]] = {}
    for extra, requirement in _requirements():
        if extra and extra not in NOT_FOR_USERS:
            lacking = extras.setdefault(extra, [])
            lacking += [] if _state(requirement)["ok"] else [str(requirement).partition(";")[0]]
    return {extra: {"ok": not lacking, "lacking": lacking} for extra, lacking in extras.items()}


def _torch() -> Findings:
    import torch

    devices = [
        {
            "name": torch.cuda.get_device_name(i),
            "memory_gib": round(torch.cuda.get_device_properties(i).total_memory / GIB, 1),
            "bf16": torch.cuda.get_device_capability(i) >= (8, 0),
        }
        for i in range(torch.cuda.device_count())
    ]
    return {
        "gpus": devices,
        "cuda": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
        "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
        "nccl": torch.distributed.is_available() and torch.distributed.is_nccl_available(),
        "threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


def _memory() -> Findings:
    """Return main memory in GiB; in a container the limit that the kernel enforces."""
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    total, free = page * pages, page * os.sysconf("SC_AVPHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        total = min(total, int(text))
    if (info := Path("/proc/meminfo")).exists():
        available = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text())
        free = int(available[1]) * 1024 if available else free
    return {"total_gib": round(total / GIB, 1), "available_gib": round(min(free, total) / GIB, 1)}


def _tracking() -> Findings:
    return {"account": has_account()}


def _places() -> Findings:
    """Return the directories of cached models and of runs, and whether they are writable."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    return {"cache": _place(cache), "runs": _place(Path.cwd())}


def _place(directory: Path) -> Findings:
    """Try to write to a directory, or to its nearest existing parent."""
    there = next(place for place in (directory, *directory.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = True
    except OSError:
        writable = False
    shown = str(directory).replace(str(Path.home()), "~", 1)
    free = shutil.disk_usage(there).free / GIB
    return {"path": shown, "writable": writable, "free_gib": round(free, 1)}


# Conclusions


def _problems(findings: Findings) -> list[str]:
    """Return what is required and missing."""
    problems = []
    for name, state in findings["packages"].items():
        if name == "failed":
            problems.append(f"{PACKAGE} is not installed (pip install -e .): {state}")
        elif not state["ok"]:
            version = state["version"] or "no version"
            fix = f"pip install -U '{name}{state['wanted']}'"
            problems.append(f"{name}{state['wanted']} is required, found {version}; {fix}")
    if "failed" in findings["torch"]:
        problems.append(f"torch does not work: {findings['torch']['failed']}")
    return problems


def _what_works(findings: Findings) -> list[Findings]:
    """Return what will work here, and what is needed for the rest."""
    torch, extras = findings["torch"], findings["extras"]
    healthy = not findings["problems"]
    gpus = torch.get("gpus", [])
    rows = [("train on the CPU", healthy, "" if healthy else "see the problems")]
    if gpus:
        memory = f"{sum(gpu['memory_gib'] for gpu in gpus):.0f} GiB"
        rows.append((f"train on {len(gpus)} GPU(s)", healthy, f"{gpus[0]['name']}, {memory}"))
        bf16 = all(gpu["bf16"] for gpu in gpus)
        rows.append(("--trainer.precision=bf16-mixed", bf16, "" if bf16 else "needs Ampere"))
    else:
        lacks = "Apple's lacks float64; give --trainer.accelerator=cpu"
        rows.append(("train on a GPU", False, lacks if torch.get("mps") else "none found"))
    several = torch.get("nccl") if len(gpus) > 1 else torch.get("gloo")
    over = f"over {len(gpus)} GPUs" if len(gpus) > 1 else "over processes on the CPU"
    rows.append(("--trainer.strategy=ddp", bool(several), over))
    uses = {
        "vllm": "--model.engine.name=vllm",
        "lora": "--model.lora.rank",
        "report": "vcppo report",
        "dashboard": "vcppo dashboard",
        "completion": "vcppo completion",
        "tensorboard": "--loggers=[tensorboard]",
        "trackio": "--loggers=[trackio]",
        "gym": "--data.path=reasoning_gym:TASK",
        "gguf": "models stored as GGUF",
    }
    for extra, state in extras.items():
        if extra != "failed":
            fix = "" if state["ok"] else f"pip install '{PACKAGE}[{extra}]'"
            rows.append((uses.get(extra, f"extra {extra}"), state["ok"], fix))
    account = findings["tracking"].get("account", False)
    rows.append(("Weights & Biases", True, "online" if account else "offline (wandb login)"))
    offline = os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True")
    reason = "HF_HUB_OFFLINE is set; use local models and data" if offline else ""
    rows.append(("models and data of the hub", not offline, reason))
    for name, use in {"cache": "cache of models", "runs": "runs in this directory"}.items():
        place = findings["places"].get(name, {"path": "?", "writable": False, "free_gib": 0})
        kind = f"{place['path']}, {place['free_gib']:.0f} GiB free"
        rows.append((use, place["writable"], kind if place["writable"] else f"{kind}, read-only"))
    return [{"what": what, "ok": ok, "note": note} for what, ok, note in rows]


def _show(findings: Findings, console: Console) -> None:
    system, torch, memory = (findings[key] for key in ("system", "torch", "memory"))
    table = Table("", "", box=SIMPLE_HEAD, show_header=False, title="This machine")
    table.add_row("lightning-vcppo", system["lightning-vcppo"])
    table.add_row("Python", f"{system['python']}, {system['platform']}")
    versions = [
        f"{name} {state['version']}"
        for name, state in findings["packages"].items()
        if name != "failed" and state["version"]
    ]
    table.add_row("packages", ", ".join(versions))
    if "failed" not in torch:
        gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in torch["gpus"])
        table.add_row("GPUs", gpus or ("Apple silicon" if torch["mps"] else "none"))
        table.add_row("CPU", f"{torch['cpus'] or '?'} cores available, {torch['threads']} threads")
    if "failed" not in memory:
        table.add_row("memory", f"{memory['available_gib']} of {memory['total_gib']} GiB free")
    for name, value in system["environment"].items():
        table.add_row(name, value)
    console.print(table)
    works = Table("", "", "", box=SIMPLE_HEAD, show_header=False, title="What will work here")
    for row in findings["works"]:
        answer = "[green]yes[/]" if row["ok"] else "[yellow]no[/]"
        works.add_row(answer, escape(row["what"]), escape(row["note"]))
    console.print(works)
    for problem in findings["problems"]:
        console.print(f"[red]problem[/]: {escape(problem)}", highlight=False)
