"""Runs of two ranks of which one stands still or dies.

`-m tests.support.stopping_ranks ACTOR FOLDER`: Python and its libraries start once; ranks are forks
that find their number in the environment, as under torchrun. What became of each case is in
`FOLDER/cases.json`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback

from lightning_vcppo.cli.main import run
from tests.support.rank_run import free_port
from tests.support.tiny_runs import LAUNCHED, ROLLOUTS

LIMIT_S = 90
"""Of a case, on a busy machine; what is left then is killed."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        rank: Which stops, in its second rollout.
        how: "sleep" for ever, "die" as if the system had killed it, "raise" a mistake.
        send: Signal to both ranks when one has stopped; 0 sends none.
        orphan: Kill their launcher then.
        strategy: Class of the Trainer's.
        timeout: Of the strategy.
    """

    rank: int
    how: str
    send: int = 0
    orphan: bool = False
    strategy: str = "DDPStrategy"
    timeout: str = "0:30:00"


CASES = {
    "waits_ddp": Case(0, "sleep", timeout="0:00:05"),
    "waits_fsdp2": Case(1, "sleep", timeout="0:00:05", strategy="FSDP2Strategy"),
    "dies": Case(1, "die"),
    "raises": Case(0, "raise"),
    "sigterm": Case(1, "sleep", send=signal.SIGTERM),
    "ctrl_c": Case(0, "sleep", send=signal.SIGINT),
    "orphan": Case(1, "sleep", orphan=True),
}


class OneRankStops(Callback):
    """Stops one rank in its second rollout.

    Args:
        rank: Which one.
        how: See `Case`.
        path: File that appears when it happens.
    """

    def __init__(self, rank: int, how: str, path: str) -> None:
        self.rank, self.how, self.path = rank, how, Path(path)
        self.rollouts = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rollouts += 1
        if self.rollouts < 2 or trainer.global_rank != self.rank:
            return
        self.path.write_text("now")
        if self.how == "sleep":
            time.sleep(10_000)
        if self.how == "raise":
            raise ValueError("this rank alone has met a mistake")
        os._exit(9)


def as_rank(actor: str, place: Path, case: Case, port: int, rank: int) -> None:
    """Run `vcppo` as one of two ranks."""
    for variable in LAUNCHED:
        os.environ.pop(variable, None)
    os.environ |= {"TORCHELASTIC_RUN_ID": place.name, "GROUP_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    log = os.open(place / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (place / f"{rank}.pid").write_text(str(os.getpid()))
    sys.argv = [
        *("vcppo", "fit", f"--model.actor={actor}", *ROLLOUTS, "--loggers=[csv]"),
        *("--trainer.devices=2", f"--trainer.default_root_dir={place / 'run'}"),
        f"--trainer.strategy={case.strategy}",
        f"--trainer.strategy.timeout={case.timeout}",
        "--trainer.callbacks+=tests.support.stopping_ranks.OneRankStops",
        f"--trainer.callbacks.rank={case.rank}",
        f"--trainer.callbacks.how={case.how}",
        f"--trainer.callbacks.path={place / 'stopped'}",
    ]
    run()


def launch(actor: str, place: Path, case: Case) -> None:
    """Start both ranks and stay until they have ended."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    each = [
        fork.Process(target=as_rank, args=(actor, place, case, port, rank)) for rank in range(2)
    ]
    for process in each:
        process.start()
    for process in each:
        process.join()
    (place / "codes.json").write_text(json.dumps([process.exitcode for process in each]))


def is_there(pid: int) -> bool:
    """Tell whether a process is there and not only waits for its parent to hear of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def do(actor: str, place: Path, case: Case) -> dict[str, object]:
    """Do a case; return the seconds from the stop to each rank's end (None: never), and codes."""
    place.mkdir(parents=True)
    launcher = multiprocessing.get_context("fork").Process(target=launch, args=(actor, place, case))
    launcher.start()
    limit = time.monotonic() + LIMIT_S
    while not (place / "stopped").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    stopped = time.monotonic()
    pids = [int((place / f"{rank}.pid").read_text()) for rank in range(2)]
    if case.send or case.orphan:
        time.sleep(2)  # the other waits for it by now
    for pid in pids if case.send else []:
        os.kill(pid, case.send)
    if case.orphan:
        launcher.kill()
    ended: list[float | None] = [None, None]
    while None in ended and time.monotonic() < limit:
        for rank, pid in enumerate(pids):
            if ended[rank] is None and not is_there(pid):
                ended[rank] = time.monotonic() - stopped
                for other in pids:  # what torchrun does when a rank has ended with an error
                    if not case.send and not case.orphan and is_there(other):
                        os.kill(other, signal.SIGTERM)
        time.sleep(0.1)
    for pid in pids:
        if is_there(pid):
            os.kill(pid, signal.SIGKILL)
    launcher.join(10)
    launcher.kill()
    codes = place / "codes.json"
    return {"ended": ended, "codes": json.loads(codes.read_text()) if codes.exists() else None}


def main(actor: str, folder: str, *names: str) -> None:
    """Do the named cases, or all."""
    torch.set_num_threads(1)
    found = {
        name: asdict(case) | do(actor, Path(folder, name), case)
        for name, case in CASES.items()
        if not names or name in names
    }
    Path(folder, "cases.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
