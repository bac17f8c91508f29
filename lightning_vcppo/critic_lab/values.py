"""Read the values of an existing critic, and measure it.

Shapes: B responses, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from lightning_vcppo.critic_lab.hints import Hints
from lightning_vcppo.critic_lab.measures import Measures, measure
from lightning_vcppo.critic_lab.running import read_rollouts
from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.models import loading
from lightning_vcppo.models.critic import load_critic, require_value_head
from lightning_vcppo.models.side_critic import SideCritic
from lightning_vcppo.modules.scoring import Scorer
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import ValueSettings

ROWS = 512
"""Number of responses that are read from the disk at once."""


def device_of(name: str | None) -> torch.device:
    """Return a device; None means the GPU if there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


class ValueReader:
    """Reads the values of a critic, with its hints, its actor and its device."""

    def __init__(
        self,
        critic: str,
        store: TokenStore,
        *,
        settings: ValueSettings | None = None,
        actor: PreTrainedModel | None = None,
        max_tokens: int = 16384,
        device: str | None = None,
    ) -> None:
        """Load the critic.

        Args:
            critic: Directory or hub id of the critic.
            store: Store of the rollouts whose prompts it reads.
            settings: Settings that it was fitted with; None reads them from its directory.
            actor: The model that a side critic reads.
            max_tokens: Tokens of one forward pass.
            device: "cpu", "cuda", ...; None means the GPU if there is one.

        Raises:
            ValueError: If there is no such critic, the rollouts lack data that it reads, or a side
                critic has no actor.
        """
        if settings is None:
            described = getattr(loading.load_config(critic), "value_head", None) or {}
            settings = ValueSettings(**described)
        network = load_critic(critic, settings)
        if isinstance(network, SideCritic):
            if actor is None:
                raise ValueError(f"{critic}: a side critic reads an actor; name it with --actor")
            network.attach(actor)
        self._device = device_of(device)
        loading.disable_dropout(network.to(self._device).train())
        network.reader.to(self._device)  # type: ignore[arg-type]
        self._hints = Hints(store, loading.load_tokenizer(critic), settings)
        self._scorer = Scorer(network.reader, network, None, temperature=1.0, max_tokens=max_tokens)

    @torch.no_grad()
    def values(self, rollout: Rollout, rows: Sequence[int]) -> list[np.ndarray]:
        """Return V before each token of the response mask, one array for each response.

        Args:
            rollout: Responses to the prompts of stored responses.
            rows: Stored response whose hint, if any, precedes each of them.
        """
        seen = self._hints.view(rollout, rows).to(self._device)
        scorer, mask_BT = self._scorer, seen.response_mask_BT
        (values_BT,) = scorer.in_micro_batches(scorer.critic_values, seen, Ranks())
        return [
            values_T[mask_T].float().cpu().numpy()
            for values_T, mask_T in zip(values_BT, mask_BT, strict=True)
        ]


def measure_critic(
    critic: str,
    rollouts: str,
    max_tokens_per_batch: int = 16384,
    device: str | None = None,
    actor: str | None = None,
    drop_invalid: bool = False,
) -> tuple[Measures, float]:
    """Measure an existing critic on all responses of stored rollouts.

    Args:
        critic: Directory or hub id of a critic of this package, a token classifier or a sequence
            classifier with one label.
        rollouts: File, pattern or directory.
        max_tokens_per_batch: Tokens of one forward pass.
        device: "cpu", "cuda", ...; None means the GPU if there is one.
        actor: Directory or hub id of the actor that a side critic reads.
        drop_invalid: Skip rows that cannot be read.

    Returns:
        The measures, and the range of the rewards.

    Raises:
        ValueError: If there is no such critic, or the rollouts come from a model with other tokens.
    """
    require_value_head(critic)
    store, _ = read_rollouts(rollouts, critic, drop_invalid=drop_invalid)
    reader = ValueReader(
        critic,
        store,
        actor=loading.load_actor(actor) if actor else None,
        max_tokens=max_tokens_per_batch,
        device=device,
    )
    values: list[np.ndarray] = []
    for rows in torch.arange(len(store)).split(ROWS):
        values += reader.values(store.rollout(rows.tolist()), rows.tolist())
    low, high = store.reward_range
    return measure(values, list(store.rewards), list(store.groups), (low, high)), high - low
