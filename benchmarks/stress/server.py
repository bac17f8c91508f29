"""Kill sampling servers and trainers at random moments, and check that nothing is lost.

    python -m benchmarks.stress.server --kills 20         # servers without vLLM: quick, exact
    python -m benchmarks.stress.server --kills 4 --vllm   # `vcppo serve`, needs vLLM

A run of a tiny model samples on servers in separate processes. At moments that depend on the seed,
a server or the trainer gets SIGKILL; a server is restarted at once, the trainer with
`--ckpt_path=last`. Runs are repeated until the number of kills is reached. In the end each run must
have the rows of all its rollouts, once each and in order, and the weights of an undisturbed run: to
the bit without vLLM. With vLLM, rounding depends on which responses share a batch, so the largest
difference of the weights is only printed.

The last line is JSON: kills of each kind, runs, lost (runs that fail the check), seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
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
        self, actor: Path, directory: Path, servers: list[ServerProcess], vllm: bool
    ) -> None:
        """Collect the arguments; nothing is started yet."""
        self.directory, self._log = directory, directory.with_suffix(".log")
        token = [f"--model.engine.token_file={servers[0].token_file}"] if vllm else []
        self._command = [
            *(sys.executable, "-m", "lightning_vcppo", "fit", f"--model.actor={actor}", *ROLLOUTS),
            *("--loggers=[csv]", "--model.engine.name=vllm_server", *token),
            f"--model.engine.urls={[server.url for server in servers]}",
            *("--model.engine.retry_s=0.1", "--rollout_checkpoint.max_time_share=null"),
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

    def log_end(self) -> str:
        """Return the last lines that the run has printed."""
        return self._log.read_text()[-2000:]

    def rollouts(self) -> list[int]:
        """Return the numbers of the rollouts that have a row in metrics.csv."""
        with (self.directory / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        return [int(float(row["step"])) for row in rows if row.get("rollout/reward_mean")]

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights at the end of the run."""
        path = self.directory / "checkpoints" / "last.ckpt"
        state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
        return state


def disturb(
    trainer: Trainer, servers: list[ServerProcess], kills: int, chance: random.Random, run_s: float
) -> list[str]:
    """Run a trainer to its end with kills at random moments; return the kinds that were killed.

    Args:
        trainer: Trainer that is not started yet.
        servers: Servers that are started.
        kills: Largest number of kills.
        chance: Random numbers for victims and moments.
        run_s: Seconds of an undisturbed run.

    Raises:
        TimeoutError: If it is stuck.
    """
    killed: list[str] = []
    trainer.start()
    end = time.monotonic() + LIMIT_S
    next_kill = time.monotonic() + chance.uniform(0.1, 0.9) * run_s
    while not trainer.has_ended():
        if time.monotonic() > end:
            trainer.kill()
            raise TimeoutError(f"{trainer.directory} after kills of {killed}: {trainer.log_end()}")
        time.sleep(0.05)
        if len(killed) == kills or time.monotonic() < next_kill:
            continue
        victim = trainer if chance.random() < 0.5 else chance.choice(servers)
        victim.kill()
        victim.start()
        killed.append("trainer" if isinstance(victim, Trainer) else "server")
        next_kill = time.monotonic() + chance.uniform(0.1, 0.9) * run_s
    return killed


def difference(run: Trainer, other: Trainer) -> float:
    """Return the largest difference between two runs' weights."""
    ours, theirs = run.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--vllm", action="store_true")
    options = parser.parse_args()
    began, chance = time.monotonic(), random.Random(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    if not options.vllm:
        os.environ[VARIABLE] = TOKEN
    killed: list[str] = []
    runs = lost = 0
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
            calm = Trainer(directory / "actor", directory / "calm", servers, options.vllm)
            start = time.monotonic()
            disturb(calm, servers, 0, chance, 1.0)
            run_s = time.monotonic() - start
            while len(killed) < options.kills:
                run = Trainer(directory / "actor", directory / f"run_{runs}", servers, options.vllm)
                start = time.monotonic()
                victims = disturb(run, servers, options.kills - len(killed), chance, run_s)
                run_s = min(run_s, time.monotonic() - start)  # the first waited for a busy machine
                gap, rows = difference(run, calm), run.rollouts()
                whole = rows == list(range(1, ROLLOUT_COUNT + 1)) == calm.rollouts()
                good = whole and (options.vllm or gap == 0)
                print(
                    f"run {runs}: killed {victims}; rollouts {rows}; largest difference {gap:.1e}"
                )
                killed, runs, lost = killed + victims, runs + 1, lost + (not good)
        finally:
            for server in servers:
                server.end()
    counts = {kind: killed.count(kind) for kind in ("server", "trainer")}
    seconds = round(time.monotonic() - began)
    print(json.dumps({"kills": counts, "runs": runs, "lost": lost, "seconds": seconds}))


if __name__ == "__main__":
    main()
