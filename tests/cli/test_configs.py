"""Configs by short name: the user's own file, else the shipped one, from any directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_vcppo.cli.configs import config_names, find_config, resolve_configs
from tests.support.tiny_runs import CONFIGS, ROOT


def shipped(name: str) -> str:
    return str(CONFIGS / f"{name}.yaml")


def test_every_config_has_a_short_name() -> None:
    assert {"vcppo", "demo/rl", "data/aime24"} < set(config_names())
    assert len(config_names()) == len(list(CONFIGS.rglob("*.yaml")))


@pytest.mark.parametrize("name", ["demo/rl", "demo/rl.yaml", "configs/demo/rl.yaml"])
def test_a_shipped_config_is_found_from_an_empty_directory(name: str) -> None:
    assert find_config(name) == shipped("demo/rl")


@pytest.mark.parametrize("file", ["vcppo", "vcppo.yaml"])
def test_a_file_from_here_wins(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("seed_everything: 3\n")
    assert find_config("vcppo") == file


def test_a_directory_of_that_name_does_not_win(tmp_path: Path) -> None:
    (tmp_path / "vcppo").mkdir()
    assert find_config("vcppo") == shipped("vcppo")


def test_a_shipped_config_below_here_has_a_short_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert find_config("vcppo") == os.path.join("configs", "vcppo.yaml")


def test_names_stand_behind_flags_that_take_a_config() -> None:
    given = ["fit", "--config", "vcppo", "--config=demo/rl", "-c", "grpo", "--data", "data/aime24"]
    assert resolve_configs([*given, "--trainer.logger=logger/csv"]) == [
        "fit",
        *("--config", shipped("vcppo"), f"--config={shipped('demo/rl')}", "-c", shipped("grpo")),
        *("--data", shipped("data/aime24"), f"--trainer.logger={shipped('logger/csv')}"),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config={seed_everything: 3}"],  # YAML itself
        ["--config", "null"],
        ["--model=ColdStartModule", "--trainer.logger", "false"],  # not fragments
        ["--data.path", "data/aime24"],  # not a flag of a fragment
        ["--data", "demo/rl"],  # not a fragment for this flag
        ["vcppo", "--compile", "vcppo"],
    ],
)
def test_everything_else_is_left_alone(arguments: list[str]) -> None:
    assert resolve_configs(arguments) == arguments


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config=vcpo", "--config: vcpo: no such file, and no config of that name; did you mean"),
        ("--config=configs/demo/rll.yaml", "did you mean demo/rl?"),
        ("--config=mine.yaml", "no config of that name; expected one of bpco, "),
        ("--data=data/aime42", "did you mean data/aime24?"),
        ("--trainer=trainer/xyz", "expected one of trainer/cpu, trainer/ddp, "),
    ],
)
def test_an_unknown_name_is_told_what_there_is(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match="no such file") as error:
        resolve_configs([argument])
    assert message in str(error.value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the package as in a wheel, without the wheel's metadata and isolation."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a checkout: there is no pyproject.toml to build from")
    directory = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "egg_info"]
    build += ["--egg-base", str(directory), "build_py", "--build-lib", str(directory / "lib")]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    return directory / "lib"


def test_a_wheel_holds_callbacks_and_configs(built: Path) -> None:
    package = built / "lightning_vcppo"
    for directory, pattern in {"callbacks": "*.py", "configs": "**/*.yaml"}.items():
        sources = {p.relative_to(ROOT / directory): p for p in (ROOT / directory).glob(pattern)}
        packaged = {
            p.relative_to(package / directory): p for p in (package / directory).glob(pattern)
        }
        assert packaged.keys() == sources.keys()
        assert all(p.read_bytes() == sources[name].read_bytes() for name, p in packaged.items())
    assert [path.name for path in built.iterdir()] == ["lightning_vcppo"]


@pytest.mark.thorough
def test_a_wheel_finds_its_configs_from_an_empty_directory(built: Path, tmp_path: Path) -> None:
    command = "fit --config vcppo --config demo/rl --data data/generated_long --print_config"
    done = subprocess.run(
        [sys.executable, "-m", "lightning_vcppo", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(built)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    config = yaml.safe_load(done.stdout)
    assert config["model"]["init_args"]["advantage"]["lambda_critic"] == 1.0
    assert config["trainer"]["default_root_dir"] == "runs/demo"
    assert config["data"]["generated"]["max_steps"] == 12
    assert not list(tmp_path.iterdir())
