"""`vcppo fit --seeds`: a set of runs, side by side, resumed, compared; on the real command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lightning_vcppo.cli import seeds
from lightning_vcppo.cli.commands import compare
from lightning_vcppo.cli.seeds import (
    LOG,
    MAX_SEEDS,
    RECORD,
    SeedRun,
    default_jobs,
    parse_seeds,
    run_seeds,
)
from lightning_vcppo.common.starts import START, fingerprint
from tests.support.rows import every
from tests.support.tiny_runs import ROLLOUTS, ROOT, logged, run_program, vcppo

FLAGS = ["fit", "--config=vcppo", "--config=demo/rl", *ROLLOUTS, "--loggers=[csv]"]
FLAGS += ["--trainer.val_check_interval=3", "--model.critic=null"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0..4", [0, 1, 2, 3, 4]), ("0,2,5", [0, 2, 5]), ("7", [7]), ("[0..1, 9]", [0, 1, 9])],
)
def test_seeds_are_ranges_and_lists(text, expected):
    assert parse_seeds(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "4..0", "0,0", "0..2,1", "a", "0.5", "-1", "0,", "0,99999999999"),
        *("0..99999999999", "9" * 5000, "0..4294967295", "0..10000", "0..9999,20000"),
    ],
)
def test_other_seeds_are_refused(text):
    with pytest.raises(ValueError, match="--seeds: expected"):
        parse_seeds(text)


def test_a_set_has_a_largest_number_of_seeds():
    assert len(parse_seeds("5..10004")) == MAX_SEEDS
    message = re.escape("--seeds: expected at most 10000 seeds, got 0..4294967295")
    with pytest.raises(ValueError, match=message):
        parse_seeds("0..4294967295")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"step,a\n1,{'1' * 140_000}\n", "expected CSV as CSVLogger writes it: field larger than"),
        ("step,a\n1,2,3\n", "2: expected no more cells than the header names"),
        ("step,a\n1\x00,2\n", "2: expected numbers"),
        ("step,a\n1e999,2\n", "2: expected numbers"),
        ("step,a\n1,\x80\n", "expected UTF-8 text"),
    ],
)
def test_metrics_that_cannot_be_read_are_named_in_the_line_of_their_run(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode("latin-1"))
    run = SeedRun(3, tmp_path, ["fit"], total=1, state="running")
    line = run.line()
    assert line.startswith("seed 3    running") and f"{path}:" in line and message in line
    run.finish(0, record=True, interrupted=True)
    assert run.state == "interrupted"  # nobody knows whether it is complete


def test_a_run_takes_a_core_and_on_gpus_the_machine():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert default_jobs(1, on_cpu=True) == 1
    assert default_jobs(1000, on_cpu=True) == cores
    assert default_jobs(1000, on_cpu=True, devices=2 * cores) == 1
    assert default_jobs(5, on_cpu=False) == 1


def test_a_run_gets_the_flags_of_the_set_but_for_those_about_it(tmp_path):
    given = ["fit", "--seeds", "0..4", "--jobs=2", "--overwrite", "--model.actor=s/seed_{seed}"]
    run = seeds._run_of(3, given, tmp_path, None)
    assert run.arguments == [
        "fit",
        "--model.actor=s/seed_3",
        "--seed_everything=3",
        f"--trainer.default_root_dir={tmp_path / 'seed_3'}",
        "--seeds=null",
        "--jobs=null",
    ]


def test_a_directory_of_other_flags_is_refused_and_a_finished_one_skipped(tmp_path):
    directory = tmp_path / "seed_0"
    directory.mkdir()
    record = {"arguments": ["fit", "--lr=1"], "finished": True}
    (directory / RECORD).write_text(json.dumps(record))
    run = SeedRun(0, directory, ["fit", "--lr=1"])
    run.prepare(overwrite=False)
    assert run.state == "skipped"
    other = SeedRun(0, directory, ["fit", "--lr=2"])
    with pytest.raises(ValueError, match=r"seed_0 holds a run of other flags \(--lr=1, --lr=2\)"):
        other.prepare(overwrite=False)
    other.prepare(overwrite=True)
    assert other.state == "waiting" and not (directory / RECORD).exists()
    (directory / RECORD).write_text("[]")
    with pytest.raises(ValueError, match=r"seed.json: expected a record"):
        run.prepare(overwrite=False)
    with pytest.raises(ValueError, match="--jobs: expected >= 1, got 0"):
        run_seeds(["fit"], [0], tmp_path, jobs=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    every(
        2,
        [
            (["validate", "--seeds=0"], "vcppo validate: --seeds is a flag of fit"),
            (["fit", "--seeds=4..0"], "--seeds: expected seeds such as 0..4 or 0,2,5, got 4..0"),
            (["fit", "--seeds=0", "--ckpt_path=last"], "--seeds resumes each seed by itself"),
            (["fit", "--seeds=0", "--jobs=0"], "--jobs: expected >= 1, got 0"),
        ],
    ),
)
def test_a_mistake_ends_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        run_program(*arguments, "--config=vcppo", "--config=demo/rl")
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_a_set_that_fails_says_so_in_a_line_each(terminal, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    assert run_seeds(["fitt"], [0, 3], tmp_path, jobs=2) == 1
    said = capsys.readouterr()
    for seed in (0, 3):
        line = f"seed {seed} failed: vcppo: error: fitt: no such command; did you mean fit?"
        assert line in said.err and f"seed {seed}    failed" in said.out
    assert said.out.count("\n") >= 4 and "vcppo compare" not in said.out


def fit(*flags):
    """Run `vcppo fit` in this process; return its exit code."""
    with pytest.raises(SystemExit) as end:
        vcppo(*FLAGS, *flags)
    return end.value.code


@pytest.mark.thorough
def test_a_set_survives_a_seed_that_fails_and_is_compared(
    tiny_actor, tmp_path, monkeypatch, capsys
):
    """Two seeds with starts of their own; that of the second is missing at first."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    starts, runs = tmp_path / "starts", tmp_path / "runs"
    shutil.copytree(tiny_actor, starts / "seed_0" / "actor")
    actor = f"--model.actor={starts}/seed_{{seed}}/actor"
    flags = [actor, f"--trainer.default_root_dir={runs}"]

    assert fit(*flags, "--seeds=0..1", "--jobs=2") == 1
    said = capsys.readouterr()
    assert f"seed 1 failed: vcppo: error: {starts}/seed_1/actor: no such" in said.err
    assert str(runs / "seed_1" / LOG) in said.err
    assert "vcppo compare" not in said.out
    states = [json.loads((runs / f"seed_{s}" / RECORD).read_text())["finished"] for s in (0, 1)]
    assert states == [True, False]
    start = json.loads((runs / "seed_0" / START).read_text())
    assert start == {"actor": fingerprint(str(tiny_actor))}

    shutil.copytree(tiny_actor, starts / "seed_1" / "actor")
    before = (runs / "seed_0" / "metrics.csv").stat().st_mtime_ns
    assert fit(*flags, "--seeds=0,1") == 0
    said = capsys.readouterr().out
    assert "seed 0    skipped" in said and "seed 1    finished    3 of 3 done" in said
    assert f"vcppo compare {runs}" in said
    assert (runs / "seed_0" / "metrics.csv").stat().st_mtime_ns == before
    for seed in (0, 1):
        rows = [row for row in logged(runs / f"seed_{seed}") if "time/update_s" in row]
        assert [row["step"] for row in rows] == [1, 2, 3]

    compare.main([str(runs)])
    said = capsys.readouterr().out
    assert "fewer than 5 seeds (runs 2)" in said
    shutil.copytree(runs, tmp_path / "again")
    with pytest.raises(ValueError, match="have the same settings and seed 0"):
        compare.main([str(runs), str(tmp_path / "again")])


@pytest.mark.thorough
def test_ctrl_c_leaves_no_process_and_the_same_command_resumes(tiny_actor, tmp_path):
    flags = [f"--model.actor={tiny_actor}", f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    flags += ["--data.train_size=288", "--trainer.limit_train_batches=24", "--seeds=0"]
    command = [sys.executable, "-m", "lightning_vcppo", *FLAGS, *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    metrics = tmp_path / "runs" / "seed_0" / "metrics.csv"
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=-1)
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert parent.poll() is None, parent.communicate()
        time.sleep(0.1)
    children = os.popen(f"pgrep -P {parent.pid}").read().split()
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=120)
    assert parent.returncode == 130 and b"the same command resumes" in said
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(int(child), 0)
    done = len(logged(metrics.parent))
    assert done < 24
    subprocess.run(command, env=environment, check=True, capture_output=True)
    steps = [row["step"] for row in logged(metrics.parent) if "rollout/accuracy" in row]
    assert steps == list(range(1, 25))
    assert (metrics.parent / LOG).read_text().count("SIGINT: finishing the rollout") == 1
