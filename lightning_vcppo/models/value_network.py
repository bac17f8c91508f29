"""Define the base of every value function: a linear head, and values from its outputs.

Shapes: N masked response tokens, K outputs of the head, H hidden, E = K + 1 edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vcppo.algorithm import value_heads
from lightning_vcppo.common.seeding import stream
from lightning_vcppo.distributed.sharding import HasOwnShards
from lightning_vcppo.settings import ValueSettings

HEAD_STD = 0.02
"""Standard deviation of a head that starts at random (HL-Gauss PPO, arXiv 2608.02181)."""


class ValueNetwork(HasOwnShards):
    """A network with a value head, which computes in float32 whatever the backbone's precision.

    Attributes:
        settings: Settings of head and loss.
    """

    settings: ValueSettings
    model: PreTrainedModel

    @property
    def reader(self) -> PreTrainedModel:
        """The transformers model that reads prompts and responses."""
        return self.model

    @property
    def head(self) -> nn.Linear:
        """The value head, (H -> K)."""
        raise NotImplementedError

    def sharing_forward(self) -> AbstractContextManager[None]:
        """Return a context in which a critic on the actor's activations runs the actor no more."""
        return nullcontext()

    @override
    def own_shards(self) -> list[nn.Module]:
        """Return the head, which computes in its own precision."""
        return [self.head]

    @torch.no_grad()
    def reset_head(self, seed: int = 0) -> None:
        """Initialize the head as set by `value.head_init`.

        With "zero", V is constant: 0 for a scalar head, the middle of the range for any other.

        Args:
            seed: Seed of a head that starts at random.
        """
        weight_KH = self.head.weight
        weight_KH.zero_()
        if self.settings.head_init == "normal":
            random_KH = torch.randn(
                *weight_KH.shape, generator=stream(seed, "value head"), device="cpu"
            )
            weight_KH.copy_(HEAD_STD * random_KH)
        if self.head.bias is not None:
            self.head.bias.zero_()

    def read_head(self, hidden_NH: Tensor) -> Tensor:
        """Return the head's float32 (or better) output, (N, K)."""
        with torch.autocast(hidden_NH.device.type, enabled=False):
            outputs_NK: Tensor = self.head(hidden_NH.to(self.head.weight.dtype))
        return outputs_NK.to(torch.promote_types(outputs_NK.dtype, torch.float32))

    def values(self, outputs_NK: Tensor) -> Tensor:
        """Convert the head's outputs to values, (N,)."""
        settings = self.settings
        low, high = settings.value_min, settings.value_max
        if settings.head == "hl_gauss":
            return value_heads.hl_gauss_value(outputs_NK, self.edges())
        if settings.head == "bounded":
            return value_heads.bounded_value(outputs_NK[:, 0], low, high)
        if settings.head == "sigmoid":
            return value_heads.sigmoid_value(outputs_NK[:, 0], low, high)
        return outputs_NK[:, 0]

    def edges(self) -> Tensor:
        """Return the edges of the histogram head's bins, (K + 1,)."""
        settings = self.settings
        return value_heads.hl_gauss_edges(
            settings.value_min,
            settings.value_max,
            settings.num_bins,
            sigma_ratio=settings.sigma_ratio,
            device=self.head.weight.device,
        )


def num_outputs(settings: ValueSettings) -> int:
    """Return K, the number of outputs of the value head."""
    return settings.num_bins if settings.head == "hl_gauss" else 1


def describe_head(settings: ValueSettings) -> dict[str, Any]:
    """Return the description of a head that a critic's config needs to restore its values."""
    described: dict[str, Any] = {"head": settings.head}
    if settings.privileged_prompt != "none":
        described["privileged_prompt"] = settings.privileged_prompt
    if settings.head == "scalar":
        return described
    described["value_min"], described["value_max"] = settings.value_min, settings.value_max
    if settings.head == "hl_gauss":
        described["num_bins"] = settings.num_bins
        described["hl_gauss_sigma"] = settings.hl_gauss_sigma
        described["sigma_unit"] = settings.sigma_unit
    return described


def is_head(held: Mapping[str, Any], settings: ValueSettings) -> bool:
    """Return whether a config's description matches the head of the settings.

    Older directories do not state the width of the targets, which could not be set.
    """
    before: dict[str, Any] = {}
    if held.get("head") == "hl_gauss":
        before = {"hl_gauss_sigma": 0.75, "sigma_unit": "bins"}
    return {**before, **held} == describe_head(settings)
