"""Paths that are written as URLs: of this machine they are paths, of others they are refused."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from lightning_vcppo import callbacks
from lightning_vcppo.common.files import local_path, run_path
from tests.support.inventing import InventingModule, fit, make_trainer
from tests.support.rows import every
from tests.support.tiny_runs import ROLLOUTS, TINY, vcppo
from tests.support.training import fit as train
from tests.support.training import make_module


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("runs/a", "runs/a"),
        ("file:///data/run", "/data/run"),
        ("file:/data/run", "/data/run"),
        ("file://localhost/data/run", "/data/run"),
        ("file:///data/my%20run", "/data/my run"),
        ("file:runs/a", "runs/a"),
        ("owner/model", "owner/model"),
        ("reasoning_gym:sum", "reasoning_gym:sum"),
        ("C:/data", "C:/data"),
    ],
)
def test_a_path_of_this_machine(given, path):
    assert local_path(given, "x") == Path(path)


@pytest.mark.parametrize("url", ["s3://b/x", "memory://x", "hf://a/b", "gs:/b", "file://host/x"])
def test_a_url_of_another_place_is_refused(url):
    with pytest.raises(ValueError, match=f"^--flag: {url} is a URL; expected a path"):
        local_path(url, "--flag")


def test_the_command_line_writes_to_one_place(tiny_actor, tmp_path):
    url, actor = f"file://{tmp_path}/run", f"file://{tiny_actor}"
    vcppo(
        *("validate", f"--model.actor={actor}", *TINY, "--loggers=[csv]"),
        *(f"--trainer.default_root_dir={url}", f"--aime_evaluation.dirpath=file:{tmp_path}/seen"),
    )
    assert (tmp_path / "run" / "config.yaml").exists() or list((tmp_path / "run").rglob("*.yaml"))
    assert list((tmp_path / "run").rglob("metrics.csv"))
    assert list((tmp_path / "seen").glob("*.jsonl"))
    assert not list(Path.cwd().glob("file:*"))


FLAGS = (
    *("trainer.default_root_dir", "model.actor", "model.critic", "model.reference", "ckpt_path"),
    *("data.path", "data.val_path", "data.evaluation_sets.x", "data.tokenizer"),
    *("aime_evaluation.dirpath", "learning_curves.dirpath", "model_export.dirpath"),
    *("value_pretraining.dirpath", "value_pretraining.rollouts_path", "response_writer.path"),
    *("reward_decay_monitor.dirpath", "critic_calibration.dirpath"),
)


@pytest.mark.parametrize("flag", every(9, FLAGS))
def test_every_flag_of_a_path_refuses_other_urls(tiny_actor, flag):
    given = [f"--model.actor={tiny_actor}", *ROLLOUTS, "--loggers=[csv]"]
    with pytest.raises(ValueError, match=f"--{flag}: far://b/x is a URL"):
        vcppo("fit", *given, f"--{flag}=far://b/x")


def test_all_arguments_of_callbacks_that_are_paths_are_among_the_flags():
    for name in callbacks.__all__:
        for argument in inspect.signature(getattr(callbacks, name).__init__).parameters:
            if argument.endswith(("dirpath", "path")):
                assert any(flag.endswith(f".{argument}") for flag in FLAGS)


def test_a_trainer_of_python_with_a_url(tiny_actor, tmp_path):
    trainer = make_trainer(
        tmp_path, callbacks.AIMEEvaluation(), callbacks.RewardDecayMonitor(), logger=False
    )
    trainer._default_root_dir = f"file://{tmp_path}/run"
    assert run_path(trainer, "a") == tmp_path / "run" / "a"
    fit(trainer, InventingModule())
    assert list((tmp_path / "run" / "evaluation").glob("*.jsonl"))
    assert (tmp_path / "run" / "diagnostics" / "positions.jsonl").exists()
    assert not list(Path.cwd().glob("file:*"))

    far = callbacks.AIMEEvaluation(dirpath="memory://x")
    with pytest.raises(ValueError, match="dirpath: memory://x is a URL"):
        fit(make_trainer(tmp_path, far, logger=False), InventingModule())
    with pytest.raises(ValueError, match="default_root_dir: memory://x is a URL"):
        train(make_module(tiny_actor), 1, default_root_dir="memory://x")
