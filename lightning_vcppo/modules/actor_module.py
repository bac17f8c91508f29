"""What the modules of the collection share: an actor that samples responses and has them graded.

Shapes: B responses, L tokens of prompt + response, T response tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from lightning_vcppo.checkpointing.format import FORMAT
from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.data.prompts import HELD_OUT, PromptBatch
from lightning_vcppo.distributed.fsdp2 import build
from lightning_vcppo.distributed.sharding import full_state_dict, gathered
from lightning_vcppo.distributed.standstill import FILES_S, in_place, unwatch, watch
from lightning_vcppo.distributed.strategies import refuse_strategy
from lightning_vcppo.generation import GenerationEngine, Generations, TransformersEngine, VLLMEngine
from lightning_vcppo.models import hf_folders, loading
from lightning_vcppo.models.checks import check_vocabulary
from lightning_vcppo.models.fingerprints import model_fingerprint, tokenizer_fingerprint
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.modules.room import RoomForResponses
from lightning_vcppo.modules.update_health import NotFiniteError, UpdateHealth
from lightning_vcppo.rewards import verifier
from lightning_vcppo.rewards.functions import Grader, RewardFunction
from lightning_vcppo.rollouts.records import ResponseRecord, SavedResponse
from lightning_vcppo.rollouts.rollout import Rollout, join_prompts
from lightning_vcppo.settings import EngineSettings, SamplingSettings

Network = TypeVar("Network", bound=nn.Module)


class ActorModule(RoomForResponses):
    """An actor with its tokenizer: samples, grades, validates and predicts."""

    def __init__(
        self,
        actor: str | dict[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        reward: str | RewardFunction,
        evaluation: SamplingSettings,
        engine: EngineSettings,
    ) -> None:
        """Collect the settings; `configure_model` loads or builds the actor.

        Args:
            actor: Folder or hub id of a causal language model, or a model config.
            tokenizer: The actor's.
            reward: A style of the verifier, or a function of (response, answer), or its import
                path. It returns a float, positive for correct; or (float, whether correct).
            evaluation: How responses are sampled in `validate`, `test` and `predict`.
            engine: What samples them.

        Raises:
            ValueError: if the engine is vLLM and vLLM is not installed.
        """
        super().__init__()
        if engine.name == "vllm":
            VLLMEngine.require_installed()
        self.engine_settings = engine
        self.vllm_engine: VLLMEngine | None = None
        self.actor_source = actor
        self.evaluation = evaluation
        self.tokenizer = tokenizer
        self.grader = Grader(reward)
        self.actor: PreTrainedModel | None = None
        self.health: dict[str, UpdateHealth] = {}  # of each network that is trained
        self.rollouts_done = 0
        self.run_seed = int(os.environ.get("PL_GLOBAL_SEED", 0))

    # Lightning's hooks ---------------------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        """Refuse a strategy that cannot work; see that no process outlives the others."""
        refuse_strategy(self.trainer.strategy)
        watch(self.trainer.strategy)

    @override
    def teardown(self, stage: str) -> None:
        """Let processes end when they like."""
        unwatch()

    @override
    def configure_model(self) -> None:
        """Load the actor, once for all stages."""
        if self.actor is None:
            self.actor = self.build(self._load_actor)
        check_vocabulary(self.actor, self.tokenizer, str(self.actor_source), "actor")

    def build(self, load: Callable[[], Network]) -> Network:
        """Build a network as the strategy has it, without dropout; called on every rank.

        `load_from_checkpoint` does without a Trainer.
        """
        with in_place("loading of the networks", FILES_S):
            network = build(load, self.trainer.strategy if self._trainer else None)
        loading.disable_dropout(network.train())
        return network

    def _load_actor(self) -> PreTrainedModel:
        if isinstance(self.actor_source, str):
            return loading.load_actor(self.actor_source)
        return loading.build_actor(self.actor_source, self.tokenizer)

    @override
    def validation_step(
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Sample and grade responses, with the same random numbers at every evaluation."""
        return {"records": self.evaluate_prompts(batch)}

    @override
    def test_step(
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Do the same as `validation_step`."""
        return self.validation_step(batch, batch_idx)

    @override
    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[ResponseRecord]:
        """Sample and grade responses, and keep their tokens, for value pretraining."""
        return self.evaluate_prompts(batch, with_tokens=True)

    @override
    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        """End the run, with a checkpoint, if nothing but updates that are not finite is left."""
        lost = {network: health for network, health in self.health.items() if health.is_lost}
        if not lost:
            return
        path = str(Path(self.trainer.default_root_dir, "checkpoints", "not_finite.ckpt"))
        messages = [health.obituary(network, path) for network, health in lost.items()]
        for health in lost.values():
            health.in_a_row = 0  # who goes on from here may try as often again
        self.trainer.save_checkpoint(path)
        raise NotFiniteError(" ".join(messages))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save counter, seed of the random streams, and the actor's folder but for its weights."""
        checkpoint["vcppo_format"] = FORMAT
        checkpoint["rollouts_done"] = self.rollouts_done
        checkpoint["run_seed"] = self.run_seed
        checkpoint["ranks"] = self.trainer.world_size
        checkpoint["skipped_in_a_row"] = {k: h.in_a_row for k, h in self.health.items()}
        assert self.actor is not None
        checkpoint["folders"] = {"actor": hf_folders.describe(self.actor)}
        checkpoint["tokenizer"] = self.tokenizer_files

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the saved run's random streams."""
        self.rollouts_done = checkpoint["rollouts_done"]
        self.run_seed = checkpoint["run_seed"]
        ranks = checkpoint.get("ranks", 1)
        if self._trainer and ranks != self.trainer.world_size:
            rank_zero_info(
                f"The checkpoint is of {ranks} processes, and this run has "
                f"{self.trainer.world_size}: it goes on with the same prompts and random numbers, "
                "but sums are rounded differently, so not bit for bit."
            )
        for network, in_a_row in checkpoint["skipped_in_a_row"].items():
            self.health[network].in_a_row = in_a_row
        if self.vllm_engine is not None:
            self.vllm_engine.forget_weights()

    @cached_property
    def tokenizer_files(self) -> dict[str, str]:
        """The files of the tokenizer's folder, which does not change."""
        return hf_folders.files_of(self.tokenizer)

    # Sampling ------------------------------------------------------------------------------------

    def engine(self) -> GenerationEngine:
        """Return the engine that samples from the actor as it is now; called on every rank."""
        assert self.actor is not None, "configure_model has run"
        pad_id = self.tokenizer.pad_token_id
        stop_ids = loading.stop_token_ids(self.actor, self.tokenizer)
        if self.engine_settings.name == "transformers":
            return TransformersEngine(
                self.actor,
                pad_token_id=pad_id,
                eos_token_ids=stop_ids,
                max_num_seqs=self.engine_settings.max_num_seqs,
            )
        if self.vllm_engine is None:
            self.vllm_engine = VLLMEngine(
                self.actor, self.engine_settings, pad_token_id=pad_id, eos_token_ids=stop_ids
            )
        # Lightning counts every step of every optimizer, so the weights of one step are the same.
        self.vllm_engine.take_weights((id(self.trainer), self.trainer.global_step))
        return self.vllm_engine

    def generate(
        self, prompt_ids: list[list[int]], seeds: list[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response a prompt; called on every rank."""
        with in_place("sampling"), self.weights_to_sample():
            return self.engine().generate(prompt_ids, seeds, settings)

    def sample(self, batch: PromptBatch, settings: SamplingSettings, *stream: int | str) -> Rollout:
        """Sample `num_generations` responses a prompt and grade them.

        Args:
            batch: Prompts of this rank.
            settings: Of sampling.
            stream: Names the random streams, together with problem and sample.
        """
        n = settings.num_generations
        prompts = [ids for ids in batch.prompt_ids for _ in range(n)]
        problems = tuple(problem for problem in batch.problems for _ in range(n))
        seeds = [stream_seed(*stream, i, sample) for i in batch.indices for sample in range(n)]
        sampled = self.generate(prompts, seeds, settings)

        responses = tuple(
            self.response_text(prompt, ids[mask].tolist())
            for prompt, ids, mask in zip(
                prompts, sampled.response_ids_BT, sampled.response_mask_BT, strict=True
            )
        )
        grades = self.grader.grade_all(responses, [problem.answer for problem in problems])
        first_row = self.global_rank * len(prompts)
        positions_B = torch.arange(first_row, first_row + len(prompts), device=self.device)
        prompt_lengths_B = torch.tensor([len(ids) for ids in prompts], device=self.device)
        return Rollout(
            problems=problems,
            responses=responses,
            input_ids_BL=join_prompts(
                prompts,
                sampled.response_ids_BT,
                sampled.response_mask_BT,
                self.tokenizer.pad_token_id,
            ),
            prompt_lengths_B=prompt_lengths_B,
            response_mask_BT=sampled.response_mask_BT,
            sampler_logprobs_BT=sampled.logprobs_BT,
            finished_B=sampled.finished_B,
            entropy_BT=sampled.entropy_BT,
            positions_B=positions_B,
            group_ids_B=positions_B // n,
            scores_B=torch.tensor(
                [g.reward for g in grades], dtype=torch.float32, device=self.device
            ),
            correct_B=torch.tensor([g.correct for g in grades], device=self.device),
        )

    def response_text(self, prompt_ids: list[int], response_ids: list[int]) -> str:
        """Decode a response as its reader sees it: with the thinking tag that the prompt opened.

        Without that tag a reasoning that never ends would look like an answer.
        """
        seen = [token for token in response_ids if token not in self.hidden_token_ids]
        text = self.tokenizer.decode(seen, skip_special_tokens=False)
        opened = self.opened_thinking_tag(prompt_ids)
        return f"{opened}\n{text}" if opened else str(text)

    @cached_property
    def hidden_token_ids(self) -> frozenset[int]:
        """Special tokens, but for those of thinking tags: without them, thoughts would count."""
        tags = [tag for pair in verifier.THINKING_TAGS for tag in pair]
        return frozenset(
            token_id
            for token_id, token in self.tokenizer.added_tokens_decoder.items()
            if token.special and not any(token.content in tag for tag in tags)
        )

    def opened_thinking_tag(self, prompt_ids: list[int]) -> str:
        """Return the thinking tag that a prompt ends with, or nothing."""
        tail = str(self.tokenizer.decode(prompt_ids[-12:], skip_special_tokens=False)).rstrip()
        return next((tag for tag, _ in verifier.THINKING_TAGS if tail.endswith(tag)), "")

    def evaluate_prompts(
        self, batch: PromptBatch, *, with_tokens: bool = False
    ) -> list[ResponseRecord]:
        """Sample and grade responses with the evaluation settings; called on every rank."""
        origin = self.origin(self.evaluation) if with_tokens else {}
        if not len(batch):
            # All ranks hand their shards of the weights over together, so this one has to as well.
            with self.weights_to_sample():
                if isinstance(engine := self.engine(), VLLMEngine):
                    engine.sleep()
            return []
        n = self.evaluation.num_generations
        # A set has streams of its own, so it samples the same whatever stands beside it.
        named = batch.evaluation_set not in ("", HELD_OUT)
        stream = ("evaluation", batch.evaluation_set) if named else ("evaluation",)
        rollout = self.sample(batch, self.evaluation, *stream)
        records = [
            ResponseRecord(
                evaluation_set=batch.evaluation_set,
                index=batch.indices[row // n],
                sample=row % n,
                seed=stream_seed(*stream, batch.indices[row // n], row % n),
                source=problem.source,
                year=problem.year,
                problem=problem.problem,
                answer=problem.answer,
                response=rollout.responses[row],
                prediction=verifier.extract_answer(rollout.responses[row]),
                correct=bool(rollout.correct_B[row]),
                length=int(rollout.response_lengths_B[row]),
                finished=bool(rollout.finished_B[row]),
            )
            for row, problem in enumerate(rollout.problems)
        ]
        return list(self.with_tokens(records, rollout, origin)) if with_tokens else records

    def with_tokens(
        self, records: list[ResponseRecord], rollout: Rollout, origin: dict[str, str | float]
    ) -> Iterator[ResponseRecord]:
        """Yield the records of a rollout, and what value pretraining needs."""
        for row, record in enumerate(records):
            prompt = int(rollout.prompt_lengths_B[row])
            ids = rollout.input_ids_BL[row, : prompt + record.length].tolist()
            yield SavedResponse(
                **vars(record),
                prompt_ids=ids[:prompt],
                response_ids=ids[prompt:],
                reward=float(rollout.scores_B[row]),
                origin=origin,
            )

    def origin(self, settings: SamplingSettings) -> dict[str, str | float]:
        """Return what responses depend on beside their prompts: if it differs, so do they.

        Called on every rank.
        """
        assert self.actor is not None
        with gathered(self.actor):
            model = model_fingerprint(self.actor)
        return {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "model": model,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_response_length": settings.max_response_length,
        }

    def export(self, folder: Path) -> None:
        """Write `actor` as an ordinary Hugging Face folder; called on every rank."""
        assert self.actor is not None
        self.write(folder / "actor", self.actor)

    def write(self, folder: Path, model: PreTrainedModel) -> None:
        """Write a model as an ordinary Hugging Face folder; called on every rank."""
        with in_place("export of the weights", FILES_S):
            weights = full_state_dict(model)
            if self.trainer.is_global_zero:
                write_folder(folder, model, self.tokenizer, weights)

    def weights_to_sample(self) -> AbstractContextManager[None]:
        """Return the context in which an engine reads the actor; entered on every rank."""
        assert self.actor is not None
        # vLLM takes sharded weights one by one.
        return nullcontext() if self.engine_settings.name == "vllm" else gathered(self.actor)

    # Ranks ------------------------------------------------------------------------

    def sum_over_ranks(self, statistics: Tensor) -> Tensor:
        """Return the sum of a small tensor over all ranks: the `reduce` of the pure functions."""
        total = self.trainer.strategy.reduce(statistics.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def max_over_ranks(self, number: int) -> int:
        """Return the largest of one number a rank."""
        largest = torch.tensor(number, device=self.device)
        return int(self.trainer.strategy.reduce(largest, reduce_op="max"))
