"""The machine: a full disk, a directory that cannot be written, no account, a port in use."""

import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lightning_vcppo.rollouts.records import write_csv
from tests.integration.bad_input.conftest import files, without_privileges
from tests.support.rows import every
from tests.support.tiny_runs import TINY, vcppo

ONE = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0"]


@contextmanager
def room_for(size):
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("size", "what"),
    every(3, [(3000, "config.yaml"), (60_000, "a model"), (300_000, "a checkpoint")]),
)
def test_a_full_disk(mistake, tmp_path, size, what):
    with room_for(size):
        line = mistake(*ONE, leaves=("run/",))
    assert line.startswith("run: file too large; make room or choose another --trainer.default_r")
    assert "--ckpt_path" in line
    finished = [path for path in files(tmp_path) if path.endswith((".safetensors", ".ckpt"))]
    assert all(Path(path).stat().st_size < size for path in finished)
    if what != "a checkpoint":  # which is written last
        assert not (tmp_path / "run" / "actor").exists()


def test_a_device_that_is_always_full(mistake):
    device = os.stat("/dev/full")
    line = mistake(
        "--response_writer.path=/dev/full", command="predict", base=TINY, leaves=("run/",)
    )
    assert line.startswith("/dev/full: no space left on device"), line
    after = os.stat("/dev/full")  # it has not been replaced by a file
    assert stat.S_ISCHR(after.st_mode) and after.st_ino == device.st_ino


def test_responses_to_standard_output(tiny_actor, tmp_path, capfd):
    vcppo(
        *("predict", f"--model.actor={tiny_actor}", *TINY, "--loggers=[csv]"),
        *("--response_writer.path=/dev/stdout", f"--trainer.default_root_dir={tmp_path / 'run'}"),
    )
    assert capfd.readouterr().out.count('"prompt_ids"') == 40


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "table.csv"
    write_csv(file, ["a"], [[1]])
    before = file.read_text()

    def rows():
        yield [2]
        raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        write_csv(file, ["a"], rows())
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("directory", "message"),
    [("file", "file: file exists"), ("file/run", "file/run: not a directory")],
)
def test_a_directory_that_cannot_be_made(mistake, tmp_path, directory, message):
    (tmp_path / "file").write_text("mine")
    line = mistake(*ONE, f"--trainer.default_root_dir={directory}")
    assert line.removeprefix(f"{tmp_path}/").startswith(message), line


def test_a_directory_that_is_somebody_elses(mistake, tiny_actor, open_directory):
    shutil.copytree(tiny_actor, "model")
    Path("theirs").mkdir(mode=0o555)
    with without_privileges():
        line = mistake(*ONE, "--trainer.default_root_dir=theirs/run", actor="./model")
    assert line.removeprefix(f"{open_directory}/").startswith(
        "theirs/run: permission denied; change"
    )


def test_a_prediction_into_a_directory(mistake):
    line = mistake("--response_writer.path=.", command="predict", base=TINY, leaves=("run/",))
    assert line.startswith("--response_writer.path: . is a directory; expected a file"), line


# Weights & Biases


def test_no_account_is_no_mistake(tiny_actor, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    vcppo(
        *("validate", f"--model.actor={tiny_actor}", *TINY, "--loggers=[wandb]"),
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    )
    assert list((tmp_path / "run").glob("**/offline-run-*"))


def test_an_account_that_is_asked_for_and_missing(mistake, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    line = mistake(*ONE, "--loggers=[wandb]")
    assert line.startswith("--loggers=[wandb]: "), line
    assert line.endswith("run `wandb login`, or set WANDB_MODE=offline"), line


# Several processes


def test_other_ranks_than_the_first_say_who_they_are():
    program = [sys.executable, "-m", "lightning_vcppo", "fitt"]
    lines = []
    for launcher in ({}, {"SLURM_PROCID": "0"}, {"RANK": "9", "LOCAL_RANK": "0"}):
        done = subprocess.run(program, env=os.environ | launcher, capture_output=True, text=True)
        assert done.returncode == 2
        lines.append(done.stderr)
    assert lines[0] == lines[1] and lines[0].startswith("vcppo: error: fitt: no such command")
    assert lines[2] == lines[0].replace("vcppo: ", "vcppo: [rank 9] ")


def test_what_shards_cannot_be(mistake):
    line = mistake("--trainer.strategy=fsdp2", "--trainer.precision=16-true")
    assert line.startswith("--trainer.precision=16-true: fsdp2 supports 32-true, 64-true"), line
    line = mistake("--trainer.strategy=FSDP2Strategy", "--trainer.strategy.shards=3")
    assert line == "--trainer.strategy.shards=3: the 1 processes are not a multiple of it"
    line = mistake("--model.critic=./no_critic", "--trainer.strategy=fsdp2")
    assert line.startswith("./no_critic: no such directory"), line


def test_a_port_that_is_taken(mistake, monkeypatch):
    if torch.distributed.is_initialized():  # by a test of this process
        torch.distributed.destroy_process_group()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        line = mistake(*ONE, "--trainer.strategy=ddp", "--trainer.devices=1")
    assert line == f"MASTER_PORT={port}: another program uses this port; choose a free one"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(mistake):
    line = mistake("--trainer.accelerator=gpu")
    assert line.startswith("--trainer.accelerator=gpu: no GPU found; omit the flag"), line
