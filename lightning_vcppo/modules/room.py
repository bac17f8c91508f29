"""Check before anything is sampled that the networks have positions for what they will read."""

from __future__ import annotations

import lightning as L
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vcppo.models.checks import check_context
from lightning_vcppo.settings import SamplingSettings


class RoomForResponses(L.LightningModule):
    """A module with an actor, which asks at the start of each stage."""

    actor: PreTrainedModel | None
    evaluation: SamplingSettings

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
        prompt = getattr(getattr(self.trainer, "datamodule", None), "longest_prompt", 0)
        for flag, settings in of_flags.items():
            length = settings.max_response_length
            # Evaluation reads with the actor alone.
            networks = {"model": self.actor} if flag == "evaluation" else self.networks()
            for name, network in networks.items():
                assert network is not None
                check_context(network, prompt, length, f"{flag}.max_response_length", name)

    def networks(self) -> dict[str, PreTrainedModel]:
        """Return the networks that read prompts and responses in training, by name."""
        assert self.actor is not None
        return {"model": self.actor}
