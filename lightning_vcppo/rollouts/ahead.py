"""Sample the next rollouts while one is learned from, one thread beside that of training.

What makes it reproducible:

1. *Who samples what.* The first rollout is sampled in its step. In each step, as soon as its
   rollout is there, weights are handed over to the engine, and the prompts of the next `depth`
   steps are sampled from them, while the step learns. So with a depth of 1 each rollout comes from
   weights that are one rollout's updates behind, and with n the weights are handed over every n
   rollouts and are 1 to n behind. Which weights sample a rollout never depends on time.
2. *A frozen policy* (value pretraining) has one version of weights: nothing is behind, and the
   queue is kept full.
3. *The engine has one user.* Whoever else needs it, such as an evaluation, waits for what is being
   sampled, then has it take the weights of the moment.
4. *Checkpoints* wait for what is being sampled and hold it, so a resumed run learns from the same
   responses of the same weights. Nothing is sampled twice.

Nothing here waits for other ranks but `hand_over` and `state_dict`, which all ranks call alike.

Shapes: B responses.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_vcppo.algorithm.statistics import masked_mean
from lightning_vcppo.common import places
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.collectives import Ranks, gather
from lightning_vcppo.distributed.standstill import in_place
from lightning_vcppo.rollouts.rollout import Rollout, join
from lightning_vcppo.rollouts.sampler import Sampler
from lightning_vcppo.settings import SamplingSettings

PATIENCE_S = 30.0
"""Seconds in which a thread that was told to end may do so; an engine looks between two tokens."""


@dataclass(frozen=True)
class Vantage:
    """Where and when a step samples.

    Attributes:
        version: Names the actor's weights, as `GenerationEngine.take_weights` has it.
        updates: Updates that the actor has had.
        rank: Of this process.
        device: Of rollouts.
        largest: Returns the largest of one number a rank.
    """

    version: object
    updates: int
    rank: int
    device: torch.device
    largest: Callable[[int], int] = int


class _Job:
    """A rollout that is being sampled in a thread of its own, or was."""

    def __init__(self, prompt_ids: list[list[int]], updates: int) -> None:
        """Say of which prompts, one a response, and how many updates the weights have had."""
        self.prompt_ids, self.updates = prompt_ids, updates
        self.began = self.ended = 0.0
        self._rollout: Rollout | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._told_to_end = threading.Event()

    @classmethod
    def done(cls, rollout: Rollout) -> _Job:
        """Return that of a rollout that a checkpoint has."""
        lengths = rollout.prompt_lengths_B.tolist()
        ids_BL = rollout.input_ids_BL[:, : max(lengths)].tolist()
        assert rollout.versions_B is not None
        prompts = [ids[:length] for ids, length in zip(ids_BL, lengths, strict=True)]
        job = cls(prompts, int(rollout.versions_B[0]))
        job._rollout = rollout
        return job

    def start(self, sample: Callable[[], Rollout], after: _Job | None) -> None:
        """Sample in another thread, once the job before has ended."""
        self._thread = threading.Thread(
            target=self._run, args=(sample, after), name="rollout ahead", daemon=True
        )
        self._thread.start()

    def _run(self, sample: Callable[[], Rollout], after: _Job | None) -> None:
        if after is not None:
            after.wait()
        self.began = perf_counter()
        try:
            with places.aside(self._told_to_end):
                places.move_on()
                self._rollout = sample()
        except BaseException as error:  # raised again by `result`, in the thread that trains
            self._error = error
        self.ended = perf_counter()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it has ended, well or not."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def result(self) -> Rollout:
        """Wait for the rollout and return it; raise what sampling has raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._rollout is not None
        return self._rollout

    def to_plain(self) -> dict[str, Any] | None:
        """Return the rollout as a checkpoint takes it; None if there is none, or none yet."""
        return None if self._rollout is None else self._rollout.to(torch.device("cpu")).to_plain()

    def tell_to_end(self) -> None:
        """Have it end at the next token."""
        self._told_to_end.set()


class RolloutsAhead:
    """Samples up to `depth` rollouts ahead of the one that is learned from.

    Attributes:
        depth: Rollouts; with 0 it is not used.
    """

    def __init__(self, depth: int, sampler: Sampler) -> None:
        """Make the sampler wait for the rollouts that it samples here."""
        self.depth, self._sampler = depth, sampler
        self._jobs: deque[_Job] = deque()  # in order of their steps
        self._shares = _Shares()
        self._taken = self._updates = 0
        sampler.before_use = self.wait
        # A thread that computes while Python ends would bring the process down.
        weakref.finalize(self, _stop, self._jobs)

    def begin_run(self) -> None:
        """Forget what an earlier run has sampled."""
        self.stop()
        self._taken, self._shares = 0, _Shares()

    def take(
        self, batch: PromptBatch, settings: SamplingSettings, run_seed: int, at: Vantage
    ) -> Rollout:
        """Return the rollout of a batch, and begin to sample those of the batches that follow it.

        Called on every rank, once a batch.

        Args:
            batch: Prompts of this rank, which know what comes after them.
            settings: Of sampling.
            run_seed: Of the random streams, which the number of the batch names as well.
            at: This process, and the weights of now.
        """
        self._updates = at.updates
        self._drop_others(_repeated(batch, settings), at)
        if not self._jobs:
            self._begin(batch, settings, run_seed, at)
        with self._shares.waiting(), in_place(places.SAMPLING):
            rollout = self._jobs[0].result()
        self._jobs.popleft()
        self._taken += 1
        # While rollouts of older weights are left, those of now wait with theirs.
        if not self._jobs or self._jobs[-1].updates == at.updates:
            for upcoming in batch.upcoming(self.depth)[len(self._jobs) :]:
                self._begin(upcoming, settings, run_seed, at)
        return rollout.to(at.device)

    def _drop_others(self, prompt_ids: list[list[int]], at: Vantage) -> None:
        """Drop what was sampled ahead if, on any rank, it is not of these prompts."""
        if at.largest(int(bool(self._jobs) and self._jobs[0].prompt_ids != prompt_ids)):
            rank_zero_warn(
                "The prompts of this rollout are not those that were sampled ahead, which are "
                "dropped: data, or how it is sampled, has changed."
            )
            self.stop()

    def _begin(
        self, batch: PromptBatch, settings: SamplingSettings, run_seed: int, at: Vantage
    ) -> None:
        """Begin to sample the batch that comes after all others, from the weights of now."""
        self._sampler.hand_over(at.version)
        autocast = torch.is_autocast_enabled(at.device.type)
        dtype = torch.get_autocast_dtype(at.device.type)
        stream = (run_seed, "rollout", self._taken + len(self._jobs), 0)

        def sample() -> Rollout:
            with _as_in_training(at.device, dtype if autocast else None):
                rollout = self._sampler.sample_aside(
                    batch, settings, *stream, rank=at.rank, device=at.device
                )
            return rollout.with_(versions_B=torch.full_like(rollout.positions_B, at.updates))

        job = _Job(_repeated(batch, settings), at.updates)
        job.start(sample, self._jobs[-1] if self._jobs else None)
        self._jobs.append(job)
        self._shares.jobs.append(job)

    def wait(self) -> None:
        """Wait until nothing is being sampled; an error stays for whoever wants the rollout."""
        if self._jobs:
            with self._shares.waiting(), in_place(places.SAMPLING):
                for job in self._jobs:
                    job.wait()

    def stop(self) -> None:
        """Drop what is sampled ahead, and end what is being sampled."""
        _stop(self._jobs)

    def end(self) -> None:
        """End what is being sampled; what is there already stays, for a checkpoint."""
        _end(self._jobs)

    def describe(self, rollout: Rollout, ranks: Ranks) -> dict[str, float]:
        """Return the rollout's age, and how busy trainer and sampler were since the last call.

        Args:
            rollout: That was learned from.
            ranks: Of the run; each must call it.
        """
        shares = self._shares.take()
        if rollout.versions_B is None:
            return shares
        ages_B = (self._updates - rollout.versions_B).float()
        age = masked_mean(ages_B, torch.ones_like(rollout.finished_B), reduce=ranks.sum)
        return {"rollout/age": float(age)} | shares

    # Checkpoints ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what is sampled ahead on all ranks, once it is there; called on every rank.

        From a rollout on that could not be sampled, all are left out.
        """
        if not self.depth:
            return {}
        self.wait()
        rollouts = []
        for job in self._jobs:
            of_ranks = gather(job.to_plain())
            if None in of_ranks:
                break
            rollouts.append(of_ranks)
        return {"taken": self._taken, "rollouts": rollouts}

    def load_state_dict(self, state: dict[str, Any], rank: int = 0, ranks: int = 1) -> None:
        """Go on with what a checkpoint has of all its ranks; here there may be more, or fewer.

        Args:
            state: What `state_dict` has returned.
            rank: This process.
            ranks: Number of processes.
        """
        self.begin_run()
        if not self.depth:
            return
        self._taken = state["taken"]
        for of_ranks in state.get("rollouts", []):
            whole = join([Rollout.from_plain(plain) for plain in of_ranks])
            mine = whole.select(torch.arange(len(whole)).tensor_split(ranks)[rank])
            self._jobs.append(_Job.done(mine))


class StopAfterError(Callback):
    """Ends sampling ahead when the run ends with an error: no teardown follows one."""

    def __init__(self, ahead: RolloutsAhead) -> None:
        """Keep what is to be ended."""
        self._ahead = ahead

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End it."""
        self._ahead.end()


class _Shares:
    """Measures how much of the time the trainer waits, and the sampler has nothing to do."""

    def __init__(self) -> None:
        self.jobs: list[_Job] = []  # that have worked since the last `take`
        self._since: float | None = None
        self._waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the body as that of a trainer that waits."""
        began = perf_counter()
        self._since = began if self._since is None else self._since
        yield
        self._waited_s += perf_counter() - began

    def take(self) -> dict[str, float]:
        """Return the shares of the time since the last call, or since the first wait."""
        now, since = perf_counter(), self._since
        if since is None:
            return {}
        busy_s = sum(
            max(0.0, (job.ended or now) - max(job.began, since)) for job in self.jobs if job.began
        )
        whole_s = now - since
        trainer, sampler = self._waited_s / whole_s, 1 - busy_s / whole_s
        self.jobs = [job for job in self.jobs if not job.ended]
        self._since, self._waited_s = now, 0.0
        return {
            "time/trainer_idle": trainer,
            "time/sampler_idle": sampler,
            "time/overlap": max(0.0, 1 - trainer - sampler),
        }


def _repeated(batch: PromptBatch, settings: SamplingSettings) -> list[list[int]]:
    """Return the prompt of each response."""
    return [ids for ids in batch.prompt_ids for _ in range(settings.num_generations)]


def _stop(jobs: deque[_Job]) -> None:
    _end(jobs)
    jobs.clear()


def _end(jobs: deque[_Job]) -> None:
    for job in jobs:
        job.tell_to_end()
    for job in jobs:
        job.wait(PATIENCE_S)


@contextmanager
def _as_in_training(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """Give a thread what torch keeps for each: the device, and the Trainer's precision."""
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.no_grad())
        if autocast is not None:
            stack.enter_context(torch.autocast(device.type, autocast))
        yield
