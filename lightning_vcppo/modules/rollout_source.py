"""Provide the rollouts to learn from: sampled in their own step, ahead of it, or in parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lightning_vcppo.checkpointing.format import Keys
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.modules.lost_engine import together
from lightning_vcppo.rollouts.ahead import RolloutsAhead, StopSampling, Vantage
from lightning_vcppo.rollouts.group_buffer import GroupBuffer
from lightning_vcppo.rollouts.partial import PartialRollouts, unfinished_groups
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.rollouts.sampler import Sampler
from lightning_vcppo.settings import SamplingSettings


class RolloutSource:
    """Samples the rollout of each training step, and keeps what later steps learn from.

    Attributes:
        ahead: Samples the rollouts of the next steps, if that is on.
        partial: Samples responses in parts, if that is on.
        waiting: Groups that wait until a rollout is full.
    """

    def __init__(
        self,
        sampler: Sampler,
        settings: SamplingSettings,
        sample: Callable[..., Rollout],
        context: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Collect the parts.

        Args:
            sampler: Samples and grades; its settings tell whether ahead or in parts.
            settings: Sampling settings.
            sample: Samples a rollout now from (batch, settings, *names of the random streams).
            context: Returns the context in which `sample` runs.
        """
        self._engine, self._settings = sampler.settings, settings
        self._sample, self._context = sample, context
        self.ahead = RolloutsAhead(self._engine.rollouts_ahead, sampler)
        self.partial = PartialRollouts(self._engine.partial_length, sampler)
        self.begin_run()

    def begin_run(self) -> None:
        """Drop what an earlier run has left."""
        self.ahead.begin_run()
        self.partial.begin_run()
        self.waiting = self._empty()

    def _empty(self) -> GroupBuffer:
        """Return a buffer without groups."""
        return GroupBuffer(self._settings.dynamic_sampling, self.partial.is_on)

    def callbacks(self) -> list[Callback]:
        """Return the callback that ends sampling ahead with the run."""
        return [StopSampling(self.ahead)] if self.ahead.depth else []

    def take(
        self, batch: PromptBatch, seed: tuple[int, int], at: Vantage, ranks: Ranks, *, whole: bool
    ) -> Rollout | None:
        """Return the rollout of a step; called on every rank.

        Args:
            batch: Prompts of this rank.
            seed: Seed of the run and number of the rollout, which name the random streams.
            at: This process, and the weights of now.
            ranks: Ranks of the run.
            whole: Whether to return all responses to this batch, and no others.

        Returns:
            None until there are enough informative or complete groups.
        """
        run_seed, number = seed
        stream = (run_seed, "rollout", number, self.waiting.batches)
        if whole or not self.waiting.is_used:
            return self._sample_batch(batch, run_seed, stream, at)
        if self.partial.is_on:
            with self._context():
                groups = self.partial.sample(batch, self._settings, stream, at, ranks)
        else:
            groups = self._sample_batch(batch, run_seed, stream, at)
        n = self._settings.num_generations
        return self.waiting.fill(groups, len(batch) * n, n, ranks, at.device)

    def _sample_batch(
        self, batch: PromptBatch, run_seed: int, stream: tuple[int | str, ...], at: Vantage
    ) -> Rollout:
        """Return the responses to a batch; rollouts ahead name streams by the batch's number."""
        if not self.ahead.depth:
            return self._sample(batch, self._settings, *stream)
        with together(self._engine, at.largest):
            return self.ahead.take(batch, self._settings, run_seed, at)

    def describe(self, rollout: Rollout, ranks: Ranks) -> dict[str, float]:
        """Return the metrics of sampling ahead or in parts; called on every rank."""
        return self.ahead.describe(rollout, ranks) | self.partial.describe(rollout, ranks)

    # Checkpoints ---------------------------------------------------------------------------------

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Save what is sampled and not yet learned from; called on every rank."""
        checkpoint[Keys.ROLLOUTS_AHEAD] = self.ahead.state_dict()
        checkpoint[Keys.UNFINISHED] = self.partial.state_dict()
        checkpoint[Keys.WAITING_GROUPS] = self.waiting.state_dict()

    def restore(self, checkpoint: dict[str, Any], ranks: Ranks | None) -> None:
        """Continue with what `save` has saved.

        Args:
            checkpoint: A checkpoint.
            ranks: Ranks of the run; None without a Trainer, when nothing is sampled to learn from.
        """
        self.waiting.load_state_dict(checkpoint[Keys.WAITING_GROUPS])
        if ranks is not None:
            done = checkpoint[Keys.ROLLOUTS_DONE]
            saved = checkpoint.get(Keys.ROLLOUTS_AHEAD) or {"taken": done}
            self.ahead.load_state_dict(saved, ranks.rank, ranks.count)
            unfinished = checkpoint.get(Keys.UNFINISHED, {})
            self.partial.load_state_dict(unfinished, ranks)
            self._drop_unusable(unfinished)

    def _drop_unusable(self, unfinished: dict[str, Any]) -> None:
        """Drop what waits in a checkpoint but does not fit the settings, with a warning.

        Groups are found by the number of their responses, so groups of another size would mix
        prompts.

        Args:
            unfinished: State of the responses that were sampled in part, of all ranks.
        """
        n = self._settings.num_generations
        parts, sizes = unfinished_groups(unfinished)
        if others := (sizes | self.waiting.group_sizes()) - {n}:
            rank_zero_warn(
                f"{parts + len(self.waiting)} responses wait in the checkpoint in groups of "
                f"{min(others)}, but --model.sampling.num_generations is {n}: they are dropped."
            )
            self.partial.begin_run()
            self.waiting = self._empty()
        elif not self.waiting.is_used and parts + len(self.waiting):
            rank_zero_warn(
                f"{parts + len(self.waiting)} responses that wait in the checkpoint are dropped: "
                "--model.engine.partial_length and --model.sampling.dynamic_sampling are off."
            )
            self.waiting = self._empty()
        elif parts and not self.partial.is_on:
            rank_zero_warn(
                f"{parts} unfinished responses that wait in the checkpoint are dropped: "
                "--model.engine.partial_length is off."
            )
