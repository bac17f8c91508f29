"""The table of presets is made from the files, whose headers say what they lack."""

import re
from pathlib import Path

import pytest

from experiments import preset_table

PRESETS = preset_table.presets()
SUCCESSORS = ("sao", "bpco", "easyppo", "hl_gauss_ppo", "pact", "pippo", "side_critic")
OTHERS = ("vapo", "orz", "grpo", "rloo")


def test_the_readme_has_the_table_of_the_files():
    text = preset_table.README.read_text(encoding="utf-8")
    assert text == preset_table.with_table(text), "run python -m experiments.preset_table"


def test_the_table_says_what_differs():
    table = preset_table.table()
    (vcppo,) = (row for row in table.splitlines() if row.startswith("| `vcppo.yaml`"))
    assert vcppo.endswith("| - |")
    (ppo,) = (row for row in table.splitlines() if row.startswith("| `ppo.yaml`"))
    assert "advantage: `lambda_actor: 0.95`, `lambda_critic: 0.95`" in ppo
    assert "value_pretraining: `enabled: false` |" in ppo and "policy" not in ppo.split("|")[3]
    (grpo,) = (row for row in table.splitlines() if row.startswith("| `grpo.yaml`"))
    assert "`estimator: group`" in grpo and "value_pretraining" not in grpo
    assert table.count("\n") == len(PRESETS) + 2


def test_a_changed_value_changes_the_table():
    reference = preset_table.settings(PRESETS["vcppo"])
    changed = reference | {"policy": reference["policy"] | {"loss": "dis", "clip_ratio_c": 3.0}}
    found = [*preset_table.differences(changed, reference)]
    assert found == ["policy: `loss: dis`, `clip_ratio_c: 3`"]


@pytest.mark.parametrize("name", SUCCESSORS + OTHERS)
def test_a_recipe_says_where_it_is_from_and_what_it_lacks(name):
    header = PRESETS[name].read_text(encoding="utf-8").split("model:")[0]
    assert "\n# Source:   " in header and "\n# Lacks:    " in header


@pytest.mark.parametrize("name", ["vcppo", "ppo", "qwen2.5_32b"])
def test_a_preset_of_the_paper_says_in_what_it_differs(name):
    header = (
        (preset_table.CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").split("\nmodel:")[0]
    )
    for part in ("respons", "V = 0", "whitened", "mean over tokens", "warm-up"):
        assert part in header.partition("# Differs:")[2].replace("\n#           ", " "), part


def test_the_page_on_recipes_names_presets_and_tests_that_exist():
    tests = Path(__file__).parents[1]
    page = (tests.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in tests.rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 15
    assert {name for name in named if f"def {name}(" not in source} == set()
    sources, results = page.split("## Side by side")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \| .* \| (.*) \|$", sources, re.MULTILINE)
    assert set(re.findall(r"^\| `(\w+)` \|", results, re.MULTILINE)) == set(PRESETS)
    assert {name for name, _, _ in rows} == set(PRESETS)
    assert all("`test_" in tests and "`" in switches for _, switches, tests in rows)
    switches = {name for _, column, _ in rows for name in re.findall(r"`([\w.]+)", column)}
    for group, _, name in (switch.partition(".") for switch in switches):
        assert name in preset_table.DEFAULTS[group], f"{group}.{name}"
