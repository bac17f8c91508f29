"""Checkpoints: cut off, of something else, of a newer version; nothing is loaded or written."""

import io

import pytest
import torch

from lightning_vcppo.models import loading
from lightning_vcppo.models.hf_folders import write_folder
from tests.support.rows import every
from tests.support.tiny_runs import ROLLOUTS, TINY, TINY_QWEN2, vcppo

ONE_MORE = ["--trainer.limit_train_batches=1", "--trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def checkpoint(tiny_actor, tmp_path_factory):
    """A checkpoint of a short run."""
    directory = tmp_path_factory.mktemp("run")
    vcppo(
        *("fit", f"--model.actor={tiny_actor}", *ROLLOUTS, "--trainer.limit_train_batches=1"),
        *("--trainer.limit_val_batches=0", "--loggers=[csv]"),
        f"--trainer.default_root_dir={directory}",
    )
    return next((directory / "checkpoints").glob("*.ckpt"))


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def altered(**changes):
    """Return a function that changes keys of a checkpoint; None removes one."""

    def change(data):
        content = torch.load(io.BytesIO(data), weights_only=True) | changes
        return saved({key: value for key, value in content.items() if value is not None})

    return change


class Anything:
    """What a checkpoint must not hold."""


SPOILED = [
    (
        "truncated",
        lambda data: data[: len(data) // 2],
        "not a complete checkpoint (truncated while it was",
    ),
    ("empty", lambda data: b"", "not a complete checkpoint"),
    ("text", lambda data: b"<html>Not found</html>", "not a complete checkpoint"),
    (
        "a tensor",
        lambda data: saved(torch.zeros(3)),
        "not a checkpoint of this package, pytorch-lig",
    ),
    (
        "another program's",
        lambda data: saved({"model": 1}),
        "not a checkpoint of this package, pytorch-lig",
    ),
    (
        "without counters",
        altered(rollouts_done=None),
        "not a checkpoint of this package, rollouts_done m",
    ),
    (
        "only weights",
        altered(optimizer_states=None),
        "contains only weights, so training cannot be",
    ),
    (
        "objects",
        altered(extra=Anything()),
        "contains Python objects, which could run code when loaded",
    ),
    (
        "newer",
        altered(vcppo_format=99),
        "written by a newer lightning-vcppo (format 99, this one kn",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "message"),
    every(3, [pytest.param(spoil, message, id=name) for name, spoil, message in SPOILED]),
)
@pytest.mark.parametrize("given", ["last", "run/checkpoints/last.ckpt"])
def test_a_spoiled_checkpoint(mistake, checkpoint, tmp_path, spoil, message, given):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(spoil(checkpoint.read_bytes()))
    line = mistake(f"--ckpt_path={given}", *ONE_MORE)
    assert line.startswith(f"run/checkpoints/last.ckpt: {message}"), line


def test_no_checkpoint(mistake, tmp_path):
    (tmp_path / "runs" / "checkpoints").mkdir(parents=True)
    line = mistake("--ckpt_path=runs")
    assert line == "runs: a directory; expected a checkpoint, such as runs/checkpoints/last.ckpt"
    (tmp_path / "runs" / "best.ckpt").touch()
    assert mistake("--ckpt_path=runs").endswith("such as runs/best.ckpt")
    line = mistake("--ckpt_path=no.ckpt", command="validate", base=TINY)
    assert line == "--ckpt_path: no such file no.ckpt; expected last, or the path of a checkpoint"


@pytest.mark.parametrize("also", [[], ["--overwrite"]])
def test_a_misspelt_checkpoint_costs_no_run(mistake, also, tmp_path):
    saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved.parent.mkdir(parents=True)
    saved.touch()  # `mistake` checks that it stays
    line = mistake("--ckpt_path=run/checkpoints/lst.ckpt", *also)
    assert line == (
        "--ckpt_path: no such file run/checkpoints/lst.ckpt; did you mean "
        "run/checkpoints/last.ckpt?"
    )
    assert mistake("--ckpt_path=best", *also).startswith("--ckpt_path: no such file best")


def test_a_sharded_checkpoint_needs_its_strategy(mistake, tmp_path):
    (tmp_path / "x.ckpt").mkdir()
    (tmp_path / "x.ckpt" / "meta.pt").touch()
    line = mistake("--ckpt_path=x.ckpt")
    assert line.startswith("x.ckpt: a sharded checkpoint; resume with --trainer.strategy=fsdp2")


def test_a_checkpoint_of_another_model(mistake, checkpoint, tmp_path, tiny_actor):
    tokenizer = loading.load_tokenizer(str(tiny_actor))
    for name, change in {"wide": {"hidden_size": 64}, "deep": {"num_hidden_layers": 3}}.items():
        write_folder(
            tmp_path / name, loading.build_actor(TINY_QWEN2 | change, tokenizer), tokenizer
        )
    begin = "--ckpt_path: the checkpoint is of another model: "
    given = [f"--ckpt_path={checkpoint}", *ONE_MORE]
    line = mistake(*given, actor="./wide")
    assert line.startswith(
        f"{begin}actor.model.embed_tokens.weight is (322, 32) there and (322, 64)"
    )
    assert line.endswith("use the --model.* flags of its run, which are in its config.yaml")
    line = mistake(*given, actor="./deep")
    assert line.startswith(f"{begin}it lacks actor.model.layers.2.self_attn.q_proj.weight (and ")
    for head in ("hl_gauss", "sigmoid"):  # of another shape, and of the same
        line = mistake(*given, f"--model.value.head={head}")
        assert line == f"--model.value.head: the checkpoint's critic has scalar, got {head}"
    group = ["--model.advantage.estimator=group", "--model.sampling.num_generations=2"]
    line = mistake(*given, *group)
    assert line.startswith(f"{begin}it also has critic.model.model.embed_tokens.weight (and ")


def test_a_checkpoint_without_its_optimizer_can_be_evaluated(checkpoint, tmp_path, tiny_actor):
    (tmp_path / "weights.ckpt").write_bytes(altered(optimizer_states=None)(checkpoint.read_bytes()))
    vcppo(
        *("validate", f"--model.actor={tiny_actor}", *TINY, "--loggers=[csv]"),
        *("--ckpt_path=weights.ckpt", f"--trainer.default_root_dir={tmp_path / 'run'}"),
    )
    assert (tmp_path / "run" / "validate" / "metrics.csv").exists()
