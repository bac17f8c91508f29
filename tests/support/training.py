"""Helpers of tests."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch.distributed.tensor import DTensor

from lightning_vcppo import AIMEDataModule, VCPPOModule
from lightning_vcppo.settings import (
    AdvantageSettings,
    LoRASettings,
    OptimizerSettings,
    PolicySettings,
    RewardShapingSettings,
    SamplingSettings,
    UpdateSettings,
    ValueSettings,
)

LORA = LoRASettings(rank=4, alpha=8.0)


SAMPLING = SamplingSettings(max_response_length=8, num_generations=2)
EVERYTHING = {
    "policy": PolicySettings(
        clip_ratio_high=0.28,
        clip_ratio_c=3.0,
        entropy_coeff=0.01,
        kl_coef=0.1,
        kl_estimator="k3",
        positive_example_nll_weight=0.1,
        importance_correction="truncate",
    ),
    "advantage": AdvantageSettings(length_adaptive_alpha=0.5, bootstrap_truncated=True),
    "value": ValueSettings(loss="huber", prompt_noise_weighting=True, cliprange_value=0.5),
    "reward_shaping": RewardShapingSettings(overlong_buffer_len=4),
}
SUCCESSORS = {
    "policy": PolicySettings(
        loss="dppo_tv",
        clip_ratio_c=3.0,
        old_logprobs="sampler",
        loss_agg_mode="seq-mean-token-sum",
    ),
    "advantage": AdvantageSettings(lambda_actor=1.0, whiten=False),
    "value": ValueSettings(
        head="bounded",
        value_min=-1.5,
        value_max=1.5,
        target_correction="importance",
        prompt_noise_weighting=True,
        prompt_noise_exponent=1.0,
    ),
}
"""Switches of later recipes, for `UpdateSettings(order="actor_first")`."""


def random_reward(response: str, answer: int) -> float:
    """Reward about half of all responses, so that there is something to learn from."""
    return 1.0 if sum(map(ord, response)) % 2 else -1.0


def make_module(actor, **changes) -> VCPPOModule:
    settings = {
        "reward": f"{__name__}.random_reward",
        "sampling": SAMPLING,
        "evaluation": SAMPLING,
        "update": UpdateSettings(ppo_mini_batch_size=4, ppo_epochs=2),
        "actor_optimizer": OptimizerSettings(lr=1e-3, warmup_updates=3),
        "critic_optimizer": OptimizerSettings(lr=1e-2),
    }
    return VCPPOModule(str(actor), **settings | changes)


class Recorder(Callback):
    """Keep what each rollout left behind."""

    def __init__(self):
        self.rollouts, self.metrics, self.actors, self.critics = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rollouts.append(pl_module.rollout)
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.actors.append(weights(pl_module.actor))
        if pl_module.critic is not None:
            self.critics.append(weights(pl_module.critic))


def weights(network: torch.nn.Module) -> torch.Tensor:
    """Return all weights in one row, whoever has them."""
    parameters = [p.detach() for p in network.parameters()]
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
    return torch.cat([p.flatten() for p in whole]).clone()


def fit(
    module,
    rollouts,
    *callbacks,
    prompts=4,
    epochs=1,
    val_batches=0,
    ckpt_path=None,
    path=None,
    **flags,
) -> Recorder:
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=epochs,
        limit_train_batches=rollouts,
        limit_val_batches=val_batches,
        callbacks=[recorder, *callbacks],
        **flags,
    )
    data = AIMEDataModule(path=path, train_size=40, val_size=4, prompts_per_rollout=prompts)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    recorder.trainer = trainer
    return recorder


class SaveAfter(Callback):
    """Save a checkpoint after some batches of prompts."""

    def __init__(self, batches: int, path: Path) -> None:
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)
