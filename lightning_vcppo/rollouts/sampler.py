"""Sample and grade a rollout for a batch of prompts.

Shapes: B responses, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.sharding import gathered
from lightning_vcppo.generation import GenerationEngine, Generations, build_engine
from lightning_vcppo.generation.build import (
    GATHERS_SHARDS,
    require_detached,
    require_installed,
)
from lightning_vcppo.models import loading
from lightning_vcppo.models.fingerprints import model_fingerprint, tokenizer_fingerprint
from lightning_vcppo.rewards import verifier
from lightning_vcppo.rewards.functions import Grade, Grader
from lightning_vcppo.rollouts.rollout import Rollout, join_prompts
from lightning_vcppo.settings import EngineSettings, SamplingSettings


class Sampler:
    """Samples responses from an actor through an engine, and grades them.

    Its methods are called on every rank, because ranks may hold shards of the actor. `hand_over`
    and `sample_aside` divide `sample` in two, for another thread than that of training
    (`ahead.py`).

    Attributes:
        before_use: Called before the engine is used; waits for a thread that uses it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, grader: Grader, settings: EngineSettings
    ) -> None:
        """Collect the parts; the engine is built when it is first needed.

        Raises:
            ValueError: If the engine's package is not installed, or if rollouts are to be sampled
                ahead by an engine that cannot.
        """
        require_installed(settings)
        require_detached(settings)
        self.tokenizer, self.grader, self.settings = tokenizer, grader, settings
        self._actor: PreTrainedModel | None = None
        self._device: torch.device | None = None
        self._engine: GenerationEngine | None = None
        self._handed_over: object = None
        self.before_use: Callable[[], None] = _do_nothing

    def attach(
        self,
        actor: PreTrainedModel,
        make_room: Callable[[], None] = lambda: None,
        device: torch.device | None = None,
    ) -> None:
        """Sample from this actor from now on.

        Args:
            actor: The model that is trained.
            make_room: Called before the engine reads it.
            device: Device on which the actor runs, for its weights may be kept on the host; None
                means where they are.
        """
        self._make_room, self._device = make_room, device
        if actor is not self._actor:
            self._actor, self._engine, self._handed_over = actor, None, None

    def generate(
        self,
        prompt_ids: list[list[int]],
        seeds: list[int],
        settings: SamplingSettings,
        *,
        version: object = None,
    ) -> Generations:
        """Sample one response per prompt.

        Args:
            prompt_ids: Token ids of B prompts.
            seeds: B seeds, one per response.
            settings: Temperature, top-p, length limit.
            version: Key of the actor's weights; engines that copy them do so when it changes.
        """
        self.before_use()
        with self._weights():
            return self._with(version).generate(prompt_ids, seeds, settings)

    def hand_over(self, version: object) -> None:
        """Give a detached engine the actor's weights, from which `sample_aside` then samples."""
        if version != self._handed_over:
            self.before_use()
            with self._weights():
                self._with(version)

    def _with(self, version: object) -> GenerationEngine:
        engine = self.engine()
        engine.take_weights(version)
        self._handed_over = version
        return engine

    def sample(
        self,
        batch: PromptBatch,
        settings: SamplingSettings,
        *stream: int | str,
        rank: int,
        device: torch.device,
        version: object = None,
    ) -> Rollout:
        """Sample `num_generations` responses per prompt and grade them.

        Args:
            batch: Prompts of this rank.
            settings: Sampling settings.
            stream: Names the random streams, together with problem and sample.
            rank: Number of this process; every rank has equally many prompts.
            device: Device of the rollout.
            version: Key of the actor's weights.
        """
        prompts, seeds = _asked(batch, settings, stream)
        sampled = self.generate(prompts, seeds, settings, version=version)
        return self._graded(batch, prompts, sampled, rank, device)

    def sample_aside(
        self,
        batch: PromptBatch,
        settings: SamplingSettings,
        *stream: int | str,
        rank: int,
        device: torch.device,
    ) -> Rollout:
        """Do the same from the weights that were handed over, without other ranks, in any thread.

        The grader is used, too, so one call must have ended before the next begins.
        """
        prompts, seeds = _asked(batch, settings, stream)
        sampled = self.engine().generate(prompts, seeds, settings)
        return self._graded(batch, prompts, sampled, rank, device)

    def _graded(
        self,
        batch: PromptBatch,
        prompts: list[list[int]],
        sampled: Generations,
        rank: int,
        device: torch.device,
    ) -> Rollout:
        n = len(prompts) // len(batch)
        problems = [problem for problem in batch.problems for _ in range(n)]
        first_row = rank * len(prompts)
        positions_B = torch.arange(first_row, first_row + len(prompts), device=device)
        return self.graded(problems, prompts, sampled, positions_B, n)

    def graded(
        self,
        problems: Sequence[Problem],
        prompts: list[list[int]],
        sampled: Generations,
        positions_B: Tensor,
        num_generations: int,
    ) -> Rollout:
        """Grade responses, and return them as a rollout.

        Args:
            problems: B problems, one per response.
            prompts: Token ids of their prompts.
            sampled: B responses.
            positions_B: Row numbers, on the device of the rollout.
            num_generations: Responses of a group; groups begin at multiples of it.
        """
        device = positions_B.device
        ids = [
            ids_T[mask_T].tolist()
            for ids_T, mask_T in zip(sampled.response_ids_BT, sampled.response_mask_BT, strict=True)
        ]
        texts, grades = self.grade(problems, prompts, ids, sampled.finished_B.tolist())
        return Rollout(
            problems=tuple(problems),
            responses=tuple(texts),
            input_ids_BL=join_prompts(
                prompts,
                sampled.response_ids_BT,
                sampled.response_mask_BT,
                self.tokenizer.pad_token_id,
            ),
            prompt_lengths_B=torch.tensor([len(ids) for ids in prompts], device=device),
            response_mask_BT=sampled.response_mask_BT,
            sampler_logprobs_BT=sampled.logprobs_BT,
            finished_B=sampled.finished_B,
            entropy_BT=sampled.entropy_BT,
            positions_B=positions_B,
            group_ids_B=positions_B // num_generations,
            scores_B=torch.tensor([g.reward for g in grades], dtype=torch.float32, device=device),
            correct_B=torch.tensor([g.correct for g in grades], device=device),
        )

    def grade(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[list[int]],
        responses: Sequence[list[int]],
        finished: Sequence[bool] | None = None,
    ) -> tuple[list[str], list[Grade]]:
        """Return the texts of responses, and their grades.

        Args:
            problems: Problem of each response.
            prompts: Token ids of its prompt.
            responses: Token ids of each response.
            finished: Whether each has ended by itself; None reads it from the last token.
        """
        if finished is None:
            ends = self.stop_token_ids()
            finished = [bool(ids) and ids[-1] in ends for ids in responses]
        texts = [self.response_text(*both) for both in zip(prompts, responses, strict=True)]
        grades = self.grader.grade_all(
            texts,
            [problem.gold for problem in problems],
            [problem.answer_kind for problem in problems],
            [
                {**p.columns, "problem": p.problem, "finished": end, "response_ids": ids}
                for p, end, ids in zip(problems, finished, responses, strict=True)
            ],
        )
        return texts, grades

    def attend(self, version: object = None) -> None:
        """Take part in the sampling of other ranks, without a prompt."""
        self.before_use()
        with self._weights():
            self._with(version).sleep()

    def forget_weights(self) -> None:
        """Copy the actor's weights before the next sampling, whatever their version."""
        self._handed_over = None
        if self._engine is not None:
            self._engine.forget_weights()

    def origin(self, settings: SamplingSettings) -> dict[str, str | float]:
        """Return what responses depend on besides their prompts, to recognise another policy."""
        assert self._actor is not None
        with gathered(self._actor):
            model = model_fingerprint(self._actor)
        return {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "model": model,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_response_length": settings.max_response_length,
        }

    def engine(self) -> GenerationEngine:
        """Return the engine that samples from the actor."""
        assert self._actor is not None, "attach an actor first"
        if self._engine is None:
            self._engine = build_engine(
                self._actor,
                self.settings,
                device=self._device or self._actor.device,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_ids=self.stop_token_ids(),
            )
        return self._engine

    def stop_token_ids(self) -> set[int]:
        """Return the tokens that end a response."""
        assert self._actor is not None, "attach an actor first"
        return loading.stop_token_ids(self._actor, self.tokenizer)

    def _weights(self) -> AbstractContextManager[None]:
        """Return the context in which the engine can read the actor's weights."""
        assert self._actor is not None, "attach an actor first"
        self._make_room()
        return nullcontext() if self.settings.name in GATHERS_SHARDS else gathered(self._actor)

    # Texts ---------------------------------------------------------------------------------------

    def response_text(self, prompt_ids: list[int], response_ids: list[int]) -> str:
        """Decode a response, with the thinking tag that the prompt opened.

        Without that tag, reasoning that never ends would look like an answer.
        """
        seen = [token for token in response_ids if token not in self.hidden_token_ids]
        text = self.tokenizer.decode(seen, skip_special_tokens=False)
        opened = self.opened_thinking_tag(prompt_ids)
        return f"{opened}\n{text}" if opened else str(text)

    @cached_property
    def hidden_token_ids(self) -> frozenset[int]:
        """Special tokens except thinking tags, without which thoughts would count as the answer."""
        tags = [tag for pair in verifier.THINKING_TAGS for tag in pair]
        return frozenset(
            token_id
            for token_id, token in self.tokenizer.added_tokens_decoder.items()
            if token.special and not any(token.content in tag for tag in tags)
        )

    def opened_thinking_tag(self, prompt_ids: list[int]) -> str:
        """Return the thinking tag that a prompt ends with, or ""."""
        tail = str(self.tokenizer.decode(prompt_ids[-12:], skip_special_tokens=False)).rstrip()
        return next((tag for tag, _ in verifier.THINKING_TAGS if tail.endswith(tag)), "")


def _asked(
    batch: PromptBatch, settings: SamplingSettings, stream: tuple[int | str, ...]
) -> tuple[list[list[int]], list[int]]:
    """Return prompt and seed of each response."""
    n = settings.num_generations
    prompts = [ids for ids in batch.prompt_ids for _ in range(n)]
    return prompts, [stream_seed(*stream, i, sample) for i in batch.indices for sample in range(n)]


def _do_nothing() -> None:
    """Do nothing, in a way that can be pickled."""
