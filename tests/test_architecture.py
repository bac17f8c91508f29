"""Who may import whom, and how long files and functions may be: read from the source, not run."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_vcppo"

# A file imports from the rows above its own alone. A folder counts as one file.
LAYERS = [
    {"ranks", "suggestions"},
    {"shipped"},
    {
        "accounts",
        "attention",
        "calibration",
        "config_files",
        "definitions",
        "files",
        "health",
        "triton_logprobs",
        "microbatch",
        "planning",
        "precision",
        "plotting",
        "problem_files",
        "problems",
        "seeding",
        "settings",
        "untrusted",
        "usage",
        "waiting",
    },
    {"fused_logprobs"},
    {
        "checkpoint_io",
        "diagnostics",
        "interruptions",
        "metrics_file",
        "run_folder",
        "advantages",
        "checkpoints",
        "completion",
        "guard_rules",
        "logprobs",
        "losses",
        "messages",
        "model_checks",
        "prompts",
        "rewards",
        "rollout",
        "value_heads",
    },
    {"adapters", "folders", "grading", "packing", "sharding"},
    {"forward", "optimizers", "tiny_tokenizer"},
    {"models"},
    {
        "dynamic_sampling",
        "evaluation",
        "fingerprints",
        "fsdp2",
        "generation",
        "metrics",
        "profiles",
        "records",
        "replay",
    },
    {"dashboards", "dataloaders", "regrade", "room", "saved_rollouts", "sources", "workspace"},
    {"actor_module", "data"},
    {"networks"},
    {"actor_critic", "cold_start"},
    {"export", "module"},
    {"__init__", "callbacks"},
    {"doctor", "parsing", "report"},
    {"cli"},
    {"plan"},
    {"__main__", "demo"},
]
MODULES = {"actor_module", "networks", "actor_critic", "cold_start", "module"}
NEVER_IN_MODULES = {"data", "dashboards", "dataloaders", "sources"}

# Files that a reader can try without a Trainer or a model: what they need beside Python itself.
PURE = {
    "advantages": {"torch"},
    "calibration": {"torch"},
    "health": set(),
    "logprobs": {"torch"},
    "losses": {"torch"},
    "microbatch": {"torch"},
    "planning": set(),
    "value_heads": {"torch"},
    "rewards": {"torch", "math_verify"},
    "problems": set(),
    "settings": set(),
    "untrusted": set(),
}
PURE_MAY_SHARE = {"fused_logprobs", "microbatch"}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
ONE_MACHINE = re.compile(r"(?<![\w.~>])/(?:home|root|Users|work|mnt)/\w")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cfg", ".cff", ""}

LIBRARY = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "callbacks").glob("*.py")])
CALLBACKS = sorted((ROOT / "callbacks").glob("[!_]*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


library = pytest.mark.parametrize("path", LIBRARY, ids=short)


def unit(path: Path) -> str:
    """Return the name under which LAYERS knows a file."""
    parts = path.relative_to(PACKAGE if PACKAGE in path.parents else ROOT).with_suffix("").parts
    return parts[0]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """Yield the absolute name of everything that a file imports, wherever in it."""
    package = "lightning_vcppo.callbacks." if path.parent.name == "callbacks" else ""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{package if node.level else ''}{node.module}"
            yield from (f"{module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """Return the units of this package that a file imports."""
    tails = (name.split(".")[1:] for name in imported(path) if name.startswith("lightning_vcppo"))
    known = set().union(*LAYERS)
    return {tail[0] if tail and tail[0] in known else "__init__" for tail in tails}


@library
def test_imports_go_upwards(path: Path) -> None:
    rows = [row for row, names in enumerate(LAYERS) if unit(path) in names]
    assert rows, f"give {short(path)} a row in LAYERS"
    above = set().union(*LAYERS[: rows[0]], {unit(path)})
    assert ours(path) <= above
    if unit(path) in MODULES:
        assert not ours(path) & NEVER_IN_MODULES


@pytest.mark.parametrize("name", PURE)
def test_mathematics_needs_no_trainer(name: str) -> None:
    for path in [path for path in LIBRARY if unit(path) == name]:
        assert ours(path) <= PURE_MAY_SHARE | {name}
        roots = {module.split(".")[0] for module in imported(path)} - {"lightning_vcppo"}
        assert roots - sys.stdlib_module_names <= PURE[name]


@pytest.mark.parametrize("path", CALLBACKS, ids=short)
def test_callbacks_do_not_import_each_other(path: Path) -> None:
    assert not [name for name in imported(path) if "callbacks" in name.split(".")[:2]]


@library
def test_only_dashboards_and_the_workspace_use_wandb(path: Path) -> None:
    names = {*imported(path)}
    for node in ast.walk(parse(path)):
        names |= {getattr(node, "id", ""), getattr(node, "attr", "")}
    may = unit(path) in {"dashboards", "workspace"}
    assert may or not [name for name in names if "wandb" in name.lower()]


@library
def test_only_the_strategy_runs_backward(path: Path) -> None:
    """A tensor's own `backward` neither scales the loss nor synchronises ranks, silently."""
    calls = [node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    assert not [c for c in calls if isinstance(c, ast.Attribute) and c.attr == "backward"]


@library
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MAX_FILE_LINES
    functions = (n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef))
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert {name: n for name, n in lengths.items() if n >= MAX_FUNCTION_LINES} == {}


def test_no_text_names_a_place_on_one_machine() -> None:
    folders = ["", "benchmarks", "callbacks", "configs", "docs", "lightning_vcppo", "tests"]
    files = {p for f in folders for p in (ROOT / f).glob("**/*" if f else "*") if p.is_file()}
    texts = {p: p.read_text() for p in files if p.suffix in TEXT and not p.name.startswith(".")}
    assert [short(p) for p, text in texts.items() if ONE_MACHINE.search(text)] == []
