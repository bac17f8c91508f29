"""Check before anything is sampled that the networks have positions for what they will read."""

from __future__ import annotations

from abc import abstractmethod

import lightning as L
import torch
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vcppo.generation.base import Generations
from lightning_vcppo.models.checks import check_context, check_prompts, check_rotary
from lightning_vcppo.models.critic import Critic
from lightning_vcppo.modules.policy_probe import language_model, probe_policy
from lightning_vcppo.settings import EngineSettings, SamplingSettings


class RoomForResponses(L.LightningModule):
    """A module with an actor, which asks at the start of each stage."""

    actor: PreTrainedModel | None
    evaluation: SamplingSettings
    engine_settings: EngineSettings
    sampler_agrees = True
    """Whether sampling leaves the log-probabilities that reading gives."""
    _probed = False

    @abstractmethod
    def generate(
        self, prompt_ids: list[list[int]], seeds: list[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response a prompt; called on every rank."""

    @abstractmethod
    def max_over_ranks(self, number: int) -> int:
        """Return the largest of one number a rank."""

    @override
    def setup(self, stage: str) -> None:
        """Check anew in each run."""
        self._probed = False

    @override
    def on_fit_start(self) -> None:
        """See that the model has room for what it will be asked for."""
        settings = self.training_settings()
        if self.trainer.enable_validation:
            settings["evaluation"] = self.evaluation
        self.check_lengths(settings)

    @override
    def on_validation_start(self) -> None:
        """See that the model has room for what it will be asked for."""
        self.check_lengths({"evaluation": self.evaluation})

    @override
    def on_test_start(self) -> None:
        """Do the same as `on_validation_start`."""
        self.on_validation_start()

    @override
    def on_predict_start(self) -> None:
        """Do the same as `on_validation_start`."""
        self.on_validation_start()

    def training_settings(self) -> dict[str, SamplingSettings]:
        """Return how training samples, by flag; a module that does not has none."""
        return {}

    def check_lengths(self, of_flags: dict[str, SamplingSettings]) -> None:
        """Refuse a response limit that, behind the longest prompt, the model has no room for."""
        datamodule = getattr(self.trainer, "datamodule", None)
        prompt = getattr(datamodule, "longest_prompt", 0)
        if self.actor is not None and (largest := getattr(datamodule, "largest_token", -1)) >= 0:
            check_prompts(self.actor, largest, "--model.actor")
        for flag, settings in of_flags.items():
            length = settings.max_response_length
            # Evaluation reads with the actor alone.
            networks = {"model": self.actor} if flag == "evaluation" else self.networks()
            for name, network in networks.items():
                assert network is not None
                model = language_model(network)
                limit = f"{flag}.max_response_length"
                check_context(model, prompt, length, limit, name)
                check_rotary(model, prompt, length, limit, name)
        if not self._probed:
            self._probe(with_others="sampling" in of_flags)

    def _probe(self, *, with_others: bool) -> None:
        """Check that the networks are one function each, however their rows are arranged."""
        assert self.actor is not None
        half = self.actor.dtype.itemsize < 4 or "16" in str(self.trainer.precision)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            self.sampler_agrees = probe_policy(
                self.networks() if with_others else {"model": self.actor},
                None if self.engine_settings.name == "vllm" else self.generate,
                half=half,
                agree=self.max_over_ranks,
            )
        self._probed = True

    def networks(self) -> dict[str, PreTrainedModel | Critic]:
        """Return the networks that read prompts and responses in training, by name."""
        assert self.actor is not None
        return {"model": self.actor}
