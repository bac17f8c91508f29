"""Sample the next rollouts in another thread while the module trains on the current one.

It is reproducible:

1. *Schedule.* The first rollout is sampled in its own step. In each step, as soon as its rollout is
   complete, the engine gets the current weights, and samples the prompts of the next `depth` steps
   while the step trains. With a depth of 1 each rollout comes from weights that are one rollout's
   updates behind; with n the engine gets weights every n rollouts, and they are 1 to n behind.
   Timing never decides which weights sample a rollout.
2. *A frozen policy* (value pretraining) has one version of weights: no rollout is behind, and the
   queue is kept full.
3. *The engine has one user.* Other users, such as an evaluation, wait until the current rollout is
   sampled, and then make the engine take the current weights.
4. *Checkpoints* wait for the rollouts that are being sampled and contain them, so a resumed run
   trains on the same responses of the same weights. No rollout is sampled twice.

Only `hand_over` and `state_dict` wait for other ranks; all ranks call them in the same order.

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
"""Seconds to wait for a thread to end; an engine checks between two tokens whether it must end."""


@dataclass(frozen=True)
class Vantage:
    """The process and the weights with which a step samples.

    Attributes:
        version: Key of the actor's weights, as in `GenerationEngine.take_weights`.
        updates: Number of updates of the actor so far.
        rank: Rank of this process.
        device: Device of rollouts.
        largest: Function that returns the largest of a number over all ranks.
    """

    version: object
    updates: int
    rank: int
    device: torch.device
    largest: Callable[[int], int] = int


class _Job:
    """A rollout that is or was sampled in its own thread."""

    def __init__(self, prompt_ids: list[list[int]], updates: int) -> None:
        """Set the prompt of each response, and the number of updates of the weights."""
        self.prompt_ids, self.updates = prompt_ids, updates
        self.began = self.ended = 0.0
        self._rollout: Rollout | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._told_to_end = threading.Event()

    @classmethod
    def done(cls, rollout: Rollout) -> _Job:
        """Return the finished job of a rollout from a checkpoint."""
        lengths = rollout.prompt_lengths_B.tolist()
        ids_BL = rollout.input_ids_BL[:, : max(lengths)].tolist()
        assert rollout.versions_B is not None
        prompts = [ids[:length] for ids, length in zip(ids_BL, lengths, strict=True)]
        job = cls(prompts, int(rollout.versions_B[0]))
        job._rollout = rollout
        return job

    def start(self, sample: Callable[[], Rollout], after: _Job | None) -> None:
        """Sample in another thread, after the previous job has ended."""
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
        """Wait until the job has ended, with or without an error."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def result(self) -> Rollout:
        """Wait for the rollout and return it; raise the error of sampling if there was one."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._rollout is not None
        return self._rollout

    def to_plain(self) -> dict[str, Any] | None:
        """Return the rollout in the form for checkpoints; None if it is not sampled."""
        return None if self._rollout is None else self._rollout.to(torch.device("cpu")).to_plain()

    def tell_to_end(self) -> None:
        """Make the job end at the next token."""
        self._told_to_end.set()


class RolloutsAhead:
    """Samples up to `depth` rollouts ahead of the one that is trained on.

    Attributes:
        depth: Number of rollouts; 0 switches it off.
    """

    def __init__(self, depth: int, sampler: Sampler) -> None:
        """Make other uses of the sampler wait for the rollouts that are sampled ahead."""
        self.depth, self._sampler = depth, sampler
        self._jobs: deque[_Job] = deque()  # in order of their steps
        self._shares = _Shares()
        self._taken = self._updates = 0
        sampler.before_use = self.wait
        # A thread that computes while Python exits would crash the process.
        weakref.finalize(self, _stop, self._jobs)

    def begin_run(self) -> None:
        """Drop the rollouts of an earlier run."""
        self.stop()
        self._taken, self._shares = 0, _Shares()

    def take(
        self, batch: PromptBatch, settings: SamplingSettings, run_seed: int, at: Vantage
    ) -> Rollout:
        """Return the rollout of a batch, and start to sample those of the batches that follow it.

        Every rank calls it once for each batch.

        Args:
            batch: Prompts of this rank, which give access to the upcoming ones.
            settings: Settings of sampling.
            run_seed: Seed of the random streams, which also depend on the number of the batch.
            at: This process and the current weights.
        """
        self._updates = at.updates
        self._drop_others(_repeated(batch, settings), at)
        if not self._jobs:
            self._begin(batch, settings, run_seed, at)
        with self._shares.waiting(), in_place(places.SAMPLING):
            rollout = self._jobs[0].result()
        self._jobs.popleft()
        self._taken += 1
        # Do not use the current weights while rollouts of older ones are left.
        if not self._jobs or self._jobs[-1].updates == at.updates:
            for upcoming in batch.upcoming(self.depth)[len(self._jobs) :]:
                self._begin(upcoming, settings, run_seed, at)
        return rollout.to(at.device)

    def _drop_others(self, prompt_ids: list[list[int]], at: Vantage) -> None:
        """Drop the rollouts that were sampled ahead if their prompts differ on any rank."""
        if at.largest(int(bool(self._jobs) and self._jobs[0].prompt_ids != prompt_ids)):
            rank_zero_warn(
                "The prompts of this rollout are not those that were sampled ahead, so these "
                "rollouts are dropped: the data or the settings of sampling have changed."
            )
            self.stop()

    def _begin(
        self, batch: PromptBatch, settings: SamplingSettings, run_seed: int, at: Vantage
    ) -> None:
        """Start to sample the next batch in the queue from the current weights."""
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
        """Wait until no rollout is being sampled; `take` raises an error of sampling later."""
        if self._jobs:
            with self._shares.waiting(), in_place(places.SAMPLING):
                for job in self._jobs:
                    job.wait()

    def stop(self) -> None:
        """Drop all rollouts that are sampled ahead, and end sampling."""
        _stop(self._jobs)

    def end(self) -> None:
        """End sampling, and keep complete rollouts for a checkpoint."""
        _end(self._jobs)

    def describe(self, rollout: Rollout, ranks: Ranks) -> dict[str, float]:
        """Return the rollout's age, and the idle shares of trainer and sampler since the last call.

        Args:
            rollout: Rollout that was trained on.
            ranks: Ranks of the run; each must call it.
        """
        shares = self._shares.take()
        if rollout.versions_B is None:
            return shares
        ages_B = (self._updates - rollout.versions_B).float()
        age = masked_mean(ages_B, torch.ones_like(rollout.finished_B), reduce=ranks.sum)
        return {"rollout/age": float(age)} | shares

    # Checkpoints ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Wait for the rollouts that are sampled ahead, and return those of all ranks.

        Every rank must call it. A rollout that could not be sampled and those after it are left
        out.
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
        """Restore the rollouts of a checkpoint, which may have another number of ranks.

        Args:
            state: Result of `state_dict`.
            rank: Rank of this process.
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


class StopSampling(Callback):
    """Ends sampling ahead when the run ends; after an error there is no teardown."""

    def __init__(self, ahead: RolloutsAhead) -> None:
        """Store the object to end."""
        self._ahead = ahead

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End sampling ahead, and keep complete rollouts."""
        self._ahead.end()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End sampling ahead."""
        self._ahead.stop()


class _Shares:
    """Measures the shares of time in which the trainer waits and the sampler is idle."""

    def __init__(self) -> None:
        self.jobs: list[_Job] = []  # those that have worked since the last `take`
        self._since: float | None = None
        self._waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the body as waiting of the trainer."""
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
    """Set the thread's device and autocast as in the thread that trains."""
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.no_grad())
        if autocast is not None:
            stack.enter_context(torch.autocast(device.type, autocast))
        yield
