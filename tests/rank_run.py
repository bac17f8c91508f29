"""Train for four rollouts, save each rank's weights: `-m tests.rank_run ACTOR FOLDER RANKS`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_vcppo import AIMEDataModule
from lightning_vcppo.callbacks import (
    CriticCalibration,
    GuardRails,
    LearningCurves,
    RewardDecayMonitor,
    ValuePretraining,
)
from lightning_vcppo.settings import UpdateSettings
from tests.test_module import EVERYTHING, make_module, weights


def main(actor: str, folder: Path, ranks: int) -> None:
    """Run and save."""
    torch.set_num_threads(1)
    seed_everything(0)
    # Micro-batches of about three rows: the ranks have different numbers of them.
    update = UpdateSettings(ppo_mini_batch_size=6, ppo_epochs=2, ppo_max_token_len_per_gpu=130)
    module = make_module(actor, update=update, **EVERYTHING)
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp" if ranks > 1 else "auto",
        devices=ranks,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        limit_train_batches=4,
        limit_val_batches=0,
        default_root_dir=folder / f"{ranks}_ranks",
        callbacks=[
            ValuePretraining(max_rollouts=2, held_out_share=0.5, dirpath=str(folder)),
            RewardDecayMonitor(),
            CriticCalibration(),
            GuardRails(),
            LearningCurves(),
        ],
    )
    trainer.fit(module, AIMEDataModule(train_size=40, val_size=4, prompts_per_rollout=8))
    result = {
        "actor": weights(module.actor),
        "critic": weights(module.critic),
        "responses": list(module.rollout.responses),
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
    }
    torch.save(result, folder / f"{ranks}_ranks_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
