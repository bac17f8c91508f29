"""Base of all modules: an actor that samples responses and has them graded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from lightning_vcppo.checkpointing.format import FORMAT, Keys
from lightning_vcppo.common.files import run_path
from lightning_vcppo.common.fresh_start import is_new_run
from lightning_vcppo.common.lightning_compat import is_attached
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.distributed.fsdp2 import build
from lightning_vcppo.distributed.precision import multiplies_precisely, step_precision
from lightning_vcppo.distributed.sharding import full_state_dict
from lightning_vcppo.distributed.standstill import FILES_S, in_place, unwatch, watch
from lightning_vcppo.distributed.strategies import refuse_strategy
from lightning_vcppo.generation import Generations
from lightning_vcppo.generation.build import GATHERS_SHARDS
from lightning_vcppo.models import hf_folders, loading
from lightning_vcppo.models.checks import (
    check_context,
    check_prompts,
    check_rotary,
    check_vocabulary,
)
from lightning_vcppo.models.critic import Critic
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.models.kernels import use_kernels
from lightning_vcppo.modules.foreign_callbacks import check_callbacks
from lightning_vcppo.modules.lost_engine import together
from lightning_vcppo.modules.policy_probe import language_model, probe_policy
from lightning_vcppo.modules.update_health import UpdateHealth, end_if_not_finite
from lightning_vcppo.rewards.functions import Grader, RewardFunction
from lightning_vcppo.rollouts.ahead import Vantage
from lightning_vcppo.rollouts.evaluator import Evaluator
from lightning_vcppo.rollouts.records import ResponseRecord
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.rollouts.sampler import Sampler
from lightning_vcppo.settings import EngineSettings, GradingSettings, Kernels, SamplingSettings

Network = TypeVar("Network", bound=nn.Module)


class PolicyModule(L.LightningModule):
    """An actor with its tokenizer: samples, grades, validates and predicts.

    Attributes:
        sampling: Sampling settings of training; None if training does not sample.
        hint_lengths: Largest number of tokens that a network reads before each prompt, by network.
    """

    sampling: SamplingSettings | None = None

    def __init__(
        self,
        actor: str | dict[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        reward: str | RewardFunction,
        evaluation: SamplingSettings,
        engine: EngineSettings,
        grading: GradingSettings = GradingSettings(),
    ) -> None:
        """Collect the settings; `configure_model` loads or builds the actor.

        Args:
            actor: Directory or hub id of a causal language model, or a model config.
            tokenizer: The actor's tokenizer.
            reward: A style of the verifier, or a function of (response, answer, ...) that returns a
                float, positive for correct; or its import path. See `docs/howto/reward.md`.
            evaluation: How responses are sampled in `validate`, `test` and `predict`.
            engine: The engine that samples them.
            grading: Worker processes of the verifier.

        Raises:
            ValueError: If the engine is vLLM and vLLM is not installed.
        """
        super().__init__()
        self.actor_source = actor
        self.evaluation = evaluation
        self.tokenizer = tokenizer
        self.grader = Grader(reward, grading)
        self.sampler = Sampler(tokenizer, self.grader, engine)
        self.evaluator = Evaluator(self.sample, evaluation)
        self.actor: PreTrainedModel | None = None
        self.hint_lengths: dict[str, int] = {}
        self.health: dict[str, UpdateHealth] = {}  # by network that is trained
        self.sampler_agrees = True  # with the log-probabilities of a forward pass
        self._probed = False
        self.rollouts_done = 0
        self.run_seed = self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0))

    # Loading -------------------------------------------------------------------------------------

    @override
    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse callbacks of Lightning that cannot work, before any of them runs; add none."""
        check_callbacks(self.trainer, automatic_optimization=self.automatic_optimization)
        return []

    @override
    def setup(self, stage: str) -> None:
        """Refuse a strategy that cannot work; start the counters of a new run."""
        refuse_strategy(self.trainer.strategy)
        watch(self.trainer.strategy)  # no process may outlive the others
        run_path(self.trainer)  # before anything is written, since it refuses URLs
        self._probed = False
        self.sampler.forget_weights()  # they may have changed between two stages
        if stage == "fit" and is_new_run(self.trainer):
            self.begin_run()

    @override
    def teardown(self, stage: str) -> None:
        """Stop watching the processes of the run."""
        unwatch()

    def begin_run(self) -> None:
        """Reset the counters of an earlier run; the weights stay as they are.

        A checkpoint, if there is one, is restored afterwards.
        """
        self.rollouts_done, self.run_seed = 0, self._seed
        for health in self.health.values():
            health.skipped = health.in_a_row = 0

    @override
    def configure_model(self) -> None:
        """Load the actor, once for all stages."""
        if self.actor is None:
            self.actor = self.build(self.load_actor)
            device = self.trainer.strategy.root_device if is_attached(self) else None
            self.sampler.attach(self.actor, device=device)
        check_vocabulary(self.actor, self.tokenizer, str(self.actor_source), "actor")

    def build(self, load: Callable[[], Network]) -> Network:
        """Build a network as the strategy needs it, without dropout; called on every rank.

        There is no Trainer under `load_from_checkpoint`.
        """
        with in_place("loading of the networks", FILES_S):
            network = build(load, self.trainer.strategy if is_attached(self) else None)
        loading.disable_dropout(network.train())
        return network

    def use_kernels(self, kernels: Kernels) -> None:
        """Replace layers of all networks by kernels that run on the Trainer's device."""
        for network in self._networks(training=True).values():
            use_kernels(language_model(network), kernels, self.trainer.strategy.root_device)

    def load_actor(self) -> PreTrainedModel:
        """Load the actor, or build it from its config."""
        if isinstance(self.actor_source, str):
            return loading.load_actor(self.actor_source)
        return loading.build_actor(self.actor_source, self.tokenizer)

    # Evaluation ----------------------------------------------------------------------------------

    @override
    def validation_step(
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Sample and grade responses, with the same random numbers at every evaluation."""
        with together(self.sampler.settings, self.max_over_ranks):
            if len(batch):
                return {"records": self.evaluator.evaluate(batch)}
            self.sampler.attend(self._weights_version())
        return {"records": []}

    @override
    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Do the same as `validation_step`."""
        return self.validation_step(batch, batch_idx)

    @override
    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[ResponseRecord]:
        """Sample and grade responses, and keep their tokens, for value pretraining."""
        origin = self.sampler.origin(self.evaluation)  # on every rank
        if not len(batch):
            self.sampler.attend(self._weights_version())
            return []
        return [*self.evaluator.predict(batch, origin)]

    # Room for prompt and response ----------------------------------------------------------------

    @override
    def on_fit_start(self) -> None:
        """Check that the model has positions for the longest prompt and response."""
        settings = {} if self.sampling is None else {"sampling": self.sampling}
        if self.trainer.enable_validation:
            settings["evaluation"] = self.evaluation
        self._check_lengths(settings)

    @override
    def on_validation_start(self) -> None:
        """Check that the model has positions for the longest prompt and response."""
        self._check_lengths({"evaluation": self.evaluation})

    on_test_start = on_predict_start = on_validation_start

    def _check_lengths(self, of_flags: dict[str, SamplingSettings]) -> None:
        """Refuse a response limit that, after the longest prompt, exceeds a network's positions."""
        datamodule = getattr(self.trainer, "datamodule", None)
        prompt = getattr(datamodule, "longest_prompt", 0)
        if self.actor is not None and (largest := getattr(datamodule, "largest_token", -1)) >= 0:
            check_prompts(self.actor, largest, "--model.actor")
        for flag, settings in of_flags.items():
            length, limit = settings.max_response_length, f"{flag}.max_response_length"
            # Evaluation reads with the actor only.
            for name, network in self._networks(training=flag != "evaluation").items():
                model, before = language_model(network), prompt + self.hint_lengths.get(name, 0)
                check_context(model, before, length, limit, name)
                check_rotary(model, before, length, limit, name)
        if not self._probed:
            self._probe(training="sampling" in of_flags)

    def _networks(self, *, training: bool) -> dict[str, PreTrainedModel | Critic]:
        """Return the networks that read prompts and responses, by name."""
        assert self.actor is not None
        return {"model": self.actor}

    def _probe(self, *, training: bool) -> None:
        """Check that each network's outputs do not depend on how its rows are batched."""
        assert self.actor is not None
        samples = self.sampler.settings.name not in GATHERS_SHARDS  # these have their own copy
        with torch.no_grad(), step_precision(self):
            self.sampler_agrees = probe_policy(
                self._networks(training=training),
                self.generate if samples else None,
                device=self.trainer.strategy.root_device,
                half="16" in str(self.trainer.precision)
                or not multiplies_precisely(next(self.actor.parameters())),
                agree=self.max_over_ranks,
            )
        self._probed = True

    # Sampling ------------------------------------------------------------------------------------

    def sample(self, batch: PromptBatch, settings: SamplingSettings, *stream: int | str) -> Rollout:
        """Sample `num_generations` responses per prompt and grade them; called on every rank.

        Args:
            batch: Prompts of this rank.
            settings: Sampling settings.
            stream: Names the random streams, together with problem and sample.
        """
        with self.sampling_context():
            return self.sampler.sample(
                batch,
                settings,
                *stream,
                rank=self.global_rank,
                device=self.device,
                version=self._weights_version(),
            )

    @contextmanager
    def sampling_context(self) -> Iterator[None]:
        """Run the body in the Trainer's precision; all ranks end if one has lost its servers."""
        agreed = together(self.sampler.settings, self.max_over_ranks)
        with in_place("sampling"), step_precision(self), agreed:
            yield

    def generate(
        self, prompt_ids: list[list[int]], seeds: list[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response per prompt; called on every rank."""
        with in_place("sampling"), step_precision(self):
            return self.sampler.generate(
                prompt_ids, seeds, settings, version=self._weights_version()
            )

    def sampler_is_exact(self) -> bool:
        """Return whether the sampler's log-probabilities are the policy's, except for rounding."""
        assert self.actor is not None
        weight = self.actor.get_output_embeddings().weight
        return self.sampler_agrees and multiplies_precisely(weight)

    def vantage(self) -> Vantage:
        """Return what sampling ahead needs to know of this process and moment."""
        updates, version = self._updates_of_actor(), self._weights_version()
        return Vantage(version, updates, self.global_rank, self.device, self.max_over_ranks)

    def _weights_version(self) -> tuple[int, int]:
        """Return a key of the actor's weights."""
        return (id(self.trainer), self._updates_of_actor()) if is_attached(self) else (0, 0)

    def _updates_of_actor(self) -> int:
        """Return the number of updates: Lightning counts every step of every optimizer."""
        return self.trainer.global_step

    # Checkpoints and directories -----------------------------------------------------------------

    @override
    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        """End the run, with a checkpoint, if too many updates in a row were not finite."""
        end_if_not_finite(self.health, self.trainer)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save rollout counter, seed of the run, and the networks' directories without weights."""
        checkpoint[Keys.VERSION] = FORMAT
        checkpoint[Keys.ROLLOUTS_DONE] = self.rollouts_done
        checkpoint[Keys.RUN_SEED] = self.run_seed
        checkpoint[Keys.RANKS] = self.trainer.world_size
        checkpoint[Keys.SKIPPED_IN_A_ROW] = {k: h.in_a_row for k, h in self.health.items()}
        checkpoint[Keys.FOLDERS] = {
            name: hf_folders.describe(model) for name, model in self.exported().items()
        }
        checkpoint[Keys.TOKENIZER] = self.tokenizer_files

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the saved run's random streams."""
        self.rollouts_done = checkpoint[Keys.ROLLOUTS_DONE]
        self.run_seed = checkpoint[Keys.RUN_SEED]
        ranks = checkpoint.get(Keys.RANKS, 1)
        if is_attached(self) and ranks != self.trainer.world_size:
            rank_zero_info(
                f"The checkpoint was written by {ranks} processes, and this run has "
                f"{self.trainer.world_size}: it resumes with the same prompts and random numbers, "
                "but not bit for bit, because sums are rounded differently."
            )
        for network, in_a_row in checkpoint[Keys.SKIPPED_IN_A_ROW].items():
            self.health[network].in_a_row = in_a_row
        self.sampler.forget_weights()

    @cached_property
    def tokenizer_files(self) -> dict[str, str]:
        """Files of the tokenizer's directory, which does not change."""
        return hf_folders.files_of(self.tokenizer)

    def exported(self) -> dict[str, PreTrainedModel]:
        """Return the networks that become Hugging Face directories, by the directory's name."""
        assert self.actor is not None
        return {"actor": self.actor}

    def export(self, directory: Path) -> None:
        """Write the networks as ordinary Hugging Face directories; called on every rank."""
        for name, model in self.exported().items():
            self.write(directory / name, model)

    def write(self, directory: Path, model: PreTrainedModel) -> None:
        """Write a model as an ordinary Hugging Face directory; called on every rank."""
        with in_place("export of the weights", FILES_S):
            weights = full_state_dict(model)
            if self.trainer.is_global_zero:
                write_folder(directory, model, self.tokenizer, weights)

    # Ranks ---------------------------------------------------------------------------------------

    @property
    def ranks(self) -> Ranks:
        """Collectives on numbers over the ranks of this run."""
        return Ranks.of(self)

    def sum_over_ranks(self, statistics: Tensor) -> Tensor:
        """Return the sum of a small tensor over all ranks: the `reduce` of the pure functions."""
        return self.ranks.sum(statistics)

    def max_over_ranks(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        return self.ranks.max(number)
