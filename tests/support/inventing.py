"""A small module that invents its rollouts, and a real Trainer for it and for callbacks."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_vcppo.algorithm.advantages import decoupled_gae
from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.rollouts.records import ResponseRecord
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import (
    AdvantageSettings,
    OptimizerSettings,
    SamplingSettings,
    ValueSettings,
)


class InventingModule(LightningModule):
    """What the callbacks see of a VCPPOModule: real records, made up instead of sampled."""

    def __init__(self, advantage: AdvantageSettings = AdvantageSettings(), k: int = 2) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.advantage, self.k = advantage, k
        self.rollout: Rollout | None = None
        self.rollouts_done = 0
        self.phase = Phase.POLICY_OPTIMIZATION
        self.sets = ["held_out"]
        self.sampling = SamplingSettings(max_response_length=60)
        self.value = None if advantage.estimator == "group" else ValueSettings()
        self.optimizer_settings = {
            "policy": OptimizerSettings(1e-6),
            "critic": OptimizerSettings(2e-6),
        }
        self.loader = SimpleNamespace(critic_is_pretrained=False)

    def sum_over_ranks(self, statistics: torch.Tensor) -> torch.Tensor:
        """There is one rank."""
        return statistics

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.rollouts_done += 1
        self.rollout = invent_rollout(self.rollouts_done, self.advantage)
        rollout = self.rollout
        self.log_dict(
            {
                "rollout/reward_mean": rollout.scores_B.mean(),
                "rollout/accuracy": rollout.correct_B.float().mean(),
                "rollout/response_length": rollout.response_lengths_B.float().mean(),
                "critic/explained_variance": 1 - 2 / (1 + self.rollouts_done),
                "critic/r2": 1 - 3 / (1 + self.rollouts_done),
                "step": float(self.rollouts_done),
            }
        )
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()  # counts as a batch for the loggers, as the real updates do

    @override
    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[ResponseRecord]]:
        records = self.predict_step(batch, batch_idx)
        return {"records": [replace(r, evaluation_set=self.sets[dataloader_idx]) for r in records]}

    test_step = validation_step

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> list[ResponseRecord]:
        indices = batch.tolist()
        return [invent_record(i, sample) for i in indices for sample in range(self.k)]

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rollouts_done"] = self.rollouts_done

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rollouts_done = checkpoint["rollouts_done"]

    def export(self, directory: Path) -> None:
        """Leave a sign."""
        (directory / "actor").mkdir(parents=True)
        (directory / "critic").mkdir()


class PretrainTwice(Callback):
    """Two rollouts of value pretraining, ended, as by the real callback, with the second one."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, InventingModule)
        pl_module.phase = Phase.VALUE_PRETRAINING

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        assert isinstance(pl_module, InventingModule)
        if pl_module.rollouts_done == 2:
            pl_module.phase = Phase.POLICY_OPTIMIZATION


def invent_rollout(number: int, settings: AdvantageSettings, size: int = 6) -> Rollout:
    """Invent responses whose values rise along the response, less so as training goes on."""
    generator = torch.Generator().manual_seed(number)
    lengths_B = torch.randint(20, 60, (size,), generator=generator)
    position_BT = torch.arange(int(lengths_B.max())).expand(size, -1)
    mask_BT = position_BT < lengths_B[:, None]
    correct_B = torch.rand(size, generator=generator) < 1 - 1 / (1 + 0.2 * number)
    scores_B = correct_B.float() * 2 - 1
    last_BT = position_BT == lengths_B[:, None] - 1
    rewards_BT = last_BT * scores_B[:, None]
    values_BT = (position_BT / 60 - 1) / number * mask_BT
    advantages_BT, returns_BT = decoupled_gae(
        rewards_BT,
        values_BT,
        mask_BT,
        lambda_actor=settings.lambda_actor,
        lambda_critic=settings.lambda_critic,
    )
    rollout = Rollout(
        problems=(Problem("1 + 6?", 7),) * size,
        responses=("\\boxed{7}",) * size,
        input_ids_BL=torch.zeros_like(mask_BT, dtype=torch.long),
        prompt_lengths_B=torch.zeros(size, dtype=torch.long),
        response_mask_BT=mask_BT,
        sampler_logprobs_BT=torch.zeros_like(values_BT),
        finished_B=torch.ones(size, dtype=torch.bool),
        positions_B=torch.arange(size),
        group_ids_B=torch.arange(size),
        scores_B=scores_B,
        correct_B=correct_B,
        entropy_BT=mask_BT.float(),
        rewards_BT=rewards_BT,
        values_BT=values_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
    )
    if settings.estimator == "group":  # there is no critic
        rollout = rollout.with_(values_BT=None, returns_BT=None)
    return rollout


def invent_record(index: int, sample: int) -> ResponseRecord:
    """Invent a response: right on sample 0 of even problems, cut off on problem 3."""
    correct, finished = index % 2 == 0 and sample == 0, index != 3
    return ResponseRecord(
        index=index,
        sample=sample,
        source="invented",
        problem=f"Is {index} even | odd?",
        answer=7,
        response="é\n7",
        prediction=("7" if correct else "8") if finished else None,
        correct=correct,
        length=10 * (index + 1),
        finished=finished,
    )


def make_trainer(root: Path, *callbacks: Callback, **kwargs: Any) -> Trainer:
    """Make a quiet trainer of four rollouts, an evaluation after every second one."""
    defaults: dict[str, Any] = {
        "logger": CSVLogger(root),
        "max_epochs": 1,
        "limit_train_batches": 4,
        "val_check_interval": 2,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
    }
    return Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=1,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **defaults | kwargs,
    )


def problems(count: int = 4) -> DataLoader[Any]:
    """Batches of one problem index."""
    return DataLoader(torch.arange(count), batch_size=1)  # type: ignore[arg-type]


def fit(trainer: Trainer, module: LightningModule, ckpt_path: str | Path | None = None) -> None:
    """Train on as many batches as the trainer wants."""
    trainer.fit(module, problems(1000), problems(), ckpt_path=ckpt_path, weights_only=True)


def logged(root: Path, key: str) -> dict[int, float]:
    """Read a metric from the CSV log, by its step."""
    (path,) = root.glob("lightning_logs/*/metrics.csv")
    with path.open() as file:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row[key]}
