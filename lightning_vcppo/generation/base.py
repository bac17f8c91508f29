"""The protocol behind which every generation engine stands.

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
        logprobs_BT: Log-probability of each under the sampler at the sampling temperature, before
            top-p took the tail away; 0 on padding.
        finished_B: True where the end-of-sequence token was sampled.
        entropy_BT: Entropy of the distribution it was drawn from, in nats, before top-p; 0 on
            padding. None from an engine that does not know it.
    """

    response_ids_BT: Tensor
    response_mask_BT: Tensor
    logprobs_BT: Tensor
    finished_B: Tensor
    entropy_BT: Tensor | None = None


class GenerationEngine(Protocol):
    """Samples responses to tokenised prompts; the whole contract between engines and the rest.

    Attributes:
        detached: True where responses come from a copy of the weights outside of the trained model
            that training does not touch: then `generate` may run in another thread while the model
            trains, one call at a time. It calls no collective, so ranks need not agree on when.
            False where sampling and training share the model, its memory or its process.
    """

    detached: bool

    def take_weights(self, version: object) -> None:
        """Make the next responses those of the actor as it is now; called on every rank.

        Args:
            version: Equal if and only if the weights are those of the last call.
        """
        ...

    def forget_weights(self) -> None:
        """Take the weights at the next call of `take_weights`, whatever their version."""
        ...

    def sleep(self) -> None:
        """Give memory back until responses are asked for again."""
        ...

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response a prompt.

        Args:
            prompt_ids: B >= 1 prompts of at least one token; repeat one to sample it more often.
            seeds: B seeds. The same prompt and seed give the same response, whatever else is in the
                batch, up to the rounding of the matrix products.
            settings: Temperature, top-p, length limit. `num_generations` is the caller's business.
        """
        ...
