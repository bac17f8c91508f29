"""Helpers of tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_vcppo.algorithm.losses import (
    kl_penalty,
    positive_example_nll,
    value_loss,
)
from lightning_vcppo.algorithm.policy_losses import (
    cispo_loss,
    dis_loss,
    dppo_tv_loss,
    gspo_loss,
    policy_loss,
)
from lightning_vcppo.algorithm.value_heads import bce_loss, hl_gauss_edges, hl_gauss_loss

BINS = 9


class Batch:
    """Everything that a loss may ask for, of five rows with 6, 1, 0, 4 and 2 tokens, in float64."""

    def __init__(self, seed: int = 0, fill: float = 0.0) -> None:
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        self.mask_BT = torch.arange(6) < torch.tensor([6, 1, 0, 4, 2])[:, None]
        self.mask_BT[0, 2] = False
        self.logprobs_BT = self._with(fill, -normal(5, 6).abs())
        self.old_BT = self._with(fill, self.logprobs_BT + 0.5 * normal(5, 6))
        self.advantages_BT = self._with(fill, normal(5, 6))
        self.importance_BT = self._with(fill, normal(5, 6).exp())
        self.values_BT = self._with(fill, normal(5, 6))
        self.old_values_BT = self._with(fill, self.values_BT + 0.3 * normal(5, 6))
        self.returns_BT = self._with(fill, normal(5, 6))
        self.correct_B = torch.tensor([True, False, True, False, True])
        self.logits_BTK = normal(5, 6, BINS)
        self.logits_BTK[~self.mask_BT] = fill

    def _with(self, fill: float, x_BT: Tensor) -> Tensor:
        return torch.where(self.mask_BT, x_BT, fill)

    def rows(self, indices: list[int] | slice) -> Batch:
        part = object.__new__(Batch)
        part.__dict__ = {name: x[indices] for name, x in vars(self).items()}
        return part


# Every loss, with every term that it has, as a function of a batch, its prediction and weights.
Loss = Callable[[Batch, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]


def _of(loss: Callable[..., Any], batch: Batch, x: Tensor, weights_BT: Any, **clips: Any) -> Any:
    return loss(
        x,
        batch.old_BT,
        batch.advantages_BT,
        batch.mask_BT,
        importance_weights_BT=batch.importance_BT,
        token_weights_BT=weights_BT,
        **clips,
    )


PPO = {"clip_ratio_low": 0.1, "clip_ratio_high": 0.15, "clip_ratio_c": 1.3}
DIS = {"clip_ratio_low": 0.3, "clip_ratio_high": 0.4}
DPPO_TV = {"clip_ratio_low": 0.1, "clip_ratio_high": 0.12, "clip_ratio_c": 1.05}
CISPO = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.15}
GSPO = {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1}
"""Bounds that some tokens of a `Batch` leave on either side."""


def _policy(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return _of(policy_loss, batch, x, weights_BT, **PPO)


def _dis(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return _of(dis_loss, batch, x, weights_BT, **DIS)


def _dppo_tv(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return _of(dppo_tv_loss, batch, x, weights_BT, **DPPO_TV)


def _cispo(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return _of(cispo_loss, batch, x, weights_BT, **CISPO)


def _gspo(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    """Compute GSPO's loss with one advantage a response, for which it is a function of log pi."""
    mask_BT = batch.mask_BT
    per_row_B1 = torch.where(mask_BT, batch.advantages_BT, 0.0).sum(-1, keepdim=True)
    return gspo_loss(
        x, batch.old_BT, per_row_B1.expand_as(x), mask_BT, token_weights_BT=weights_BT, **GSPO
    )


def _value(batch: Batch, x: Tensor, weights_BT: Tensor | None, **options: Any) -> Any:
    return value_loss(x, batch.returns_BT, batch.mask_BT, token_weights_BT=weights_BT, **options)


def _clipped_value(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return _value(
        batch, x, weights_BT, old_values_BT=batch.old_values_BT, cliprange_value=0.2, loss="huber"
    )


def _nll(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return positive_example_nll(x, batch.mask_BT, batch.correct_B, token_weights_BT=weights_BT)


def _kl(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return kl_penalty(x, batch.old_BT, batch.mask_BT, estimator="k3", token_weights_BT=weights_BT)


def _hl_gauss(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    edges_E = hl_gauss_edges(-3.0, 3.0, BINS, dtype=torch.promote_types(x.dtype, torch.float32))
    return hl_gauss_loss(
        x, batch.returns_BT, batch.mask_BT, edges_E=edges_E, token_weights_BT=weights_BT
    )


def _wide_hl_gauss(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    dtype = torch.promote_types(x.dtype, torch.float32)
    edges_E = hl_gauss_edges(-1.0, 1.0, BINS, sigma_ratio=1.1, dtype=dtype)
    return hl_gauss_loss(
        x,
        batch.returns_BT,
        batch.mask_BT,
        edges_E=edges_E,
        sigma_ratio=1.1,
        token_weights_BT=weights_BT,
    )


def _bce(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    # Some of the returns are outside this range.
    return bce_loss(
        x, batch.returns_BT, batch.mask_BT, low=-1.0, high=1.5, token_weights_BT=weights_BT
    )


LOSSES: dict[str, tuple[Loss, str]] = {
    "policy": (_policy, "logprobs_BT"),
    "dis": (_dis, "logprobs_BT"),
    "dppo_tv": (_dppo_tv, "logprobs_BT"),
    "cispo": (_cispo, "logprobs_BT"),
    "gspo": (_gspo, "logprobs_BT"),
    "value": (_value, "values_BT"),
    "clipped value": (_clipped_value, "values_BT"),
    "nll": (_nll, "logprobs_BT"),
    "kl": (_kl, "logprobs_BT"),
    "hl_gauss": (_hl_gauss, "logits_BTK"),
    "wide hl_gauss": (_wide_hl_gauss, "logits_BTK"),
    "bce": (_bce, "values_BT"),
}


def counted_mask(loss: Loss, batch: Batch) -> Tensor:
    return batch.mask_BT & batch.correct_B[:, None] if loss is _nll else batch.mask_BT


def run(
    loss: Loss, batch: Batch, input_name: str, weights_BT: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x = getattr(batch, input_name).clone().requires_grad_()
    value, diagnostics = loss(batch, x, weights_BT)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient, diagnostics
