"""Define the protocol that every generation engine implements.

Shapes: B sequences, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lightning_vcppo.settings import SamplingSettings


@dataclass(frozen=True)
class Generations:
    """Sampled responses, padded on the right.

    Attributes:
        response_ids_BT: Sampled tokens, the end-of-sequence token included.
        response_mask_BT: True on sampled tokens.
        logprobs_BT: Log-probability of each token under the sampler at the sampling temperature,
            before top-p; 0 on padding.
        finished_B: True where the end-of-sequence token was sampled.
        entropy_BT: Entropy of the distribution that each token was drawn from, in nats, before
            top-p; 0 on padding. None from an engine that does not return it.
    """

    response_ids_BT: Tensor
    response_mask_BT: Tensor
    logprobs_BT: Tensor
    finished_B: Tensor
    entropy_BT: Tensor | None = None


class GenerationEngine(Protocol):
    """Samples responses to tokenized prompts; all that other packages know of an engine.

    Attributes:
        detached: True if responses come from a copy of the weights that training does not touch:
            `generate` may then run in another thread while the model trains, one call at a time. It
            calls no collective, so ranks need not agree on when. False if sampling and training
            share the model, its memory or its process.
    """

    detached: bool

    def take_weights(self, version: object) -> None:
        """Use the actor's present weights for the next responses; called on every rank.

        Args:
            version: Key of the weights: equal to the last call's only if they are the same.
        """
        ...

    def forget_weights(self) -> None:
        """Take the weights at the next call of `take_weights`, whatever their version."""
        ...

    def sleep(self) -> None:
        """Release memory until responses are sampled again."""
        ...

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response per prompt.

        Args:
            prompt_ids: B >= 1 prompts of at least one token; repeat a prompt to sample it again.
            seeds: B seeds. The same prompt and seed give the same response, whatever else is in the
                batch, up to the rounding of the matrix products.
            settings: Temperature, top-p, length limit. The caller handles `num_generations`.
        """
        ...
