"""Updates that are not finite: left out on all ranks alike, counted, and too many end the run."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_vcppo import AIMEDataModule, ColdStartModule, VCPPOModule
from lightning_vcppo.modules.update_health import NotFiniteError, UpdateHealth
from lightning_vcppo.settings import OptimizerSettings, UpdateSettings
from tests.support.forks import run_ranks
from tests.support.tiny_runs import CONFIGS, ROLLOUTS, logged, run_program
from tests.support.training import SAMPLING, fit, weights

FLAGS = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 1,
    "limit_val_batches": 0,
}
NEVER_FINITE = "tests.modules.test_update_health.not_a_number"


def not_a_number(response: str, answer: int) -> float:
    """Return what no verifier should."""
    return math.nan


class Poisoned(VCPPOModule):
    """One micro-batch of the critic's, in the second rollout, is spoilt on one rank."""

    poison, rank, micro_batches = "nan", 0, 0

    def build_objectives(self):
        objectives = super().build_objectives()
        objectives["critic"].loss = partial(self.spoilt, objectives["critic"].loss)
        return objectives

    def spoilt(self, loss_of, micro_batch):
        loss, metrics = loss_of(micro_batch)
        if self.rollouts_done == 1 and self.global_rank == self.rank:
            self.micro_batches += 1
            if self.micro_batches == 2:
                loss = loss * math.nan if self.poison == "nan" else loss + math.inf
        return loss, metrics


class Watch(Callback):
    """Keep what is left behind by each rollout: weights, state of the optimizers, metrics."""

    def __init__(self):
        self.critics, self.actors, self.moments, self.metrics = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.critics.append(weights(pl_module.critic))
        self.actors.append(weights(pl_module.actor))
        state = pl_module.critic_state()["optimizer"]["state"]
        self.moments.append(torch.cat([s["exp_avg_sq"].flatten() for s in state.values()]))
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def poisoned(actor) -> Poisoned:
    """Return a module with one mini-batch of several micro-batches a rollout."""
    return Poisoned(
        str(actor),
        reward="tests.support.training.random_reward",
        sampling=SAMPLING,
        evaluation=SAMPLING,
        update=UpdateSettings(ppo_mini_batch_size=16, ppo_max_token_len_per_gpu=130),
        actor_optimizer=OptimizerSettings(lr=1e-3),
        critic_optimizer=OptimizerSettings(lr=1e-2),
    )


def test_what_is_left_out_is_counted_until_it_is_too_much():
    health = UpdateHealth(limit=2, flag="--model.optimizer")
    for skipped, lost in [(True, False), (False, False), (True, False), (True, True)]:
        health.count(skipped)
        assert health.limit_reached is lost
    assert (health.take_skipped(), health.take_skipped()) == (3, 0)
    assert "2 updates in a row" in health.describe_failure("critic", "x.ckpt")
    assert not UpdateHealth(limit=0, flag="", in_a_row=99).limit_reached


@pytest.mark.parametrize("poison", ["nan", "infinite loss, finite gradient"])
def test_a_poisoned_micro_batch_reaches_neither_weights_nor_moments(tiny_actor, poison):
    seed_everything(0)
    module, watch = poisoned(tiny_actor), Watch()
    module.poison = poison
    fit(module, 3, watch)
    assert module.micro_batches > 2
    assert torch.equal(watch.critics[0], watch.critics[1])
    assert torch.equal(watch.moments[0], watch.moments[1])
    assert not torch.equal(watch.critics[1], watch.critics[2])
    assert not torch.equal(watch.actors[0], watch.actors[1])  # the actor has an update of its own
    assert [m["update/skipped_critic"] for m in watch.metrics] == [0, 1, 0]
    assert [m["update/skipped_policy"] for m in watch.metrics] == [0, 0, 0]
    assert module.updates_done == {"policy": 3, "critic": 2}
    assert weights(module.critic).isfinite().all() and math.isfinite(
        watch.metrics[2]["critic/loss"]
    )


def test_what_is_left_out_does_not_spoil_the_means_of_the_others(tiny_actor):
    seed_everything(0)
    module, watch = poisoned(tiny_actor), Watch()
    module.updaters["critic"].mini_batch_size = 4  # the second of two mini-batches
    fit(module, 2, watch)
    assert watch.metrics[1]["update/skipped_critic"] == 1
    assert math.isfinite(watch.metrics[1]["critic/loss"])
    assert math.isfinite(watch.metrics[1]["critic/grad_norm"])


def test_too_many_in_a_row_end_the_run_with_a_message_and_a_checkpoint(
    tiny_actor, tmp_path, capsys
):
    run = [
        *("fit", "--config", CONFIGS / "vcppo.yaml", f"--model.actor={tiny_actor}"),
        *(*ROLLOUTS, "--loggers=[csv]", "--value_pretraining.enabled=false"),
        *("--model.update.ppo_mini_batch_size=12", "--trainer.enable_checkpointing=false"),
        *("--trainer.limit_val_batches=0", f"--trainer.default_root_dir={tmp_path}"),
    ]
    spoilt = [f"--model.reward={NEVER_FINITE}", "--model.critic_optimizer.max_skipped_updates=2"]
    with pytest.raises(SystemExit) as end:
        run_program(*run, *spoilt)
    checkpoint = tmp_path / "checkpoints" / "not_finite.ckpt"
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2
    assert "critic: 2 updates in a row" in said and f"--ckpt_path={checkpoint}" in said
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["updates_done"] == {"policy": 0, "critic": 0} and saved["rollouts_done"] == 2
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())

    run_program(*run, f"--ckpt_path={checkpoint}")  # with a reward that is one
    last = logged(tmp_path)[-1]
    assert last["step"] == 3 and last["update/skipped_critic"] == 0


class PoisonedColdStart(ColdStartModule):
    """The losses of the updates 1 and 2 are not finite."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if batch_idx == 1 else loss + math.inf if batch_idx == 2 else loss


class ColdWatch(Callback):
    def __init__(self):
        self.actors, self.skipped = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.actors.append(weights(pl_module.actor))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.skipped.append(float(trainer.callback_metrics.get("update/skipped", 0.0)))


def cold_start(actor, directory, limit, watch):
    seed_everything(0)
    module = PoisonedColdStart(
        str(actor), optimizer=OptimizerSettings(lr=1e-3, max_skipped_updates=limit)
    )
    trainer = Trainer(**FLAGS, limit_train_batches=5, callbacks=[watch], default_root_dir=directory)
    trainer.fit(module, AIMEDataModule(train_size=20, val_size=2, prompts_per_rollout=4))


def test_a_poisoned_update_of_the_cold_start_is_left_out(tiny_actor, tmp_path):
    watch = ColdWatch()
    cold_start(tiny_actor, tmp_path, 3, watch)
    same = [torch.equal(a, b) for a, b in zip(watch.actors, watch.actors[1:], strict=False)]
    assert same == [True, True, False, False]
    assert watch.skipped == [0, 0, 1, 1, 0]
    assert watch.actors[-1].isfinite().all()


def test_too_many_end_the_cold_start(tiny_actor, tmp_path):
    watch = ColdWatch()
    with pytest.raises(NotFiniteError, match=r"actor: 2 updates in a row.*--model\.optimizer\.lr"):
        cold_start(tiny_actor, tmp_path, 2, watch)
    assert len(watch.actors) == 3
    saved = torch.load(tmp_path / "checkpoints" / "not_finite.ckpt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


@pytest.mark.thorough
def test_ranks_leave_the_same_update_out(tiny_actor, tmp_path):
    logs = tmp_path / "logs"
    ended_well = run_ranks(as_rank, tiny_actor, tmp_path, ranks=2, logs=logs)
    assert ended_well, [path.read_text()[-2000:] for path in logs.iterdir()]
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    for rank in (first, second):
        assert torch.equal(rank["critics"][0], rank["critics"][1])
        assert not torch.equal(rank["critics"][1], rank["critics"][2])
        assert rank["skipped"] == [0, 1, 0]
    assert torch.equal(first["critics"][2], second["critics"][2])


def as_rank(actor: Path, directory: Path) -> None:
    """Train for three rollouts on two ranks; the second has a loss that the first cannot see."""
    torch.set_num_threads(1)
    seed_everything(0)
    module, watch = poisoned(actor), Watch()
    module.poison, module.rank = "infinite loss, finite gradient", 1
    trainer = Trainer(**FLAGS, strategy="ddp", devices=2, limit_train_batches=3, callbacks=[watch])
    trainer.fit(module, AIMEDataModule(train_size=40, val_size=4, prompts_per_rollout=8))
    skipped = [metrics["update/skipped_critic"] for metrics in watch.metrics]
    torch.save(
        {"critics": watch.critics, "skipped": skipped}, directory / f"{trainer.global_rank}.pt"
    )
