"""Runs of two processes of which one stands still or dies: they end, and say where they were."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.support.tiny_runs import ROLLOUTS, ROOT

LIMIT_S = 150
"""Imports, networks and a rollout in two processes on a busy machine; each case is killed then."""


class Run:
    """`vcppo fit` in a session of its own, of which nothing is left in the end."""

    def __init__(self, actor, folder, rank, how, timeout="0:30:00", strategy="DDPStrategy"):
        self.stopped, self.log = folder / "stopped", folder / "log"
        words = [
            *("fit", f"--model.actor={actor}", *ROLLOUTS, "--loggers=[csv]"),
            *("--trainer.devices=2", f"--trainer.default_root_dir={folder / 'run'}"),
            f"--trainer.strategy={strategy}",
            f"--trainer.strategy.timeout={timeout}",
            "--trainer.callbacks+=tests.support.stopping_ranks.OneRankStops",
            f"--trainer.callbacks.rank={rank}",
            f"--trainer.callbacks.how={how}",
            f"--trainer.callbacks.path={self.stopped}",
        ]
        self.ends_at = time.monotonic() + LIMIT_S
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lightning_vcppo", *words],
                env=os.environ | {"PYTHONPATH": f"{ROOT}"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_for_the_stop(self):
        """Wait until the rank has stopped; the other then waits for it within a second or two."""
        while not self.stopped.exists():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < self.ends_at, self.text
            time.sleep(0.2)
        time.sleep(2)

    def wait(self):
        """Return the exit code."""
        return self.process.wait(max(0.1, self.ends_at - time.monotonic()))

    @property
    def text(self):
        return self.log.read_text()

    def left(self):
        """Return the processes of the session that are still there."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,stat=", "-s", str(self.process.pid)], capture_output=True, text=True
        )
        return [line for line in listed.stdout.splitlines() if "Z" not in line]

    def ends_within(self, seconds):
        """Tell whether no process is left after so long."""
        end = time.monotonic() + seconds
        while self.left() and time.monotonic() < end:
            time.sleep(0.2)
        return not self.left()


@pytest.fixture
def start(tiny_actor, tmp_path):
    started = []

    def begin(*args, **kwargs):
        started.append(Run(tiny_actor, tmp_path, *args, **kwargs))
        return started[-1]

    yield begin
    for run in started:
        with suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()


@pytest.mark.parametrize(("strategy", "sleeper"), [("DDPStrategy", 0), ("FSDP2Strategy", 1)])
def test_a_rank_that_waits_too_long_ends_the_run_and_says_where(start, strategy, sleeper):
    run = start(sleeper, "sleep", timeout="0:00:25", strategy=strategy)
    assert run.wait() != 0
    assert run.ends_within(20), run.text
    waited = re.search(
        rf"error: rank {1 - sleeper} has waited (\d+) s in '([\w ]+)' for other ranks.*"
        r"--trainer\.strategy\.timeout",
        run.text,
    )
    assert waited and 24 <= int(waited[1]) <= 40, run.text
    assert "Traceback" not in run.text.partition("error: ")[0]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["die", "raise"])
def test_a_rank_that_ends_ends_the_others(start, rank, how):
    run = start(rank, how)
    run.wait_for_the_stop()
    assert run.ends_within(20), run.text
    assert run.wait() != 0
    if how == "raise":
        assert "error: this rank alone has met a mistake" in run.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("sleeper", [0, 1])
def test_a_signal_ends_a_run_that_stands_still(start, number, sleeper):
    run = start(sleeper, "sleep")
    run.wait_for_the_stop()
    if number == signal.SIGINT:
        os.killpg(run.process.pid, number)  # as a terminal does
    else:
        run.process.send_signal(number)
    assert run.ends_within(25), run.text
    assert run.wait() == 128 + number
    assert re.search(
        rf"rank 0 has been in '[\w ]+' \(\S+:\d+\) for \d+ s; ended by {number.name}; "
        "the last checkpoint stays",
        run.text,
    ), run.text


def test_no_process_outlives_the_first(start):
    run = start(1, "sleep")
    run.wait_for_the_stop()
    run.process.kill()
    run.process.wait()
    assert run.ends_within(10), run.text
