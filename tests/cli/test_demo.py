"""The demo's own part: what it runs, and the table at its end. `.ci/run` runs the whole of it."""

import json
from pathlib import Path

import pytest

from lightning_vcppo.cli.commands import demo

ROOT_FLAG = "--trainer.default_root_dir="


def leave_evaluation(folder: Path, right: int, length: int) -> None:
    """Leave an evaluation of four problems."""
    folder.mkdir(parents=True)
    rows = [
        {"problem": str(i), "correct": i < right, "length": length, "finished": True}
        for i in range(4)
    ]
    (folder / "rollouts_000001.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_every_run_starts_from_the_same_networks_and_is_compared(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command):
        commands.append(command)
        for flag in command:
            if flag.startswith(ROOT_FLAG):
                folder = Path(flag.removeprefix(ROOT_FLAG))
                numbers = {"cold_start": (1, 20), "here_ppo": (0, 10), "here": (3, 30)}
                leave_evaluation(folder / "evaluation", *numbers.get(folder.name, (0, 1)))

    monkeypatch.setattr(demo, "_vcppo", run)
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
    assert all("--seed_everything=0" in command for command in fits)
    table = [line.split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    (accuracy,) = [[c for c in row if c != "│"] for row in table if "accuracy" in row]
    assert accuracy[2:] == ["25.0", "0.0", "-25.0", "75.0", "+50.0"]


def test_a_command_that_fails_ends_the_demo(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        demo._vcppo(["report", str(tmp_path / "none")])
    assert end.value.code == 2
    assert "$ vcppo report" in capsys.readouterr().out
