"""Kill and stop sampling servers and trainers at random moments, and check that nothing is lost.

    python -m benchmarks.stress.server --kills 20         # servers without vLLM: quick, exact
    python -m benchmarks.stress.server --kills 4 --vllm   # `vcppo serve`, needs vLLM
    python -m benchmarks.stress.server --kills 0 --stalls 4 --stall_s 30 --timeout_s 10

A run of a tiny model samples on servers in separate processes. At moments that depend on the seed:

1. A kill: a server or the trainer gets SIGKILL; a server is restarted at once, the trainer with
   `--ckpt_path=last`.
2. A stall: between the first and the last rollout, all processes of a server get SIGSTOP, and
   SIGCONT after `--stall_s`. The run waits for a stall that is shorter than `--timeout_s`. After a
   longer one the server counts as hanging: the others take over its responses, or it is tried
   again. A stall that the trainer has reported is counted as noticed.

Runs are repeated until the numbers of kills and stalls are reached. In the end each run must have
the rows of all its rollouts, once each and in order, and the weights of an undisturbed run: to the
bit without vLLM. With vLLM, rounding depends on which responses share a batch, so the largest
difference of the weights is only printed.

The last line is JSON: kills of each kind, stalls, stalls that were noticed, runs, lost (runs that
fail the check), the largest difference of a weight, seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_vcppo.common.server_token import VARIABLE
from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.models import loading
from lightning_vcppo.models.hf_folders import write_folder
from tests.support.sampling_server import TOKEN
from tests.support.serving import ServerProcess
from tests.support.tiny_runs import ROLLOUTS, ROOT, TINY_QWEN2

ROLLOUT_COUNT = 8
LIMIT_S = 3600.0
"""Seconds after which a run is stuck, on a busy machine, too."""


class Trainer:
    """A run in a process that can be killed and restarted."""

    def __init__(
        self, directory: Path, servers: list[ServerProcess], options: argparse.Namespace
    ) -> None:
        """Collect the arguments; nothing is started yet."""
        self.directory, self._log = directory, directory.with_suffix(".log")
        actor = directory.parent / "actor"
        token = [f"--model.engine.token_file={servers[0].token_file}"] if options.vllm else []
        self._command = [
            *(sys.executable, "-m", "lightning_vcppo", "fit", f"--model.actor={actor}", *ROLLOUTS),
            *("--loggers=[csv]", "--model.engine.name=vllm_server", *token),
            f"--model.engine.urls={[server.url for server in servers]}",
            *("--model.engine.retry_s=0.1", f"--model.engine.timeout_s={options.timeout_s}"),
            "--rollout_checkpoint.max_time_share=null",
            *("--model.actor_optimizer.lr=0.0001", f"--data.train_size={12 * ROLLOUT_COUNT}"),
            f"--trainer.limit_train_batches={ROLLOUT_COUNT}",
            f"--trainer.default_root_dir={directory}",
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the run, from its last checkpoint if there is one."""
        resume = (self.directory / "checkpoints" / "last.ckpt").exists()
        command = [*self._command, *(["--ckpt_path=last"] if resume else [])]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill the process."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def has_ended(self) -> bool:
        """Return whether the run has ended without an error.

        Raises:
            RuntimeError: If it has ended with an error.
        """
        assert self.process is not None
        code = self.process.poll()
        if code:
            raise RuntimeError(f"exit code {code}: {self.log_end()}")
        return code == 0

    def reported(self) -> int:
        """Return how many faults of servers the run has reported."""
        return self._log.read_text().count("; trying again")

    def log_end(self) -> str:
        """Return the last lines that the run has printed."""
        return self._log.read_text()[-2000:]

    def rollouts(self) -> list[int]:
        """Return the numbers of the rollouts that have a row in metrics.csv."""
        path = self.directory / "metrics.csv"
        if not path.exists():
            return []
        with path.open() as file:
            rows = list(csv.DictReader(file))
        return [int(float(row["step"])) for row in rows if row.get("rollout/reward_mean")]

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights at the end of the run."""
        path = self.directory / "checkpoints" / "last.ckpt"
        state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
        return state


@dataclass
class Faults:
    """Kills and stalls.

    Attributes:
        server: Kills of a server.
        trainer: Kills of the trainer.
        stall: Stalls of a server.
        noticed: Stalls that the trainer has reported.
    """

    server: int = 0
    trainer: int = 0
    stall: int = 0
    noticed: int = 0

    def __add__(self, other: Faults) -> Faults:
        """Return the sums."""
        ours, theirs = vars(self), vars(other)
        return Faults(**{name: ours[name] + theirs[name] for name in ours})


def disturb(
    trainer: Trainer,
    servers: list[ServerProcess],
    planned: list[str],
    chance: random.Random,
    run_s: float,
    stall_s: float,
) -> Faults:
    """Run a trainer to its end with kills and stalls at random moments.

    Args:
        trainer: Trainer that is not started yet.
        servers: Servers that are started.
        planned: Kinds of faults, "kill" or "stall", in order; a run may end before the last one.
        chance: Random numbers for victims and moments.
        run_s: Seconds of an undisturbed run.
        stall_s: Seconds of a stall.

    Raises:
        TimeoutError: If it is stuck.
    """
    faults = Faults()
    left = list(planned)
    trainer.start()
    end = time.monotonic() + LIMIT_S
    next_kill = time.monotonic() + chance.uniform(0.1, 0.9) * run_s
    stall_after = chance.randrange(1, ROLLOUT_COUNT - 1)  # while it samples, and will again
    while not trainer.has_ended():
        if time.monotonic() > end:
            trainer.kill()
            raise TimeoutError(f"{trainer.directory} after {faults}: {trainer.log_end()}")
        time.sleep(0.05)
        done = len(trainer.rollouts())
        if left[:1] == ["kill"] and time.monotonic() >= next_kill:
            faults += _kill(trainer, servers, chance)
        elif left[:1] == ["stall"] and stall_after <= done < ROLLOUT_COUNT - 1:
            time.sleep(chance.uniform(0, 0.5))
            if trainer.has_ended():
                break
            faults += _stall(trainer, chance.choice(servers), stall_s)
        else:
            continue
        left.pop(0)
        next_kill = time.monotonic() + chance.uniform(0.1, 0.9) * run_s
        stall_after = done + chance.randrange(1, ROLLOUT_COUNT)
    return faults


def _kill(trainer: Trainer, servers: list[ServerProcess], chance: random.Random) -> Faults:
    """Kill the trainer or a server, and start it again."""
    victim = trainer if chance.random() < 0.5 else chance.choice(servers)
    victim.kill()
    victim.start()
    return Faults(trainer=1) if isinstance(victim, Trainer) else Faults(server=1)


def _stall(trainer: Trainer, server: ServerProcess, seconds: float) -> Faults:
    """Stop a server for that time."""
    before = trainer.reported()
    server.signal_all(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        server.signal_all(signal.SIGCONT)
    return Faults(stall=1, noticed=int(trainer.reported() > before))


def difference(run: Trainer, other: Trainer) -> float:
    """Return the largest difference between two runs' weights."""
    ours, theirs = run.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stalls", type=int, default=0, help="each of one server")
    parser.add_argument("--stall_s", type=float, default=30.0)
    parser.add_argument("--timeout_s", type=float, default=60.0, help="--model.engine.timeout_s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--vllm", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if not options.vllm:
        os.environ[VARIABLE] = TOKEN
    with tempfile.TemporaryDirectory() as place:
        directory, tokenizer = Path(place), default_tokenizer(320)
        torch.manual_seed(options.seed)
        actor = loading.build_actor(TINY_QWEN2 | {"hidden_size": 64}, tokenizer)
        write_folder(directory / "actor", actor, tokenizer)
        servers = [
            ServerProcess(directory / "actor", directory, vllm=options.vllm)
            for _ in range(options.servers)
        ]
        try:
            for server in servers:
                server.start()
            for server in servers:
                server.wait(LIMIT_S)
            result = stress(directory, servers, options)
        finally:
            for server in servers:
                server.end()
    print(json.dumps(result))


def stress(
    directory: Path, servers: list[ServerProcess], options: argparse.Namespace
) -> dict[str, object]:
    """Disturb runs until the numbers of kills and stalls are reached; return the counts."""
    began, chance = time.monotonic(), random.Random(options.seed)
    planned = ["kill"] * options.kills + ["stall"] * options.stalls
    chance.shuffle(planned)
    total, runs, lost, largest = Faults(), 0, 0, 0.0
    calm = Trainer(directory / "calm", servers, options)
    start = time.monotonic()
    disturb(calm, servers, [], chance, 1.0, 0.0)
    run_s = time.monotonic() - start
    while left := planned[total.server + total.trainer + total.stall :]:
        run = Trainer(directory / f"run_{runs}", servers, options)
        start = time.monotonic()
        faults = disturb(run, servers, left, chance, run_s, options.stall_s)
        took_s = time.monotonic() - start
        gap, rows = difference(run, calm), run.rollouts()
        whole = rows == list(range(1, ROLLOUT_COUNT + 1)) == calm.rollouts()
        print(
            f"run {runs}: {faults} in {took_s:.0f} s, undisturbed {run_s:.0f} s; rollouts {rows}; "
            f"largest difference {gap:.1e}",
            flush=True,
        )
        run_s = min(run_s, took_s)  # the first waited for a busy machine
        total, runs, largest = total + faults, runs + 1, max(largest, gap)
        lost += not (whole and (options.vllm or gap == 0))
    return {
        "kills": {"server": total.server, "trainer": total.trainer},
        "stalls": total.stall,
        "noticed": total.noticed,
        "runs": runs,
        "lost": lost,
        "largest_difference": largest,
        "seconds": round(time.monotonic() - began),
    }


if __name__ == "__main__":
    main()
