"""One start, one budget, several engines: commands, curves, table and figure."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from experiments import through_a_server as experiment
from tests.support.configs import printed
from tests.support.rows import every

SERVER = ["--model.engine.urls", "[http://127.0.0.1:1]", "--model.engine.token_file=token"]


@pytest.mark.thorough
@pytest.mark.parametrize("way", every(4, experiment.WAYS))
def test_only_the_engine_differs(way, tmp_path):
    given = SERVER if "server" in way else []
    config = printed(*experiment.command(way, 7, tmp_path, 30, given)[1:])
    plain = printed(*experiment.command("in the model", 7, tmp_path, 30, [])[1:])
    engine = config["model"]["init_args"].pop("engine")
    plain["model"]["init_args"].pop("engine")
    assert config == plain
    assert bool(engine["urls"]) == ("server" in way)
    assert (engine["init_args"] == experiment.MEMORY) == (way == "vLLM in the process")
    assert config["trainer"]["limit_train_batches"] == 30 and config["seed_everything"] == 7


def test_the_model_is_the_demos_with_wider_heads(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(experiment, "vcppo", lambda command, directory: commands.append(command))
    experiment.prepare(3, tmp_path)
    config = yaml.safe_load((experiment.SETTING / "cold_start.yaml").read_text())
    [cold_start] = commands
    shape = json.loads(cold_start[-1].partition("=")[2])
    wanted = config["model"]["init_args"]["actor"]
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    assert shape == wanted | heads and shape["hidden_size"] // shape["num_attention_heads"] == 32


def test_the_curve_is_read_from_the_metrics_of_a_run(tmp_path):
    metrics = {name: 0.5 for name in experiment.METRICS.values()}
    rows = [
        {"step": 1} | metrics | {"mismatch/kl_k3": ""},  # value pretraining
        {"step": 2} | metrics,
        {"step": 2, "eval/accuracy": 0.25, "eval/response_length": 200},
    ]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted(set().union(*rows)))
        writer.writeheader()
        writer.writerows(rows)
    first, second = experiment.curve(tmp_path)
    assert (first["rollout"], first["kl_k3"], first["accuracy"]) == (1, "", "0.5")
    assert "final_accuracy" not in first
    assert (second["final_accuracy"], second["final_length"]) == ("0.25", "200")


def test_the_table_and_the_figure_have_a_line_for_each_way(tmp_path):
    rows = [
        dict.fromkeys(experiment.COLUMNS, "")
        | {"way": way, "rollout": str(n), "accuracy": f"{n / 20}", "response_length": "110"}
        | ({"final_accuracy": "0.5", "final_length": "200"} if n == 10 else {})
        for way, first in (("in the model", 1), ("server, in parts", 7))
        for n in range(first, 11)
    ]
    assert experiment.table(rows).splitlines() == [
        "| | rollout 5 | rollout 10 | held out |",
        "|---|---|---|---|",
        "| in the model | 25 % (110) | 50 % (110) | 50 % (200) |",
        "| server, in parts | - | 50 % (110) | 50 % (200) |",
    ]
    experiment.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
