"""Chain sums with worked solutions: right, cut short, and never right by luck."""

import random

import pytest

from experiments import smollm2_problems as chain_sums
from lightning_vcppo.data.sources import load_problems
from lightning_vcppo.rewards.verifier import is_correct

QUESTION = "State the final answer to the following arithmetic problem: 7 + 3 - 2 + 9 ="
WHOLE = "7+3=10\n10-2=8\n8+9=17\n</think>\n\\boxed{17}"


def test_a_solution_has_a_line_for_each_operation():
    assert chain_sums.work_out(QUESTION, 0.0, random.Random(0)) == WHOLE


def test_a_solution_that_stops_early_answers_with_its_last_total():
    short = chain_sums.work_out(QUESTION, 1.0, random.Random(0))
    assert short == "7+3=10\n</think>\n\\boxed{10}"


@pytest.mark.parametrize(
    ("sum_", "kept"),
    [
        ("7 + 3 - 2 + 9", True),
        ("1 - 2 + 9", False),  # negative on the way
        ("5 + 0 - 2 + 2", False),  # 5 is the answer, and there from the first line on
        ("5 + 1 + 2 + 1", False),  # which of the two + 1 is next?
    ],
)
def test_only_a_whole_solution_is_right(sum_, kept):
    assert chain_sums.is_kept(f"State the answer: {sum_} =") is kept


def test_files_hold_different_problems_whose_solutions_are_right_unless_short(
    tmp_path, monkeypatch
):
    pytest.importorskip("reasoning_gym")
    sizes = {"cold_start": 40, "train": 5, "held_out": 5}
    monkeypatch.setattr(chain_sums, "SIZES", sizes)
    chain_sums.write(tmp_path)
    files = {name: load_problems(tmp_path / f"{name}.jsonl") for name in sizes}
    assert {name: len(found) for name, found in files.items()} == sizes
    assert len({p.problem for found in files.values() for p in found}) == 50
    right = [is_correct(p.solution, p.answer) for p in files["cold_start"]]
    whole = [
        p.solution.count("=") == len(chain_sums.totals_of(p.problem)) for p in files["cold_start"]
    ]
    assert right == whole
    assert 0 < sum(right) < 20  # 0.8 ** 5 to 0.8 ** 7, a fifth to a third
