"""The examples of configs/launch: their syntax, and that every flag in them is one."""

import os
import subprocess

import pytest
from torch.distributed.run import get_args_parser

from lightning_vcppo.cli.commands import plan
from tests.support.configs import printed
from tests.support.tiny_runs import CONFIGS, ROOT

SCRIPTS = sorted(path for path in (CONFIGS / "launch").iterdir())
NODES, GPUS = 2, 8


def launched(script):
    """Return what a script passes to srun or torchrun, word by word."""
    print_words = """srun() { printf '%s\\n' "$@"; }; torchrun() { srun "$@"; }; . "$0" """
    done = subprocess.run(
        ["bash", "-c", print_words, script],
        env={"PATH": os.environ["PATH"], "HEAD": "host-a"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_launch_script_runs_what_it_says(script, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    subprocess.run(["bash", "-n", script], check=True)
    words = launched(script)
    flags = words[words.index("fit") + 1 :]
    config = printed(*flags)
    assert int(config["trainer"]["devices"]) == GPUS and config["trainer"]["num_nodes"] == NODES
    assert config["trainer"]["precision"] == "bf16-mixed"
    if script.suffix == ".sbatch":
        assert words[:3] == ["--kill-on-bad-exit=1", "vcppo", "fit"]
        assert config["trainer"]["strategy"]["init_args"]["shards"] == GPUS
        asked = [line.split() for line in script.read_text().splitlines()]
        asked = {line[1] for line in asked if line[:1] == ["#SBATCH"]}
        assert {f"--nodes={NODES}", f"--ntasks-per-node={GPUS}", f"--gpus-per-node={GPUS}"} < asked
    else:
        torchrun = get_args_parser().parse_args(words)
        assert (torchrun.nnodes, torchrun.nproc_per_node) == (str(NODES), str(GPUS))
        assert torchrun.module and torchrun.training_script == "lightning_vcppo"
        assert config["trainer"]["strategy"] == "fsdp2"
    plan.main([*flags, "--gpus", str(NODES * GPUS), "--gpu_memory", "80"])
    assert "It fits" in capsys.readouterr().out


def test_the_torchrun_script_asks_for_the_first_machine():
    done = subprocess.run(
        ["bash", CONFIGS / "launch" / "torchrun_two_nodes.sh"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "set HEAD to the name of the first machine" in done.stderr
