"""The demo's own part: what it runs, and the table at its end. `.ci/run` runs the whole of it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_vcppo.cli.commands import demo
from tests.support.tiny_runs import ROOT

ROOT_FLAG = "--trainer.default_root_dir="


def leave_evaluation(directory: Path, right: int, length: int) -> None:
    """Leave an evaluation of four problems."""
    directory.mkdir(parents=True)
    rows = [
        {"problem": str(i), "correct": i < right, "length": length, "finished": True}
        for i in range(4)
    ]
    (directory / "rollouts_000001.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_every_run_starts_from_the_same_networks_and_is_compared(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command):
        commands.append(command)
        for flag in command:
            if flag.startswith(ROOT_FLAG):
                directory = Path(flag.removeprefix(ROOT_FLAG))
                numbers = {"cold_start": (1, 20), "here_ppo": (0, 10), "here": (3, 30)}
                leave_evaluation(directory / "evaluation", *numbers.get(directory.name, (0, 1)))

    def run_both(arms):
        for command in arms.values():
            run(command)

    monkeypatch.setattr(demo, "_vcppo", run)
    monkeypatch.setattr(demo, "_vcppo_together", run_both)
    demo.main(["--output", str(tmp_path / "here"), "--quick"])
    *fits, report = commands
    assert {command[0] for command in fits} == {"fit"} and report[0] == "report"
    assert all(Path(place).is_dir() for place in report[1:])
    networks = [
        {flag for flag in command if flag.startswith(("--model.actor=", "--model.critic="))}
        for command in fits
        if ROOT_FLAG + str(tmp_path / "here") in " ".join(command) and "critic" in " ".join(command)
    ]
    assert len(networks) == 2 and networks[0] == networks[1]
    assert all({"--seed_everything=0", "--threads=1"} < set(command) for command in fits)
    table = [line.split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    (accuracy,) = [[c for c in row if c != "│"] for row in table if "accuracy" in row]
    assert accuracy[2:] == ["25.0", "0.0", "-25.0", "75.0", "+50.0"]


def test_a_command_that_fails_ends_the_demo(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        demo._vcppo(["report", str(tmp_path / "none")])
    assert end.value.code == 2
    assert "$ vcppo report" in capsys.readouterr().out


SLEEP = "import time; print('begun', flush=True); time.sleep(600)"


def test_programs_that_run_together_print_behind_their_names(capfd):
    texts = {"a": "print('one\\ntwo')", "b": "print('three')"}
    demo.run_together({name: [sys.executable, "-c", text] for name, text in texts.items()})
    assert sorted(capfd.readouterr().out.splitlines()) == ["a | one", "a | two", "b | three"]


def test_a_program_that_fails_ends_the_other(capfd):
    fails = "import sys; print('error: of a', file=sys.stderr); sys.exit(3)"
    with pytest.raises(SystemExit) as end:
        demo.run_together({"a": [sys.executable, "-c", fails], "b": [sys.executable, "-c", SLEEP]})
    assert end.value.code == 3
    assert "a | error: of a" in capfd.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_no_program_outlives_the_demo(number, code):
    text = (
        "import sys; from lightning_vcppo.cli.commands.demo import run_together\n"
        f"run_together({{'a': [sys.executable, '-c', {SLEEP!r}]}})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"a | begun\n"
    process.send_signal(number)
    assert process.stdout.read() == b""  # closed by all who had it
    assert process.wait(10) in (code, -number)
