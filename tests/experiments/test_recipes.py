"""The recipes side by side: each command is its preset, with the same budget; results add up."""

import csv

import pytest
import yaml

from experiments import recipes
from experiments.preset_table import presets
from tests.support.configs import printed
from tests.support.rows import thin


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", thin(presets(), {"grpo", "side_critic"}.__contains__))
def test_a_command_is_its_preset_with_the_budget_of_all(recipe, tmp_path):
    config = printed(*recipes.command(recipe, 7, tmp_path, 30)[1:])
    given = yaml.safe_load(presets()[recipe].read_text())["model"]["init_args"]
    settings = config["model"]["init_args"]
    for group in ("advantage", "policy", "value"):
        assert given.get(group, {}).items() <= settings[group].items()
    assert config["data"]["prompts_per_rollout"] * settings["sampling"]["num_generations"] == 128
    assert config["trainer"]["limit_train_batches"] == 30 and config["seed_everything"] == 7
    assert settings["update"]["ppo_mini_batch_size"] == recipes.MINI_BATCH
    rates = [given.get(f"{name}_optimizer", {"lr": 2e-6})["lr"] for name in ("actor", "critic")]
    own = [settings[f"{name}_optimizer"]["lr"] for name in ("actor", "critic")]
    assert own[1] / own[0] == pytest.approx(rates[1] / rates[0])
    assert config["value_pretraining"]["max_rollouts"] == 8
    beside = settings["value"]["architecture"] == "side"
    assert (settings["critic"] is None) == beside  # else it is the demo's reward model


def test_a_smaller_critic_mini_batch_stays_smaller(tmp_path):
    flags = recipes.command("easyppo", 0, tmp_path, 30)
    assert "--model.update.critic_mini_batch_size=2" in flags  # a quarter of the actor's 8


def row(recipe, accuracy, r2):
    values = (recipe, 0, accuracy, 0.06, 200.4, 0.5 if r2 else "", r2, 30, 768000, 91)
    return dict(zip(recipes.COLUMNS, map(str, values), strict=True))


def test_the_table_and_the_figure_have_a_row_for_each_recipe(tmp_path):
    rows = [row("vcppo", 0.68, 0.41), row("grpo", 0.5, "")]
    table = recipes.table(rows).splitlines()
    assert table[2] == "| `vcppo` | 68.0 | 200 | 0.50 | 0.41 | 30 | 768,000 | 91 |"
    assert table[3] == "| `grpo` | 50.0 | 200 | - | - | 30 | 768,000 | 91 |"
    assert table[-1] == "One seed. All start from a policy with an accuracy of 6.0 %."
    recipes.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_outcome_is_read_from_the_metrics_of_a_run(tmp_path):
    def write(name, rows):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted(set().union(*rows)))
            writer.writeheader()
            writer.writerows(rows)

    write("cold_start", [{"eval/accuracy": 0.06}])
    rollout = {"rollout/accuracy": 0.1, "rollout/response_length": 100.0}
    rows = [rollout, rollout | {"critic/explained_variance": 0.25, "critic/r2": 0.125}]
    write("run", [*rows, {"eval/accuracy": 0.5, "eval/response_length": 110.0}])
    found = recipes.outcome(tmp_path / "run", tmp_path / "cold_start")
    assert (found["tokens"], found["rollouts"]) == (2 * 128 * 100, 2)
    assert (found["accuracy"], found["cold_start_accuracy"]) == ("0.5", "0.06")
    assert (found["explained_variance"], found["r2"]) == ("0.25", "0.125")


def test_an_unknown_recipe_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["recipes", "--recipes", "saoo"])
    with pytest.raises(SystemExit, match="--recipes: 'saoo' is not one of bpco, "):
        recipes.main()
