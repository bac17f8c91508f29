"""Runs that die: what a checkpoint holds, what is on the disk, and whose directory it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose

from lightning_vcppo.checkpointing.atomic_io import AtomicCheckpointIO
from lightning_vcppo.checkpointing.interruptions import Interruptions
from lightning_vcppo.checkpointing.run_directory import choose_start, choose_weights
from lightning_vcppo.cli import lightning_cli
from lightning_vcppo.common.files import complete_file, put_in_place, recover, whole_lines
from lightning_vcppo.dashboards.metrics_csv import MetricsFile
from lightning_vcppo.dashboards.rollout_log import RolloutLog
from tests.support.rows import every
from tests.support.tiny_runs import ROLLOUTS, ROOT, logged, run_program, vcppo

TIMES = ("time/", "rollout/tokens_per_second")


def fit(actor: Path, directory: Path, *arguments: object) -> None:
    vcppo(
        *("fit", f"--model.actor={actor}", *ROLLOUTS, "--loggers=[csv]"),
        *("--model.actor_optimizer.lr=1e-3", f"--trainer.default_root_dir={directory}", *arguments),
    )


def state(directory: Path) -> dict[str, object]:
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)


def rows(directory: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in logged(directory)]


# Killed and resumed


@pytest.mark.thorough
@pytest.mark.parametrize(("kills", "batches"), [(1, 3), (3, 7)])
def test_a_killed_run_ends_as_one_never_killed(kills, batches):
    """Some of the kills of `python -m benchmarks.resume`."""
    command = [sys.executable, "-m", "benchmarks.resume", f"--kills={kills}", "--seed=6"]
    command += [f"--batches={batches}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["kills"], summary["identical"]) == (kills, kills), done.stdout


class Signal(Callback):
    """Send a signal to this process in the middle of a rollout."""

    def __init__(self, number: int, rollout: int) -> None:
        self.number, self.rollout = number, rollout

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if pl_module.rollouts_done == self.rollout - 1:
            self.rollout = 0  # once
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def whole(tiny_actor, tmp_path_factory):
    """A run that nobody has stopped."""
    directory = tmp_path_factory.mktemp("whole")
    fit(tiny_actor, directory)
    return directory


@pytest.mark.parametrize(
    ("number", "code"), every(2, [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
)
def test_a_signal_lets_the_rollout_end_and_saves(number, code, tiny_actor, whole, tmp_path, capfd):
    stop = [
        "--trainer.callbacks+=tests.integration.test_resume.Signal",
        "--trainer.callbacks.rollout=2",
    ]
    stop += [f"--trainer.callbacks.number={int(number)}", "--rollout_checkpoint.every_n_rollouts=9"]
    with pytest.raises(SystemExit) as end:
        fit(tiny_actor, tmp_path, *stop)
    assert end.value.code == code
    assert "saved after rollout 2; the same command with --ckpt_path=last" in capfd.readouterr().out
    assert state(tmp_path)["rollouts_done"] == 2
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    fit(tiny_actor, tmp_path, "--ckpt_path=last")
    assert rows(tmp_path) == rows(whole)
    ours, expected = state(tmp_path)["state_dict"], state(whole)["state_dict"]
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


class EarlySignal(Callback):
    """Send SIGTERM when Lightning handles signals and the run has not begun."""

    def on_train_start(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_while_a_run_is_loading_ends_it_before_its_first_rollout(
    tiny_actor, tmp_path, capfd
):
    with pytest.raises(SystemExit) as end:
        fit(tiny_actor, tmp_path, "--trainer.callbacks+=tests.integration.test_resume.EarlySignal")
    assert end.value.code == 143
    assert "SIGTERM: nothing was learned yet" in capfd.readouterr().out
    assert not [*tmp_path.rglob("*.ckpt")]
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.thorough
def test_a_signal_saves_what_is_sampled_ahead(tiny_actor, tmp_path, capfd):
    engine = "--model.engine={name: transformers_copy, rollouts_ahead: 1}"
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(tiny_actor, whole, engine)
    stop = [
        "--trainer.callbacks+=tests.integration.test_resume.Signal",
        "--trainer.callbacks.rollout=2",
        f"--trainer.callbacks.number={int(signal.SIGTERM)}",
    ]
    with pytest.raises(SystemExit) as end:
        fit(tiny_actor, stopped, engine, *stop)
    assert end.value.code == 143 and "saved after rollout 2" in capfd.readouterr().out
    assert not [t for t in threading.enumerate() if t.name == "rollout ahead"]
    assert len(state(stopped)["rollouts_ahead"]["rollouts"]) == 1
    fit(tiny_actor, stopped, engine, "--ckpt_path=last")
    assert rows(stopped) == rows(whole)
    ours, expected = state(stopped)["state_dict"], state(whole)["state_dict"]
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_a_second_ctrl_c_leaves_at_once():
    if not (child := os.fork()):
        interruptions = Interruptions()
        interruptions.listen()
        os.kill(os.getpid(), signal.SIGINT)
        if interruptions.pending == signal.SIGINT:
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def test_a_signal_to_requeue_waits_until_it_is_asked_for():
    seen = []
    before = signal.getsignal(signal.SIGUSR1)
    mine = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGUSR1, _HandlersCompose([lambda number, frame: seen.append(number)]))
    try:
        interruptions = Interruptions()
        interruptions.listen()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (interruptions.pending, seen) == (signal.SIGUSR1, [])
        assert interruptions.requeue(interruptions.pending)
        assert (interruptions.pending, seen) == (0, [signal.SIGUSR1])
        assert not interruptions.requeue(signal.SIGTERM)
    finally:
        for number, handler in {signal.SIGUSR1: before, **mine}.items():
            signal.signal(number, handler)


def test_ctrl_c_outside_the_rollouts_has_the_same_exit_code(monkeypatch):
    def interrupted(arguments):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    monkeypatch.setattr(lightning_cli, "main", interrupted)
    with pytest.raises(SystemExit) as end:
        run_program("fit")
    assert end.value.code == 130


def test_a_run_that_was_stopped_early_can_go_on(tiny_actor, whole, tmp_path):
    fit(tiny_actor, tmp_path, "--guard_rails.on_violation=stop", "--trainer.val_check_interval=1")
    done = state(tmp_path)["rollouts_done"]
    assert done < 3
    fit(tiny_actor, tmp_path, "--ckpt_path=last")
    assert [r["step"] for r in rows(tmp_path) if "rollout/accuracy" in r] == [1, 2, 3]
    ours, expected = state(tmp_path)["state_dict"], state(whole)["state_dict"]
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


# Whose directory


def test_a_run_is_not_overwritten_unless_asked_to(tiny_actor, tmp_path):
    fit(tiny_actor, tmp_path, "--trainer.limit_train_batches=1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    choices = "--ckpt_path=last.* another --trainer.default_root_dir.* --overwrite"
    with pytest.raises(ValueError, match=f"contains a run .metrics.csv.*{choices}") as refusal:
        fit(tiny_actor, tmp_path)
    assert "\n" not in str(refusal.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fit(tiny_actor, tmp_path, "--trainer.limit_train_batches=2", "--overwrite")
    assert [row["step"] for row in rows(tmp_path) if "rollout/accuracy" in row] == [1, 2]
    assert {path.name for path in (tmp_path / "evaluation").glob("*.jsonl")} == {
        "rollouts_000002.jsonl"
    }
    assert "overwrite: false" in (tmp_path / "config.yaml").read_text()


def test_without_a_checkpoint_the_run_starts_from_scratch(tiny_actor, tmp_path, caplog):
    (tmp_path / "metrics.csv").write_text("rollout/accuracy,step\r\n0.5,1\r\n")  # killed after it
    fit(tiny_actor, tmp_path, "--ckpt_path=last", "--trainer.limit_train_batches=1")
    assert [row["step"] for row in rows(tmp_path) if "rollout/accuracy" in row] == [1]
    assert "no checkpoints/last.ckpt yet: starting from scratch" in caplog.text
    with pytest.raises(ValueError, match=r"elsewhere has no checkpoints/last\.ckpt"):
        choose_weights(tmp_path / "elsewhere", "last")


def test_a_start_is_chosen(tmp_path, monkeypatch):
    run, other = tmp_path / "run", tmp_path / "other"
    best, elsewhere = run / "checkpoints" / "best.ckpt", tmp_path / "elsewhere.ckpt"
    elsewhere.touch()
    assert choose_start(run, None, overwrite=False) is None
    best.parent.mkdir(parents=True)
    best.touch()
    for directory in (run, other):  # it goes on, or begins where there is none
        assert choose_start(directory, str(best), overwrite=False) == str(best)
    with pytest.raises(ValueError, match=r"contains a run .checkpoints/best\.ckpt"):
        choose_start(run, str(elsewhere), overwrite=False)
    with pytest.raises(ValueError, match="--overwrite starts a new run, --ckpt_path=last"):
        choose_start(run, "last", overwrite=True)
    (run / "hpc_ckpt_1.ckpt").touch()
    monkeypatch.setattr(
        "lightning_vcppo.checkpointing.run_directory.SLURMEnvironment.detect", lambda: True
    )
    assert choose_start(run, None, overwrite=False) == "hpc"
    with pytest.raises(ValueError, match=r"no such file .*; did you mean .*elsewhere\.ckpt"):
        choose_start(run, str(elsewhere.with_name("elsewere.ckpt")), overwrite=True)
    assert best.exists()  # nothing is overwritten
    assert choose_start(run, str(elsewhere), overwrite=True) == str(elsewhere)
    assert not list(
        run.rglob("*.ckpt")
    )  # a kill before the first checkpoint finds none to go on from


def test_a_fast_dev_run_writes_nothing(tiny_actor, tmp_path):
    directory = tmp_path / "run"
    fit(tiny_actor, directory, "--trainer.fast_dev_run=true")
    assert not directory.exists()
    fit(tiny_actor, directory, "--trainer.limit_train_batches=1")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    fit(tiny_actor, directory, "--trainer.fast_dev_run=true")
    assert before == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# Files


def test_a_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "directory" / "file.txt"
    for content in ("first", "second"):
        with complete_file(path) as file:
            file.write(content)
    with pytest.raises(KeyError), complete_file(path) as file:
        file.write("thi")
        raise KeyError
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"rollouts_done": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(9), "b": lambda: 0}, path)
    assert torch.load(path) == {"rollouts_done": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_takes_the_place_of_another(tmp_path):
    directory, unfinished = tmp_path / "actor", tmp_path / "actor.tmp"
    for content in ("first", "second"):
        unfinished.mkdir()
        (unfinished / "weights").write_text(content)
        put_in_place(unfinished, directory)
    assert (directory / "weights").read_text() == "second"
    assert list(tmp_path.iterdir()) == [directory]
    directory.rename(tmp_path / "actor.old")  # killed between the two names
    recover(directory)
    assert (directory / "weights").read_text() == "second"


def test_metrics_go_on_after_the_rows_that_are_there(tmp_path):
    def write(*metrics):
        file = MetricsFile(str(tmp_path))
        for step, row in metrics:
            file.log_metrics(row, step)
            file.save()
        return file

    write((1, {"a": 0.1}), (2, {"a": 0.2}), (2, {"eval": 1.0}))
    path = tmp_path / "metrics.csv"
    assert path.read_bytes() == b"a,eval,step\r\n0.1,,1\r\n0.2,,2\r\n,1.0,2\r\n"
    with path.open("a") as half:
        half.write("0.3")
    file = write((3, {"a": 0.3}))
    assert file.rows == 4 and path.read_text().splitlines()[-1] == "0.3,,3"
    file.rewind(2)
    assert path.read_bytes() == b"a,step\r\n0.1,1\r\n0.2,2\r\n"
    write((3, {"b": 0.5}))
    assert path.read_bytes() == b"a,b,step\r\n0.1,,1\r\n0.2,,2\r\n,0.5,3\r\n"
    file.rewind(0)
    assert not path.exists()


def test_diagnostics_drop_half_a_line_and_what_is_to_come(tmp_path):
    log = RolloutLog(tmp_path / "positions.jsonl")
    for rollout in (1, 2, 3):
        log.append({"rollout": rollout})
    with log.path.open("a") as half:
        half.write('{"rollout": 2')
    log.rewind(2)
    assert whole_lines(log.path) == ['{"rollout": 1}\n', '{"rollout": 2}\n']
