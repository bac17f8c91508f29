"""Flags that take a list accept a single value, on the command line, in a config and in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_vcppo.cli.commands.plan import PlanCLI
from lightning_vcppo.cli.lightning_cli import main
from lightning_vcppo.common.lists import as_list
from lightning_vcppo.settings import EngineSettings, LoRASettings
from tests.support.rows import every
from tests.support.tiny_runs import ROLLOUTS, vcppo

SERVER = "http://127.0.0.1:8000"
FLAGS = [
    ("loggers", "csv"),
    ("model.offload", "idle_optimizer"),
    ("model.lora.target_modules", "q_proj"),
    ("model.engine.urls", SERVER),
    ("data.path", "problems.jsonl"),
]


@pytest.mark.parametrize(("flag", "value"), every(2, FLAGS))
@pytest.mark.parametrize("written", ["{}", "[{}]"])
def test_a_single_value_and_a_list_of_one_are_the_same(
    tiny_actor: Path, flag: str, value: str, written: str
) -> None:
    servers = ["--model.engine.name=vllm_server"] if flag == "model.engine.urls" else []
    given = [f"--model.actor={tiny_actor}", *servers, f"--{flag}={written.format(value)}"]
    config = main(["fit", *given], PlanCLI).config.fit
    name = flag.replace("model.", "model.init_args.")
    assert as_list(config[name]) == [value]


@pytest.mark.parametrize("order", ["command first", "config first", "dictionary"])
def test_a_run_that_names_no_model_is_of_the_default_one(
    order: str, tiny_actor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": {"init_args": {"actor": str(tiny_actor)}}}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(given))
    monkeypatch.setattr("sys.argv", ["vcppo"])
    arguments: dict[str, Any] = {
        "command first": ["fit", f"--config={config}"],
        "config first": [f"--config={config}", "fit"],
        "dictionary": {"subcommand": "fit", "fit": given},
    }
    parsed = main(arguments[order], PlanCLI).config.fit.model
    assert parsed.class_path == "lightning_vcppo.VCPPOModule"
    assert parsed.init_args.actor == str(tiny_actor)


def test_an_optimizer_is_named_on_the_command_line_alone(tiny_actor: Path) -> None:
    sgd = "--model.actor_optimizer.class_path=torch.optim.SGD"
    config = main(["fit", f"--model.actor={tiny_actor}", sgd], PlanCLI).config.fit
    assert config.model.init_args.actor_optimizer.class_path == "torch.optim.SGD"


def test_settings_hold_lists() -> None:
    assert EngineSettings(name="vllm_server", urls=SERVER).urls == [SERVER]
    assert LoRASettings(target_modules="q_proj").target_modules == ["q_proj"]
    assert LoRASettings().target_modules == "all-linear"


def test_a_run_with_one_logger_by_name(tiny_actor: Path, tmp_path: Path) -> None:
    given = (f"--model.actor={tiny_actor}", *ROLLOUTS, "--trainer.limit_train_batches=1")
    vcppo("fit", *given, "--loggers=csv", f"--trainer.default_root_dir={tmp_path}")
    assert (tmp_path / "metrics.csv").exists() and not (tmp_path / "wandb").exists()
