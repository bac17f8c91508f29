"""Runs of two ranks of which one stands still or dies.

`-m tests.support.stopping_ranks ACTOR DIRECTORY`: Python and its libraries start once; ranks are
forks that find their number in the environment, as under torchrun. What became of each case is in
`DIRECTORY/cases.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback

from lightning_vcppo.cli.main import run
from tests.support.forks import FORK, start_ranks
from tests.support.tiny_runs import ROLLOUTS

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


def as_rank(actor: str, place: Path, case: Case) -> None:
    """Run `vcppo` as one of two ranks."""
    (place / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
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
    each = start_ranks(as_rank, (actor, place, case), 2, place)
    for process in each:
        process.join()
    (place / "codes.json").write_text(json.dumps([process.exitcode for process in each]))


def is_there(pid: int) -> bool:
    """Return whether a process is there and not only waits for its parent to hear of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or read
        return False


def do(actor: str, place: Path, case: Case) -> dict[str, object]:
    """Do a case; return the seconds from the stop to each rank's end (None: never), and codes."""
    place.mkdir(parents=True)
    launcher = FORK.Process(target=launch, args=(actor, place, case))
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


def main(actor: str, directory: str, *names: str) -> None:
    """Do the named cases, or all."""
    torch.set_num_threads(1)
    chosen = {name: case for name, case in CASES.items() if not names or name in names}
    with ThreadPoolExecutor(4) as pool:  # mostly they wait
        ends = pool.map(lambda name: do(actor, Path(directory, name), chosen[name]), chosen)
        found = {name: asdict(chosen[name]) | end for name, end in zip(chosen, ends, strict=True)}
    Path(directory, "cases.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
