"""The examples of configs/launch: their syntax, that every flag in them is one, and a rehearsal."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from lightning_vcppo.cli.commands import plan, serve
from lightning_vcppo.settings import EngineSettings
from tests.support.configs import printed
from tests.support.forks import free_port
from tests.support.tiny_runs import CONFIGS, ROLLOUTS, ROOT, assert_finite, logged_keys

LAUNCH = CONFIGS / "launch"
SERVERS = LAUNCH / "torchrun_server.sh", LAUNCH / "slurm_server.sbatch"
"""One node samples, the other one trains."""
SCRIPTS = sorted({*LAUNCH.iterdir()} - {*SERVERS})
"""Both nodes train."""
NODES, GPUS = 2, 8
PRINT_WORDS = """torchrun() { cat <<< "$(printf '%s\\n' "$@")"; }
srun() { torchrun "ROLE=${ROLE:-}" "$@"; }; vcppo() { torchrun "$@"; }; curl() { true; }
sleep() { wait; rm -f "$SHARED/running"; }; scontrol() { printf 'host-a\\nhost-b\\n'; }
. "$0" """


def run_stubbed(script: Path, stubs: str = "", **variables: str) -> subprocess.CompletedProcess:
    """Run a script whose programs only print their arguments."""
    return subprocess.run(
        ["bash", "-c", PRINT_WORDS.replace('. "$0"', f'{stubs}\n. "$0"'), script],
        env={"PATH": os.environ["PATH"], "HEAD": "host-a"} | variables,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def launched(script: Path, **variables: str) -> list[str]:
    """Return what a script passes to srun, torchrun or vcppo, word by word."""
    done = run_stubbed(script, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def asked_of_slurm(script: Path) -> set[str]:
    lines = [line.split() for line in script.read_text().splitlines()]
    return {line[1] for line in lines if line[:1] == ["#SBATCH"]}


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
        assert words[1:4] == ["--kill-on-bad-exit=1", "vcppo", "fit"]
        assert config["trainer"]["strategy"]["init_args"]["shards"] == GPUS
        asked = {f"--nodes={NODES}", f"--ntasks-per-node={GPUS}", f"--gpus-per-node={GPUS}"}
        assert asked < asked_of_slurm(script)
    else:
        torchrun = get_args_parser().parse_args(words)
        assert (torchrun.nnodes, torchrun.nproc_per_node) == (str(NODES), str(GPUS))
        assert torchrun.module and torchrun.training_script == "lightning_vcppo"
        assert config["trainer"]["strategy"] == "fsdp2"
    plan.main([*flags, "--gpus", str(NODES * GPUS), "--gpu_memory", "80"])
    assert "It fits" in capsys.readouterr().out


def test_the_torchrun_script_asks_for_the_first_machine():
    done = subprocess.run(
        ["bash", LAUNCH / "torchrun_two_nodes.sh"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "set HEAD to the name of the first machine" in done.stderr


# One node samples, the other one trains -------------------------------------------------------


def test_a_node_of_servers_has_one_on_each_gpu(tmp_path):
    shared = str(tmp_path / "shared")
    words = launched(SERVERS[0], ROLE="sample", SERVER_HOST="host-a", SHARED=shared)
    starts = [at for at, word in enumerate(words) if word == "serve"] + [len(words)]
    servers = [
        serve._parser().parse_args(words[begin + 1 : end]) for begin, end in pairwise(starts)
    ]
    assert sorted(server.port for server in servers) == [*range(8000, 8000 + GPUS)]
    assert {(server.host, server.token_file) for server in servers} == {
        ("host-a", f"{shared}/token")
    }


def test_the_other_node_trains_with_all_servers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = launched(SERVERS[0], ROLE="train", SERVER_HOST="host-a", SHARED=str(tmp_path))
    torchrun = get_args_parser().parse_args(words)
    assert torchrun.standalone and torchrun.nproc_per_node == str(GPUS)
    assert torchrun.module and torchrun.training_script == "lightning_vcppo"
    flags = words[words.index("fit") + 1 :]
    config = printed(*flags)
    assert int(config["trainer"]["devices"]) == GPUS and config["trainer"]["num_nodes"] == 1
    engine = EngineSettings(**config["model"]["init_args"]["engine"])
    assert engine.urls == [f"http://host-a:{8000 + gpu}" for gpu in range(GPUS)]
    assert (engine.name, engine.rollouts_ahead) == ("vllm_server", 1)
    assert (engine.token_file, engine.weights_dir) == (f"{tmp_path}/token", f"{tmp_path}/weights")
    plan.main([*flags, "--gpus", str(GPUS), "--gpu_memory", "80"])
    out = capsys.readouterr().out
    assert f"sampled on {GPUS} others" in out and "It fits" in out


def test_slurm_gives_each_node_its_role(tmp_path):
    words = launched(SERVERS[1], SLURM_JOB_NODELIST="host-[a-b]", SLURM_JOB_ID="7", SHARED="s")
    roles = {word for word in words if word.startswith(("ROLE=", "--nodelist="))}
    assert roles == {"ROLE=sample", "ROLE=train", "--nodelist=host-a", "--nodelist=host-b"}
    for begin in (at for at, word in enumerate(words) if word.startswith("ROLE=")):
        assert words[begin + 4 : begin + 7] == [
            f"--nodelist=host-{'a' if words[begin] == 'ROLE=sample' else 'b'}",
            "bash",
            "configs/launch/torchrun_server.sh",
        ]
    asked = {f"--nodes={NODES}", "--ntasks-per-node=1", f"--gpus-per-node={GPUS}"}
    assert asked < asked_of_slurm(SERVERS[1])


@pytest.mark.parametrize(
    ("stubs", "variables", "code", "words"),
    [
        ("torchrun() { return 3; }", {"ROLE": "train"}, 3, ""),
        ("curl() { SECONDS=1801; return 7; }", {"ROLE": "train"}, 1, "http://host-a:8000/health"),
        ("", {}, 2, "set ROLE to sample or train"),
        ("", {"ROLE": "train", "SERVER_HOST": ""}, 1, "set SERVER_HOST to the address"),
        ("", {"ROLE": "train", "SHARED": ""}, 1, "set SHARED to a directory"),
    ],
)
def test_a_trainer_that_fails_ends_the_servers(stubs, variables, code, words, tmp_path):
    running = tmp_path / "running"
    running.touch()
    given = {"SERVER_HOST": "host-a", "SHARED": str(tmp_path)} | variables
    done = run_stubbed(SERVERS[0], stubs, **given)
    assert done.returncode == code and words in done.stderr
    assert running.exists() == ("set " in words)  # it has not begun


PROGRAMS = {
    "vcppo": 'exec "$PYTHON" -m tests.support.sampling_server "$@"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "printf '127.0.0.1\\nlocalhost\\n'",
}
"""What a cluster has, and vLLM's server, as far as the rehearsal needs them."""


def listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.thorough
def test_two_nodes_of_a_cpu_rehearse_it(tiny_actor, tmp_path):
    programs, shared, port = tmp_path / "bin", tmp_path / "shared", free_port()
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        **{"SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_JOB_ID": "7", "SHARED": str(shared)},
        **{"GPUS": "1", "PORT": str(port), "ACTOR": str(tiny_actor)},
    }
    command = [
        *("bash", SERVERS[1], *ROLLOUTS, "--loggers=[csv]", "--data.path=null"),
        *("--data.val_path=null", "--trainer.precision=32-true"),
        *("--model.sampling.num_generations=2", "--value_pretraining.replays=0"),
        "--model.advantage.length_adaptive_alpha=0.5",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]
    log = tmp_path / "log"
    try:
        with log.open("w") as out:
            done = subprocess.run(
                command,
                env=os.environ | environment,
                cwd=ROOT,
                stdout=out,
                stderr=out,
                timeout=240,
            )
    finally:
        (shared / "running").unlink(missing_ok=True)  # so servers end, too, if it has hung
    assert done.returncode == 0, log.read_text()[-4000:]
    assert_finite(tmp_path / "run")
    assert {"rollout/age", "mismatch/kl_k3"} <= logged_keys(tmp_path / "run")
    assert stat.S_IMODE((shared / "token").stat().st_mode) == 0o600
    assert not [*(shared / "weights").iterdir()]
    end = time.monotonic() + 30
    while listens(port):  # the server has been told to end
        assert time.monotonic() < end
        time.sleep(0.1)
