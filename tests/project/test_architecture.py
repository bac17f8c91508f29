"""Who may import whom, and how long files and functions may be: read from the source, not run."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_vcppo"

# A package imports from its row alone, and from `common` and `settings`. Type-only and lazy imports
# count. None: from all.
MAY_IMPORT: dict[str, set[str] | None] = {
    "common": set(),
    "settings": set(),
    "planning": set(),
    "algorithm": set(),
    "rewards": set(),
    "report": set(),
    "checkpointing": set(),
    "distributed": {"checkpointing", "algorithm"},
    "models": {"distributed", "checkpointing", "algorithm"},
    "data": {"models", "rewards"},
    "generation": {"models", "algorithm"},
    "rollouts": {"generation", "data", "models", "distributed", "rewards", "algorithm"},
    "interchange": {"rollouts", "data", "models", "rewards", "report"},
    "critic_lab": {
        *("interchange", "modules", "metrics", "rollouts", "models", "data", "report"),
        *("distributed", "rewards", "algorithm"),
    },
    "metrics": {"rollouts", "distributed", "rewards", "algorithm"},
    "comparison": {"metrics", "report"},
    "modules": {
        *("metrics", "rollouts", "generation", "data", "models"),
        *("distributed", "rewards", "checkpointing", "algorithm"),
    },
    "dashboards": {"metrics", "report", "checkpointing", "algorithm"},
    "callbacks": {
        *("modules", "dashboards", "report", "metrics", "rollouts", "data"),
        *("checkpointing", "distributed", "algorithm"),
    },
    "cli": None,
    "__main__": {"cli"},
    "__init__": {"data", "modules"},
}
SHARED = {"common", "settings"}
NEVER_IN_MODULES = {"datamodule", "loaders", "sources"}
"""Files of `data/` that modules do without."""

# What needs no Trainer to be tested: third-party packages that each may import.
PURE = {
    "algorithm": {"torch"},
    "comparison/statistics.py": {"numpy", "scipy"},
    "planning": set(),
    "rewards/shaping.py": {"torch"},
    "rewards/verifier.py": {"math_verify"},
    "data/generator.py": set(),
    "data/problem.py": set(),
    "metrics/calibration.py": {"torch"},
    "models/logprobs.py": {"torch"},
    "settings": set(),
}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
OTHER_LIMITS = {"lightning_vcppo/modules/vcppo.py": 520, "lightning_vcppo/modules/base.py": 375}
"""The algorithm is to be read in one piece; its base must not become a place for everything."""
ONE_MACHINE = re.compile(r"(?<![\w.~>])/(?:home|root|Users|work|mnt)/\w")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cfg", ".cff", ""}

LIBRARY = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "callbacks").glob("*.py")])
CALLBACKS = sorted((ROOT / "callbacks").glob("[!_]*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def inside(path: Path) -> tuple[str, ...]:
    """Return the place of a file in the package, `callbacks/` being a part of it."""
    root = PACKAGE if PACKAGE in path.parents else ROOT
    return path.relative_to(root).with_suffix("").parts


def package_of(path: Path) -> str:
    """Return the name under which MAY_IMPORT knows a file."""
    return inside(path)[0]


PACKAGES = sorted({package_of(path) for path in LIBRARY})
each_package = pytest.mark.parametrize("package", PACKAGES)


def files_of(package: str) -> list[Path]:
    return [path for path in LIBRARY if package_of(path) == package]


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return all nodes of a file; the first is the module."""
    return [*ast.walk(ast.parse(path.read_text()))]


def imported(path: Path) -> Iterator[str]:
    """Yield the absolute name of everything that a file imports, wherever in it."""
    here = ("lightning_vcppo", *inside(path))
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module or "")))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> dict[str, set[str]]:
    """Return the packages of ours that a file imports, with the names within each."""
    found: dict[str, set[str]] = {}
    for name in imported(path):
        root, *tail = name.split(".")
        if root == "lightning_vcppo":
            known = tail[0] if tail and tail[0] in MAY_IMPORT else "__init__"
            found.setdefault(known, set()).add(".".join(tail[1:]))
    return found


@each_package
def test_imports_keep_to_their_directions(package: str) -> None:
    assert package in MAY_IMPORT, f"give {package} a row in MAY_IMPORT"
    may = MAY_IMPORT[package]
    for path in files_of(package):
        used = ours(path)
        if may is not None and package != "common":
            assert used.keys() - SHARED <= may | {package}, short(path)
        elif may is not None:
            assert used.keys() <= {"common"}, short(path)
        if package == "modules":
            files = {name.split(".")[0] for name in used.get("data", ())}
            assert not files & NEVER_IN_MODULES, short(path)


def test_the_table_of_directions_has_no_cycle() -> None:
    left = {name: set(may) for name, may in MAY_IMPORT.items() if may is not None}
    while left:
        free = {name for name, may in left.items() if not may & left.keys()}
        assert free, f"a cycle in {sorted(left)}"
        left = {name: may for name, may in left.items() if name not in free}


@each_package
def test_files_of_a_package_import_one_another_without_a_cycle(package: str) -> None:
    """Follow imports within a package, those of functions apart, until they come back."""
    for path in files_of(package):
        start, waiting, seen = _name(path), [path], set()
        while waiting:
            for name in _at_import(waiting.pop()):
                assert name != start, f"{name} imports itself through others"
                if name in FILES and name not in seen:
                    seen.add(name)
                    waiting.append(FILES[name])


def _name(path: Path) -> str:
    return ".".join(("lightning_vcppo", *inside(path)))


FILES = {_name(path): path for path in LIBRARY if path.stem != "__init__"}


@cache
def _at_import(path: Path) -> set[str]:
    """Return the files of ours that the top level of a file imports."""
    names = set()
    (module, *_) = nodes(path)
    assert isinstance(module, ast.Module)
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & FILES.keys()


def test_few_files_lie_directly_in_the_package() -> None:
    files = {p.name for p in PACKAGE.iterdir() if p.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}


def test_the_wheel_has_all_packages() -> None:
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert listed
    names = set(re.findall(r'"([\w.]+)"', listed[1]))
    directories = {
        path.parent for path in LIBRARY if path.stem == "__init__" and PACKAGE in path.parents
    }
    found = {".".join(directory.relative_to(ROOT).parts) for directory in directories}
    assert names == found | {"lightning_vcppo.callbacks", "lightning_vcppo.configs"}


@pytest.mark.parametrize("place", PURE)
def test_mathematics_needs_no_trainer(place: str) -> None:
    for path in [p for p in LIBRARY if place in (package_of(p), str(p.relative_to(p.parents[1])))]:
        roots = {module.split(".")[0] for module in imported(path)} - {"lightning_vcppo"}
        assert roots - sys.stdlib_module_names <= PURE[place]


def test_tests_lie_where_what_they_test_lies() -> None:
    """`tests/<package>/` is about that package; what is about the whole has its own directories."""
    whole = {"benchmarks", "experiments", "integration", "project", "support"}
    directories = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert directories - whole <= MAY_IMPORT.keys()
    tests = [*(ROOT / "tests").rglob("test_*.py")]
    assert [short(p) for p in tests if p.parent == ROOT / "tests"] == []
    borrowed = {
        short(path): name
        for path in (ROOT / "tests").rglob("*.py")
        for name in _names_in(path)
        if name.startswith("tests.") and ".test_" in name
    }
    assert borrowed == {}


def _names_in(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            yield f"{node.module}."


@pytest.mark.parametrize("path", CALLBACKS, ids=short)
def test_callbacks_do_not_import_each_other(path: Path) -> None:
    names = {name for name in imported(path) if name.startswith("lightning_vcppo.callbacks.")}
    assert not [name for name in names if not name.startswith("lightning_vcppo.callbacks.base.")]


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "dashboards"])
def test_only_dashboards_name_wandb(package: str) -> None:
    for path in files_of(package):
        names = {*imported(path)}
        for node in nodes(path):
            names |= {getattr(node, "id", ""), getattr(node, "attr", "")}
        assert not [name for name in names if "wandb" in name.lower()], short(path)


@each_package
def test_only_the_strategy_runs_backward(package: str) -> None:
    """A tensor's own `backward` neither scales the loss nor synchronises ranks, silently."""
    for path in files_of(package):
        calls = [node.func for node in nodes(path) if isinstance(node, ast.Call)]
        own = [c for c in calls if isinstance(c, ast.Attribute) and c.attr == "backward"]
        assert not own, short(path)


@each_package
def test_files_and_functions_are_short(package: str) -> None:
    for path in files_of(package):
        most = OTHER_LIMITS.get(short(path), MAX_FILE_LINES)
        assert len(path.read_text().splitlines()) < most, short(path)
        functions = (n for n in nodes(path) if isinstance(n, ast.FunctionDef))
        lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
        assert {name: n for name, n in lengths.items() if n >= MAX_FUNCTION_LINES} == {}, path


def test_no_text_names_a_place_on_one_machine() -> None:
    directories = [
        "",
        "benchmarks",
        "experiments",
        "callbacks",
        "configs",
        "docs",
        "lightning_vcppo",
        "tests",
    ]
    files = {p for f in directories for p in (ROOT / f).glob("**/*" if f else "*") if p.is_file()}
    texts = {p: p.read_text() for p in files if p.suffix in TEXT and not p.name.startswith(".")}
    assert [short(p) for p, text in texts.items() if ONE_MACHINE.search(text)] == []
