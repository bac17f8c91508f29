"""Change a file in one place at a time, and check whether its tests notice.

    python -m benchmarks.stress.mutation algorithm/losses --sample 150
    python -m benchmarks.stress.mutation algorithm/losses --sample 150 --show    # the survivors

A mutant is the file with one operator, comparison, constant, condition or argument changed, or one
statement removed. It is killed if `tests/algorithm/test_losses*.py` fail, crash or run too long.
A survivor shows code that no test checks, or is not a fault, such as `min` of one value. Messages
of errors are not changed, because tests need not check their wording.

The libraries are imported once; each mutant is a fork, which loads the changed file instead of the
original, and runs the quick tests first. Results are appended to `--output`, and a second run
continues after the first.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = "lightning_vcppo"
SECONDS = 30.0
"""Seconds of CPU time after which a mutant hangs; the tests of one file take a few."""
BYTES = 3 * 2**30
"""Bytes of memory that a mutant may use, above that of the libraries."""

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Add,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
NAMES = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "any": "all",
    "all": "any",
    "start": "end",
    "end": "start",
    "fullmatch": "match",
    "match": "fullmatch",
    "lstrip": "rstrip",
    "rstrip": "lstrip",
    "partition": "rpartition",
    "rpartition": "partition",
}


class Mutant(NamedTuple):
    """A changed file.

    Attributes:
        line: Line of the change.
        what: Description of the change, such as `12:4: a + b  ->  a - b`, line and column first.
        tree: The changed file.
    """

    line: int
    what: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    tree = ast.parse(source)
    for path, node in _places(tree, ()):
        for new in _changes(node):
            if ast.dump(new) == ast.dump(node):  # half of 0
                continue
            changed = copy.deepcopy(tree)
            holder: Any = changed
            for step in path[:-1]:
                holder = holder[step] if isinstance(step, int) else getattr(holder, step)
            last = path[-1]
            if isinstance(last, int):
                assert isinstance(holder, list)
                holder[last] = new
            else:
                setattr(holder, last, new)
            ast.fix_missing_locations(changed)
            what = f"{node.lineno}:{node.col_offset}: {_short(node)}  ->  {_short(new)}"
            yield Mutant(node.lineno, what, changed)


Path_ = tuple["str | int", ...]
Changeable = ast.stmt | ast.expr | ast.keyword


def _places(node: ast.AST, path: Path_) -> Iterator[tuple[Path_, Changeable]]:
    """Yield the places that may be changed below a node, with the path to each."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") or (name == "exc" and isinstance(node, ast.Raise)):
            continue
        values = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in values:
            if not isinstance(child, ast.AST) or _is_text(child):
                continue
            place = (*path, name) if index is None else (*path, name, index)
            if isinstance(child, Changeable) and hasattr(child, "lineno"):
                yield place, child
            yield from _places(child, place)


def _is_text(node: ast.AST) -> bool:
    """Return whether a statement is a docstring, an import or the name of a type."""
    if isinstance(node, ast.AnnAssign) or (
        isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
    ):
        return getattr(node.value, "id", "") == "Literal" or "Literal[" in ast.unparse(node)
    return isinstance(node, ast.Import | ast.ImportFrom) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _changes(node: Changeable) -> Iterator[ast.AST]:
    """Yield replacements of a node."""
    new: Any
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            for other in OPERATORS.get(type(op), ()):
                new = copy.copy(node)
                new.op = other()
                yield new
        case ast.Compare(ops=[op]):
            for other in OPERATORS[type(op)]:
                new = copy.copy(node)
                new.ops = [other()]
                yield new
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() as number):
            yield from (ast.Constant(number + 1), ast.Constant(number - 1))
        case ast.Constant(value=float() as number):
            yield from (ast.Constant(number + 1), ast.Constant(number / 2))
        case ast.Constant(value=str() as text):
            yield ast.Constant(f"XX{text}")
        case ast.Name(id=name) if name in NAMES:
            yield ast.Name(NAMES[name], node.ctx)
        case ast.Attribute(attr=name) if name in NAMES:
            yield ast.Attribute(node.value, NAMES[name], node.ctx)
        case ast.If(test=test):
            yield ast.If(ast.UnaryOp(ast.Not(), test), node.body, node.orelse)
            yield ast.If(ast.Constant(False), node.body, node.orelse)
        case ast.IfExp(test=test):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), node.body, node.orelse)
        case ast.keyword(arg=str()):
            new = copy.copy(node)
            new.value = ast.Constant(None)
            yield new
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
    if isinstance(node, ast.Expr | ast.AugAssign | ast.Raise):
        yield ast.Pass()


def _short(node: ast.AST) -> str:
    text = ast.unparse(ast.fix_missing_locations(node)).split("\n")[0]
    return text if len(text) < 90 else f"{text[:86]} ..."


# Running


def warm_up(name: str) -> list[str]:
    """Import the modules that the tests of a file import, and return the tests."""
    os.environ["OMP_NUM_THREADS"] = "1"
    place = Path("tests", name)
    tests = [str(path) for path in sorted((ROOT / place.parent).glob(f"test_{place.name}*.py"))]
    if not tests:
        raise SystemExit(f"no tests {place.parent}/test_{place.name}*.py")
    import hypothesis
    import pytest  # noqa: F401

    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # shrinking takes minutes
    hypothesis.settings.register_profile("mutation", phases=phases, database=None, deadline=None)
    hypothesis.settings.load_profile("mutation")
    for module in ("tests.conftest", "tests.support.ranks", _qualified(name)):
        importlib.import_module(module)
    return tests


class Stopwatch:
    """A pytest plugin that sorts tests by their duration in the first run."""

    def __init__(self) -> None:
        """Start without durations."""
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Sort the tests by duration."""
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Store the duration of a test."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def survives(name: str, mutant: Mutant, tests: Sequence[str], watch: Stopwatch) -> bool:
    """Return whether the tests pass on a mutant; they run in their own process."""
    with tempfile.TemporaryFile("w+") as seconds:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = _run_tests(name, mutant, tests, watch)
                os.write(seconds.fileno(), json.dumps(watch.seconds).encode())
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status == 0 and not watch.seconds:
            seconds.seek(0)
            watch.seconds = json.load(seconds)
    return status == 0


def _qualified(name: str) -> str:
    """Return the import name of a file of the library."""
    return f"{PACKAGE}.{name.replace('/', '.')}"


def _run_tests(name: str, mutant: Mutant, tests: Sequence[str], watch: Stopwatch) -> int:
    """Run the tests on a mutant, without output."""
    import pytest

    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process, also within C code
    qualified = _qualified(name)
    package, _, short = qualified.rpartition(".")
    module = types.ModuleType(qualified)
    module.__file__ = str(ROOT / PACKAGE / f"{name}.py")
    sys.modules[qualified] = module
    exec(compile(mutant.tree, module.__file__, "exec"), module.__dict__)
    exported = vars(sys.modules[package])
    for key, value in list(exported.items()):  # names that the package exports from the file
        if getattr(value, "__module__", None) == qualified and key in module.__dict__:
            exported[key] = module.__dict__[key]
    exported[short] = module
    options = ["-x", "-q", "--hypothesis-seed=0", "-pno:cacheprovider", "-pno:xdist", "--timeout=0"]
    return int(pytest.main([*options, f"--rootdir={ROOT}", *tests], [watch]))


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser("python -m benchmarks.stress.mutation", description=__doc__)
    parser.add_argument("name", help="file of the library, such as algorithm/losses")
    parser.add_argument("--sample", type=int, default=150, help="random mutants; 0 takes all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--seconds", type=float, default=1e9, help="time limit")
    parser.add_argument("--output", type=Path, help="file of results; default: in runs/mutation")
    parser.add_argument("--show", action="store_true", help="list the survivors, and run nothing")
    arguments = parser.parse_args()
    name = arguments.name
    output = arguments.output or Path("runs", "mutation", f"{name.replace('/', '.')}.jsonl")
    output.parent.mkdir(parents=True, exist_ok=True)
    seen = output.read_text().splitlines() if output.exists() else []
    done = {row["what"]: bool(row["killed"]) for row in map(json.loads, seen)}

    everything = list(mutants((ROOT / PACKAGE / f"{name}.py").read_text()))
    chosen = everything
    if 0 < arguments.sample < len(everything):
        chosen = random.Random(arguments.seed).sample(everything, arguments.sample)
    left = [] if arguments.show else [mutant for mutant in chosen if mutant.what not in done]
    watch = Stopwatch()
    if left:
        tests = warm_up(name)
        untouched = Mutant(0, "", ast.parse((ROOT / PACKAGE / f"{name}.py").read_text()))
        if not survives(name, untouched, tests, watch):
            raise SystemExit("the tests fail on the unchanged file")
    end = time.monotonic() + arguments.seconds
    with output.open("a") as file:
        for mutant in left:
            if time.monotonic() > end:
                break
            done[mutant.what] = not survives(name, mutant, tests, watch)
            row = {"what": mutant.what, "killed": done[mutant.what]}
            file.write(json.dumps(row) + "\n")
            file.flush()
    verdicts = [done[mutant.what] for mutant in chosen if mutant.what in done]
    if arguments.show:
        for mutant in sorted(chosen, key=lambda mutant: mutant.line):
            if done.get(mutant.what) is False:
                print(mutant.what)
    print(
        json.dumps(
            {
                "file": name,
                "mutants": len(everything),
                "sampled": len(chosen),
                "run": len(verdicts),
                "killed": sum(verdicts),
                "survived": len(verdicts) - sum(verdicts),
            }
        )
    )


if __name__ == "__main__":
    main()
