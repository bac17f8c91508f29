"""Which process sees which prompts when, also after a resume."""

import json
from math import inf
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vcppo.callbacks import AIMEEvaluation
from lightning_vcppo.data.datamodule import AIMEDataModule
from lightning_vcppo.data.loaders import EvalLoader, TrainLoader, epoch_order
from lightning_vcppo.rollouts.records import ResponseRecord
from tests.support.data import byte_tokenizer, indices, prompts, write_problems
from tests.support.forks import run_ranks

# Order and shares


@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 3))
def test_every_epoch_has_an_order_of_its_own(size, seed, epoch):
    order = epoch_order(size, seed, epoch)
    assert sorted(order) == list(range(size))
    assert order == epoch_order(size, seed, epoch)


def test_orders_differ_between_seeds_and_epochs():
    orders = [epoch_order(50, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(map(tuple, orders))) == 9


@given(st.integers(1, 30), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.integers(0, 9))
def test_shares_of_a_training_batch_are_the_same_rollout(size, world_size, share, seen):
    batch_size = share * world_size

    def position():
        return 2, seen

    whole = indices(TrainLoader(prompts(size), batch_size, 7, 0, 1, position))
    shares = [
        indices(TrainLoader(prompts(size), batch_size, 7, rank, world_size, position))
        for rank in range(world_size)
    ]
    joined = [[i for part in parts for i in part] for parts in zip(*shares, strict=True)]
    from_start = indices(TrainLoader(prompts(size), batch_size, 7, position=lambda: (2, 0)))
    assert joined == whole == from_start[seen:]


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="prompts_per_rollout: 6 cannot be divided among 4"):
        TrainLoader(prompts(12), 6, 0, 0, 4)


@given(st.integers(0, 30), st.integers(1, 4), st.integers(1, 5))
def test_every_evaluation_prompt_is_seen_once_in_equally_many_batches(size, world_size, batch_size):
    loaders = [
        EvalLoader(prompts(size), batch_size, rank, world_size) for rank in range(world_size)
    ]
    batches = [indices(loader) for loader in loaders]
    assert {len(share) for share in batches} == {len(loaders[0])}
    assert sorted(i for share in batches for batch in share for i in batch) == list(range(size))
    assert max((len(b) for share in batches for b in share), default=0) <= batch_size


# Under a real Trainer


class Recorder(pl.LightningModule):
    """Writes down which prompts it sees; has two optimizer steps a batch, as PPO would."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.tokenizer = byte_tokenizer()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.seen = []

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.indices))
        for _ in range(2):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.layer.weight.sum())
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        self.log("prompts", float(len(batch)), batch_size=len(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(directory, *, ckpt_path=None, train_size=20, **trainer_arguments):
    module = Recorder()
    data = AIMEDataModule(
        train_size=train_size, val_size=4, prompts_per_rollout=3, val_batch_size=3
    )
    checkpoints = ModelCheckpoint(
        directory, filename="{epoch}-{step}", every_n_train_steps=1, save_top_k=-1
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer_arguments,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module.seen


@pytest.mark.filterwarnings("error:.*not resumable", "ignore:.*ModelCheckpoint with manual")
@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory")
@pytest.mark.parametrize("trainer_arguments", [{}, {"val_check_interval": 2}, {"max_steps": 20}])
def test_a_resumed_run_sees_exactly_the_batches_that_were_left(tmp_path, trainer_arguments):
    whole = fit(tmp_path, **trainer_arguments)
    epochs = [epoch for epoch, _, _ in whole]
    assert epochs == ([0] * 6 + [1] * 6)[: len(whole)]
    assert [batch for _, batch, _ in whole[:6]] == list(range(6))
    first_epoch = [i for epoch, _, rows in whole if epoch == 0 for i in rows]
    assert len(first_epoch) == len({*first_epoch} & {*range(20)}) == 18  # two do not fill a batch
    checkpoints = {torch.load(p, weights_only=True)["global_step"]: p for p in tmp_path.iterdir()}
    for steps in (2, 8, 12, 14, 2 * len(whole)):  # first, middle and end of an epoch, next, last
        resumed = fit(tmp_path / "again", ckpt_path=checkpoints[steps], **trainer_arguments)
        assert resumed == whole[steps // 2 :]


def test_resuming_with_other_data_is_noticed(tmp_path):
    fit(tmp_path, max_steps=4)
    (checkpoint, *_) = sorted(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="train_problems was 20 in the checkpoint and is 21"):
        fit(tmp_path / "again", ckpt_path=checkpoint, train_size=21)


@pytest.mark.thorough
def test_two_processes_share_the_prompts(tmp_path):
    small = write_problems(tmp_path / "small.jsonl", ["a", "b", "c"])
    assert run_ranks(two_ranks, tmp_path, small, ranks=2, logs=tmp_path / "logs")
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    order = epoch_order(9, 0, 0)
    assert [ranks[0][0][i] + ranks[1][0][i] for i in range(2)] == [order[:4], order[4:8]]
    # Held-out problems, then those of the small set: as many batches for both processes.
    assert [share[1] for share in ranks] == [[[0], [2], [4], [0], [2]], [[1], [3], [], [1], []]]
    metrics = ranks[0][2]
    assert metrics == ranks[1][2]
    assert (metrics["eval/problems"], metrics["eval/small/problems"]) == (5, 3)
    assert metrics["eval/accuracy"] == pytest.approx(1 / 5)
    assert metrics["eval/small/accuracy"] == pytest.approx(1 / 3)
    written = (tmp_path / "evaluation" / "updates_000004.jsonl").read_text().splitlines()
    assert len(written) == 8


class Both(Recorder):
    """Records what is validated, too: right on problem 0 alone."""

    def __init__(self):
        super().__init__()
        self.validated = []

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validated.append(batch.indices)
        return {"records": [self.record(i, batch.evaluation_set) for i in batch.indices]}

    def record(self, index, name):
        rest = "test", f"{index}?", 7, "7", "7", index == 0, 1, True, name
        return ResponseRecord(index, 0, *rest)


def two_ranks(directory: Path, small: str) -> None:
    """Train as one of two ranks, and write what it has seen."""
    module = Both()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=[AIMEEvaluation()],
        default_root_dir=directory,
    )
    data = AIMEDataModule(
        train_size=9,
        val_size=5,
        prompts_per_rollout=4,
        val_batch_size=1,
        evaluation_sets={"small": small},
    )
    trainer.fit(module, data)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    seen = [[rows for _, _, rows in module.seen], module.validated, metrics]
    (directory / f"{trainer.global_rank}.json").write_text(json.dumps(seen))


def test_a_batch_knows_those_that_follow_it_and_no_others():
    def loader(batches, epochs):
        return TrainLoader(prompts(9), 2, 3, extent=lambda: (batches, epochs))

    of_epochs = [loader(3, 2).batch(epoch, number) for epoch in (0, 1) for number in range(3)]
    first = next(iter(loader(3, 2)))
    assert [b.indices for b in first.upcoming(9)] == [b.indices for b in of_epochs[1:]]
    assert [b.indices for b in first.upcoming(2)] == [b.indices for b in of_epochs[1:3]]
    assert of_epochs[-1].upcoming(1) == [] and prompts(2).upcoming(1) == []
    assert len(next(iter(loader(inf, inf))).upcoming(20)) == 20
