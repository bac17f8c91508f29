"""From checkpoints to ordinary directories, and from directories into new runs."""

import pickle
import shutil
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch import Trainer, seed_everything
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from lightning_vcppo import AIMEDataModule, RewardModelModule
from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.cli.commands.export import export
from lightning_vcppo.models import loading
from lightning_vcppo.models.critic import load_critic, load_reward_model
from lightning_vcppo.settings import (
    LoRASettings,
    OptimizerSettings,
    SamplingSettings,
    ValueSettings,
)
from tests.support.critics import IDS_BL, values_of
from tests.support.rows import every
from tests.support.tiny_runs import run_program
from tests.support.training import LORA, fit, make_module

HL_GAUSS = ValueSettings(head="hl_gauss", num_bins=11)


def train(actor, directory, **settings):
    """Run two rollouts; leave a checkpoint and return it with the module."""
    seed_everything(0)
    module = make_module(actor, **settings)
    record = fit(module, 2)
    record.trainer.save_checkpoint(directory / "last.ckpt")
    return directory / "last.ckpt", module


@pytest.fixture(scope="module")
def full(tiny_actor, tmp_path_factory):
    return train(tiny_actor, tmp_path_factory.mktemp("full"), value=HL_GAUSS)


@pytest.fixture(scope="module")
def lora(tiny_actor, tmp_path_factory):
    directory = tmp_path_factory.mktemp("lora")
    shutil.copytree(tiny_actor, directory / "base")
    return train(directory / "base", directory, lora=LORA)


def sharded(file, directory):
    """Write a checkpoint as `ModelParallelStrategy` does."""
    checkpoint = torch.load(file, weights_only=True)
    state = {"state_dict": checkpoint.pop("state_dict")}
    state |= {f"optimizer_{i}": s for i, s in enumerate(checkpoint.pop("optimizer_states"))}
    dcp.save(state, checkpoint_id=directory, no_dist=True)
    torch.save(checkpoint, directory / "meta.pt")
    return directory


def differences(module, directory):
    """Return the largest differences of logits and of values, read from directories."""
    actor = loading.load_actor(str(directory / "actor"))
    critic = load_critic(str(directory / "critic"), module.value)
    with torch.no_grad():
        logits = (actor(IDS_BL).logits - module.actor(IDS_BL).logits).abs().max()
    return float(logits), float((values_of(critic) - values_of(module.critic)).abs().max())


@pytest.mark.parametrize("form", every(2, ["file", "shards"]))
def test_full_models_are_read_back_to_the_last_bit(full, tiny_actor, tmp_path, form):
    path, module = full
    if form == "shards":
        path = sharded(path, tmp_path / "last.ckpt")
    output = tmp_path / "out"
    run_program("export", "--ckpt_path", path, "--output", output)
    assert differences(module, output) == (0.0, 0.0)
    assert sorted(p.name for p in output.iterdir()) == ["actor", "critic"]
    # Nothing of ours is needed to read them.
    actor = AutoModelForCausalLM.from_pretrained(output / "actor", dtype=torch.float32)
    assert torch.equal(actor(IDS_BL).logits, module.actor(IDS_BL).logits)
    critic = AutoModelForTokenClassification.from_pretrained(output / "critic")
    assert critic.num_labels == HL_GAUSS.num_bins
    for name in ("actor", "critic"):
        given, written = map(AutoTokenizer.from_pretrained, (tiny_actor, output / name))
        assert written("Find 47 + 82.").input_ids == given("Find 47 + 82.").input_ids


def test_an_export_writes_the_files_that_the_run_itself_writes(full, tmp_path):
    path, module = full
    export(str(path), str(tmp_path / "out"))
    module.export(tmp_path / "run")
    for name in ("actor", "critic"):
        ours, theirs = tmp_path / "out" / name, tmp_path / "run" / name
        assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}
        for file in ours.iterdir():
            assert file.read_bytes() == (theirs / file.name).read_bytes(), file


@pytest.mark.parametrize("form", ["file", "shards"])
def test_adapters_are_merged(lora, tmp_path, form):
    path, module = lora
    if form == "shards":
        path = sharded(path, tmp_path / "last.ckpt")
    export(str(path), str(tmp_path / "out"))
    assert max(differences(module, tmp_path / "out")) < 1e-5
    names = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "actor").state_dict()
    assert not [name for name in names if "lora" in name or "base_layer" in name]


def test_the_base_of_adapters_is_looked_for_and_compared(lora, tmp_path, monkeypatch):
    path, module = lora
    base = path.parent / "base"
    moved = shutil.copytree(base, tmp_path / "moved")
    base.rename(path.parent / "away")
    try:
        with pytest.raises(ValueError, match=r"no such directory .*; set --actor to the base of"):
            export(str(path), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        export(str(path), str(tmp_path / "out"), actor=str(moved))
        assert max(differences(module, tmp_path / "out")) < 1e-5
        with pytest.raises(ValueError, match=r"--actor: .* holds other weights than those on"):
            export(str(path), str(tmp_path / "x"), actor=str(tmp_path / "out" / "actor"))
    finally:
        (path.parent / "away").rename(base)


def test_what_is_there_is_kept_unless_told_otherwise(full, tmp_path, capfd):
    path, _ = full
    (tmp_path / "actor").mkdir()
    (tmp_path / "actor" / "mine").write_text("x")
    (tmp_path / "other").write_text("x")
    with pytest.raises(SystemExit):
        run_program("export", "--ckpt_path", path, "--output", tmp_path)
    assert f"{tmp_path / 'actor'} exists; --overwrite replaces it" in capfd.readouterr().err
    assert (tmp_path / "actor" / "mine").exists() and not (tmp_path / "critic").exists()
    run_program("export", "--ckpt_path", path, "--output", tmp_path, "--overwrite")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["actor", "critic", "other"]
    assert not (tmp_path / "actor" / "mine").exists()


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


def test_what_is_no_checkpoint_ends_in_one_line(full, tmp_path, capfd):
    path, _ = full
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(path.read_bytes()[:5000])
    foreign, harmful, outside = (tmp_path / f"{n}.ckpt" for n in ("foreign", "harmful", "outside"))
    torch.save({"state_dict": {}}, foreign)
    torch.save({"state_dict": Harmful()}, harmful)
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"tokenizer": {"../../x": ""}}, outside)
    shards = sharded(path, tmp_path / "shards.ckpt")
    (shards / ".metadata").write_bytes(pickle.dumps(Harmful()))
    torn = sharded(path, tmp_path / "torn.ckpt")
    next(torn.glob("*.distcp")).write_bytes(b"")
    unweighted = tmp_path / "unweighted.ckpt"
    torch.save(checkpoint | {"state_dict": {}}, unweighted)
    for given, message in {
        tmp_path / "nowhere": "nowhere does not exist",
        empty: "empty is no checkpoint: expected a file, or a directory with meta.pt",
        cut: "cut.ckpt: not a complete checkpoint (truncated",
        foreign: "foreign.ckpt does not describe its networks",
        harmful: "harmful.ckpt: contains Python objects, which could run code",
        outside: "the checkpoint has a file named '../../x'",
        shards: "not the index of a checkpoint, it names builtins.print",
        torn: "torn.ckpt: cannot be loaded, a shard is truncated",
        unweighted: "weights of its actor are missing or unknown",
    }.items():
        with pytest.raises(SystemExit) as end:
            run_program("export", "--ckpt_path", given, "--output", tmp_path / "out")
        out, error = capfd.readouterr()
        assert end.value.code == 2 and message in error, error
        assert "Traceback" not in error and "harm" not in out
        assert not (tmp_path / "out" / "actor").exists()


def test_a_reward_models_checkpoint_is_exported_too(tiny_actor, tmp_path):
    seed_everything(0)
    module = RewardModelModule(str(tiny_actor), sampling=SamplingSettings(max_response_length=4))
    flags = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        **flags,
    )
    trainer.fit(module, AIMEDataModule(train_size=8, val_size=2, prompts_per_rollout=4))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    export(str(tmp_path / "x.ckpt"), str(tmp_path / "out"))
    again = load_reward_model(str(tmp_path / "out" / "reward_model"))
    module.reward_model.eval()
    assert torch.equal(again.eval()(IDS_BL[:1]).logits, module.reward_model(IDS_BL[:1]).logits)


def test_a_pretrained_critic_seeds_a_run_by_its_weights_alone(full, tiny_actor, tmp_path):
    path, before = full
    export(str(path), str(tmp_path))
    seed_everything(1)
    rates = OptimizerSettings(lr=1e-2, warmup_updates=100)
    module = make_module(
        tiny_actor, critic=str(tmp_path / "critic"), value=HL_GAUSS, critic_optimizer=rates
    )
    start = {}

    class Look(ValuePretraining):
        def on_train_batch_start(self, trainer, pl_module, *args):
            start["state"] = [dict(o.state) for o in trainer.optimizers]
            start["updates"] = dict(pl_module.updates_done)
            start["values"] = values_of(pl_module.critic)

    record = fit(module, 1, Look())
    assert start["state"] == [{}, {}] and start["updates"] == {"policy": 0, "critic": 0}
    assert torch.equal(start["values"], values_of(before.critic))
    updates = module.updates_done["critic"]
    mean_rate = 1e-2 * (updates + 1) / 2 / 100  # the warm-up from its start
    assert record.metrics[0]["critic/lr"] == pytest.approx(mean_rate)
    assert "policy/loss" in record.metrics[0]  # no value pretraining: it is fitted


def test_adapters_need_peft(monkeypatch, tiny_actor):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"needs `pip install 'lightning-vcppo\[lora\]'`"):
        fit(make_module(tiny_actor, lora=LoRASettings(rank=2)), 1)


def test_a_critic_is_written_for_another_trainer(full, lora, tmp_path, capfd):
    path, module = lora
    out = tmp_path / "verl"
    run_program("export", "--ckpt_path", path, "--output", out, "--layout", "verl")
    assert f"verl: critic.model.path={out / 'critic'}" in capfd.readouterr().out
    assert [p.name for p in out.iterdir()] == ["critic"]
    critic = load_critic(str(out / "critic"), module.value)
    torch.testing.assert_close(values_of(critic), values_of(module.critic))
    # From a directory, too.
    export(str(out / "critic"), str(tmp_path / "nemo"), layout="nemo")
    weights = tmp_path / "nemo" / "step_0" / "value" / "weights" / "model" / "model.safetensors"
    assert weights.read_bytes() == (out / "critic" / "model.safetensors").read_bytes()
    module.export(tmp_path / "run")
    for given, layout, message in (
        (full[0], "openrlhf", "--layout=openrlhf: the critic has the head hl_gauss"),
        (tmp_path / "run" / "actor", "verl", "holds no critic: its model has no head of one"),
        (out / "critic", None, "is a Hugging Face directory already; --layout=verl"),
    ):
        with pytest.raises(ValueError, match=message):
            export(str(given), str(tmp_path / "none"), layout=layout)
    with pytest.raises(ValueError, match="critic exists; --overwrite replaces it"):
        export(str(path), str(out), layout="verl")
    assert [p.name for p in out.iterdir()] == ["critic"]
