"""Base of cold start and reward model: one optimizer under automatic optimization.

Shapes: B sequences, L tokens of prompt + response.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import override

from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.sharding import full_scalar
from lightning_vcppo.modules.base import PolicyModule
from lightning_vcppo.modules.optimizers import build_optimizer
from lightning_vcppo.modules.update_health import UpdateHealth
from lightning_vcppo.settings import OptimizerSettings


class SupervisedModule(PolicyModule):
    """A module with one optimizer under Lightning's automatic optimization, and its clipping."""

    optimizer_settings: OptimizerSettings
    loss_is_finite = True

    def watch(self, network: str, settings: OptimizerSettings) -> None:
        """Set which network is trained, and its optimizer settings."""
        self.optimizer_settings = settings
        self.health = {network: UpdateHealth(settings.max_skipped_updates, "--model.optimizer")}

    @override
    def begin_run(self) -> None:
        """Also forget the last loss."""
        super().begin_run()
        self.loss_is_finite = True

    def scheduled(self, network: nn.Module, factor: Callable[[int], float]) -> OptimizerLRScheduler:
        """Return the network's optimizer; `factor` scales its learning rate by the updates done."""
        optimizer = build_optimizer(self.optimizer_settings, network.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    @override
    def on_before_backward(self, loss: Tensor) -> None:
        """Note whether the loss of each backward pass of an update is finite."""
        self.loss_is_finite &= bool(loss.isfinite())

    @override
    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        """Log the number of skipped updates."""
        (health,) = self.health.values()
        self.log("update/skipped", health.take_skipped(), batch_size=len(batch))
        super().on_train_batch_end(outputs, batch, batch_idx)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the module's own norm, or to the Trainer's if that flag is given.

        Without gradients the optimizer's step, which comes next, changes neither weights nor state.
        """
        norm = (
            self.optimizer_settings.max_grad_norm
            if gradient_clip_val is None
            else gradient_clip_val
        )
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = full_scalar(torch.nn.utils.get_total_norm(gradients))
        finite = self.loss_is_finite and math.isfinite(total)
        skip = self.max_over_ranks(int(not finite)) > 0
        (health,) = self.health.values()
        health.count(skip)
        self.loss_is_finite = True
        if skip:
            optimizer.zero_grad()
        elif gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, norm)
        elif norm:
            torch.nn.utils.clip_grad_norm_(parameters, norm)


def _length_mask(lengths: list[int]) -> Tensor:
    """Return a mask (B, T), True on the first `length` positions of each row."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def _right_pad(rows: list[list[int]], pad: int) -> Tensor:
    """Return token ids (B, T), padded on the right."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in rows], batch_first=True, padding_value=pad
    )
