"""What all tables share: run `vcppo` on something wrong, get the line with which it ends."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from lightning_vcppo.common.errors import in_one_line
from lightning_vcppo.data.datamodule import AIMEDataModule
from tests.support.tiny_runs import ROLLOUTS, run_program

ERROR = "vcppo: error: "
NOBODY = 65534


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch):
    """Let `--debug` set the variable for its own test alone."""
    monkeypatch.setenv("VCPPO_DEBUG", "")


def files(directory: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of all files below a directory."""
    paths = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def directories(directory: Path) -> set[str]:
    """Return all directories below a directory."""
    return {str(path) for path in directory.rglob("*") if path.is_dir()}


def the_line(error: str) -> str:
    """Check that a program's last words are one line of ours; return what it says."""
    assert "Traceback" not in error and error.count(ERROR) == 1, error
    line = error.splitlines()[-1]
    assert line.startswith(ERROR) and len(line) < 650, line
    return line.removeprefix(ERROR)


@pytest.fixture
def mistake(tiny_actor, capfd):
    """Return a function that runs `vcppo` and returns the line with which it ends.

    It checks the exit code, and that no file has been written or touched, whatever loggers there
    are.
    """

    def run(*arguments, command="fit", base=ROLLOUTS, actor=tiny_actor, leaves=()):
        given = [command, *([f"--model.actor={actor}"] if actor else []), *base]
        loggers = "[csv]" if leaves else "[csv,wandb,tensorboard]"  # which W&B would take time for
        given += [f"--loggers={loggers}", "--trainer.default_root_dir=run", *map(str, arguments)]
        # Seen from within: as another user, not from the root.
        before, were = files(Path()), directories(Path())
        with pytest.raises(SystemExit) as end:
            run_program(*given)
        line = the_line(capfd.readouterr().err)
        assert end.value.code == 2, line
        after = files(Path())
        written = [path for path, state in after.items() if before.get(path) != state]
        strange = [path for path in written if not any(name in path for name in leaves)]
        assert strange == [] and before.keys() <= after.keys(), line
        assert leaves or directories(Path()) == were, line
        return line

    return run


@pytest.fixture
def command_mistake(capfd):
    """Return a function that runs `vcppo` as it is told; without a model."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            run_program(*arguments)
        captured = capfd.readouterr()
        assert (end.value.code, captured.out) == (2, "")
        return the_line(captured.err)

    return run


@pytest.fixture
def data_mistake(tiny_actor, capfd):
    """Return a function that sets training data up as `vcppo fit` does, without the rest of it."""

    def setup(path, **settings):
        module = AIMEDataModule(
            path=str(path), tokenizer=str(tiny_actor), val_size=1, prompts_per_rollout=2, **settings
        )
        with pytest.raises(SystemExit) as end, in_one_line():
            module.setup("fit")
        assert end.value.code == 2
        return the_line(capfd.readouterr().err)

    return setup


@pytest.fixture
def problems(tmp_path):
    """Return a function that writes JSON Lines, twelve right rows and others, and its flag."""

    def write(*rows, name="problems.jsonl"):
        right = [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(12)]
        lines = [row if isinstance(row, str) else json.dumps(row) for row in [*right, *rows]]
        (tmp_path / name).write_text("\n".join(lines))
        return f"--data.path={name}"

    return write


@pytest.fixture
def model_copy(tmp_path):
    """Return a function that copies a model's directory to where it may be spoiled."""

    def copy(source, name="model"):
        shutil.copytree(source, tmp_path / name)
        return tmp_path / name

    return copy


@pytest.fixture
def open_directory(monkeypatch):
    """Work in a directory that every user may enter; those of pytest are closed."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    monkeypatch.chdir(directory)
    yield directory
    shutil.rmtree(directory)


@contextmanager
def without_privileges():
    """Be an ordinary user for the body; root may read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
