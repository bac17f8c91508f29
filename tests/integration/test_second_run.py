"""What a first run has left in objects that a second one uses: nothing but weights."""

from __future__ import annotations

import csv
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning_vcppo.callbacks.base import RunCallback

from lightning_vcppo import AIMEDataModule, callbacks
from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.callbacks import LearningCurves, RolloutCheckpoint, ValuePretraining
from lightning_vcppo.data.loaders import EvalLoader
from lightning_vcppo.modules.cold_start import ColdStartModule
from lightning_vcppo.settings import OptimizerSettings, SamplingSettings
from tests.support.training import make_module

CLOCK = {"_drawn_at", "_drawing_s", "_saving_began_at", "_saving_s", "_ended_at", "_line_at"}
LIGHTNINGS = {
    "progress",
    "_metric_component",
    "_trainer",
    "_last_checkpoint_saved",
    "_last_time_checked",
}
"""Attributes that hold times, and those of Lightning's own bar and checkpoints."""


class Phases(Callback):
    """Keep the phase and the prompts of each rollout."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.phase = pl_module.phase.value

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((self.phase, pl_module.rollout.input_ids_BL.tolist()))


def every_callback() -> list[Callback]:
    """One of each kind that is public; value pretraining of one rollout, and nothing drawn."""
    settings = {
        ValuePretraining: {"max_rollouts": 1, "min_rollouts": 1},
        LearningCurves: {"enabled": False},
    }
    kinds = [getattr(callbacks, name) for name in callbacks.__all__]
    return [kind(**settings.get(kind, {})) for kind in kinds]


def run(
    directory: Path, module, used: list[Callback], data=None, ckpt_path=None, **flags
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(directory, name="", version=""),
        log_every_n_steps=1,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=directory,
        callbacks=used,
        **{"max_epochs": 1, "limit_train_batches": 3} | flags,
    )
    data = data or AIMEDataModule(train_size=24, val_size=2, prompts_per_rollout=8)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def files(directory: Path) -> dict[str, object]:
    """Everything a run has left but for checkpoints, pictures and what a clock has measured."""
    found: dict[str, object] = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = path.relative_to(directory).as_posix()
        if path.name == "metrics.csv":
            with path.open() as file:
                found[name] = [
                    {k: v for k, v in row.items() if "time/" not in k and "per_second" not in k}
                    for row in csv.DictReader(file)
                ]
        else:
            found[name] = None if path.suffix in {".ckpt", ".png"} else path.read_bytes()
    return found


def plain(value: object) -> object:
    """Return a value as types that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return [plain(each) for each in value]
    if type(value).__module__.startswith("lightning_vcppo"):
        return plain(vars(value))
    return repr(value)


def test_a_second_run_leaves_what_the_first_has_left(tiny_actor, tmp_path):
    """The module, the data and every callback are used again; only the weights are put back."""
    module, phases = make_module(tiny_actor), Phases()
    data = AIMEDataModule(train_size=24, val_size=2, prompts_per_rollout=8)
    used = [*every_callback(), phases]
    kept = [callback for callback in used if isinstance(callback, RunCallback)]
    assert len(kept) == 7  # all that have state; a new one belongs here

    run(tmp_path / "first", module, used, data)
    states = deepcopy([callback.state_dict() for callback in used])
    first, phases.seen = phases.seen, []
    assert [phase for phase, _ in first] == [
        Phase.VALUE_PRETRAINING,
        *[Phase.POLICY_OPTIMIZATION] * 2,
    ]

    fresh = make_module(tiny_actor)
    fresh.configure_model()
    module.load_state_dict(fresh.state_dict())
    run(tmp_path / "second", module, used, data)
    assert phases.seen == first
    assert [plain(callback.state_dict()) for callback in used] == plain(states)
    assert files(tmp_path / "second") == files(tmp_path / "first")
    assert (tmp_path / "second" / "checkpoints" / "last.ckpt").exists()


def test_every_callback_begins_a_run_as_a_new_one_does(tiny_actor, tmp_path):
    used = every_callback()
    run(tmp_path, make_module(tiny_actor), used, fast_dev_run=2)  # a trial has a rule of its own
    run(tmp_path, make_module(tiny_actor), used)
    for callback, new in zip(used, every_callback(), strict=True):
        module = make_module(tiny_actor)
        trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path / "third")
        module.trainer = trainer
        for each in (callback, new):
            each.setup(trainer, module, "fit")
        for name in vars(new).keys() - CLOCK - LIGHTNINGS:
            assert plain(vars(callback)[name]) == plain(vars(new)[name]), (callback, name)


def test_a_trainer_that_is_fitted_again_continues_its_run(tiny_actor, tmp_path):
    phases, module = Phases(), make_module(tiny_actor)
    used = [*every_callback(), phases]
    trainer = run(tmp_path, module, used)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, AIMEDataModule(train_size=24, val_size=2, prompts_per_rollout=8))
    assert [phase for phase, _ in phases.seen].count(Phase.VALUE_PRETRAINING) == 1
    assert module.rollouts_done == 6
    (curves,) = [c for c in used if isinstance(c, callbacks.LearningCurves)]
    assert curves.state_dict()["rollouts"] == [1, 2, 3, 4, 5, 6]


def test_used_callbacks_resume_from_a_checkpoint_alone(tiny_actor, tmp_path):
    """Resuming one run with callbacks that have seen another is resuming it with new ones."""
    run(tmp_path / "a", make_module(tiny_actor), every_callback(), limit_train_batches=2)
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    again, states = {"max_epochs": 2, "limit_train_batches": 2, "ckpt_path": str(last)}, []
    used = every_callback()
    run(tmp_path / "b", make_module(tiny_actor), used)
    for name, chosen in (("used", used), ("new", every_callback())):
        run(tmp_path / name, make_module(tiny_actor), chosen, **again)
        states.append([plain(callback.state_dict()) for callback in chosen])
    assert states[0] == states[1]


def test_a_checkpoint_that_was_only_looked_at_seeds_no_new_run(tiny_actor, tmp_path):
    other = make_module(tiny_actor)
    other.run_seed = other._seed = 7
    run(tmp_path / "a", other, [RolloutCheckpoint()])
    module = make_module(tiny_actor)
    looking = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    data = AIMEDataModule(train_size=24, val_size=2, prompts_per_rollout=8)
    looking.validate(
        module, data, ckpt_path=str(tmp_path / "a" / "checkpoints" / "last.ckpt"), verbose=False
    )
    assert (module.run_seed, module.rollouts_done) == (7, 3)
    run(tmp_path / "b", module, [], data, limit_train_batches=1)
    assert (module.run_seed, module.rollouts_done) == (0, 1)


def test_supervised_modules_begin_anew(tiny_actor, tmp_path):
    module = ColdStartModule(
        str(tiny_actor), evaluation=SamplingSettings(8), optimizer=OptimizerSettings(lr=1e-3)
    )
    run(tmp_path / "a", module, [], limit_val_batches=0)
    module.health["actor"].in_a_row, module.loss_is_finite = 3, False
    run(tmp_path / "b", module, [], limit_val_batches=0, limit_train_batches=1)
    assert module.health["actor"].in_a_row == 0 and module.loss_is_finite


@pytest.mark.parametrize("passes", [2])
def test_loaders_begin_anew(passes, tiny_actor):
    data = AIMEDataModule(
        train_size=24, val_size=4, prompts_per_rollout=8, tokenizer=str(tiny_actor)
    )
    data.setup("fit")
    orders = [[batch.indices for batch in data.train_dataloader()] for _ in range(passes)]
    assert orders[0] == orders[1]
    (loader,) = data.val_dataloader()
    assert isinstance(loader, EvalLoader)
    assert [b.indices for b in loader] == [b.indices for b in loader]
