"""The modules that make what VC-PPO starts from."""

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_vcppo import AIMEDataModule, RewardModelModule
from lightning_vcppo.settings import OptimizerSettings, SamplingSettings
from tests.test_module import weights


class Watch(Callback):
    """Keep learning rates and gradient norms of all updates."""

    def __init__(self):
        self.rates, self.norms = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        grads = [p.grad for p in pl_module.reward_model.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(grads)))  # as the step saw them


def test_a_reward_model_warms_up_and_clips(tiny_actor):
    seed_everything(0)
    optimizer = OptimizerSettings(lr=1e-3, warmup_updates=4, max_grad_norm=1e-3)
    sampling = SamplingSettings(max_response_length=8)
    module = RewardModelModule(str(tiny_actor), sampling=sampling, optimizer=optimizer)
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=0,
        callbacks=[watch],
    )
    trainer.fit(module, AIMEDataModule(train_size=20, val_size=2, prompts_per_rollout=4))
    assert watch.rates == [0.25e-3, 0.5e-3, 0.75e-3]
    assert weights(module.reward_model).isfinite().all()
    torch.testing.assert_close(watch.norms, [1e-3] * 3, rtol=1e-2, atol=0)
