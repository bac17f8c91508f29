"""The modules that make what VC-PPO starts from."""

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_vcppo import AIMEDataModule, RewardModelModule
from lightning_vcppo.settings import OptimizerSettings, SamplingSettings
from tests.support.rows import every
from tests.support.training import weights


class Watch(Callback):
    """Keep learning rates and gradient norms of all updates."""

    def __init__(self):
        self.rates, self.norms = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        grads = [p.grad for p in pl_module.reward_model.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(grads)))  # as the step saw them


def fit(module, updates, *callbacks):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        limit_train_batches=updates,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )
    trainer.fit(module, AIMEDataModule(train_size=200, val_size=2, prompts_per_rollout=4))


def test_a_reward_model_warms_up_and_clips(tiny_actor):
    seed_everything(0)
    optimizer = OptimizerSettings(lr=1e-3, warmup_updates=4, max_grad_norm=1e-3)
    sampling = SamplingSettings(max_response_length=8)
    module = RewardModelModule(str(tiny_actor), sampling=sampling, optimizer=optimizer)
    watch = Watch()
    fit(module, 3, watch)
    assert watch.rates == [0.25e-3, 0.5e-3, 0.75e-3]
    assert weights(module.reward_model).isfinite().all()
    torch.testing.assert_close(watch.norms, [1e-3] * 3, rtol=1e-2, atol=0)


# No response to these problems is right, so at their ends, and only there, the score is -1.
@pytest.mark.parametrize(
    ("unfinished_score", "least", "most"),
    every(2, [(-2.0, -math.inf, -1.5), (None, -1.3, -0.7), (1.0, 0.5, math.inf)]),
)
def test_a_reward_model_scores_unfinished_responses_as_it_was_told(
    tiny_actor, unfinished_score, least, most
):
    seed_everything(0)
    module = RewardModelModule(
        str(tiny_actor),
        sampling=SamplingSettings(max_response_length=12),
        optimizer=OptimizerSettings(lr=3e-3),
        unfinished_score=unfinished_score,
    )
    fit(module, 40)
    data = AIMEDataModule(
        train_size=30, val_size=0, prompts_per_rollout=16, tokenizer=module.tokenizer
    )
    data.setup("fit")
    rollout = module.sample(next(iter(data.train_dataloader())), module.sampling, 0)
    begun_BT = torch.zeros_like(rollout.response_mask_BT)
    begun_BT[:, 3] = True
    with torch.no_grad():
        mean = float(module.read_scores(rollout, begun_BT).mean())
    assert least < mean < most
