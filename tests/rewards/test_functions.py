"""Reward functions of others: found by name, and what they may answer."""

import json
import sys
from pathlib import Path

import pytest

from lightning_vcppo import VCPPOModule
from lightning_vcppo.rewards.functions import Grader, load_reward
from lightning_vcppo.rewards.verifier import verify
from tests.support.rows import every
from tests.support.tiny_runs import TINY, run_program


def test_load_reward_by_style_and_by_path():
    assert load_reward("answer_line")("Answer: 5", 5) == 1.0
    assert load_reward("boxed")("Answer: 5", 5) == -1.0
    assert load_reward("lightning_vcppo.rewards.verify") is verify


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("box", "^reward: expected one of boxed, .* or an import path .*, got box$"),
        ("no_such_package.fn", "No module named 'no_such_package'"),
        ("lightning_vcppo.rewards.verifier.verfy", "no attribute 'verfy'"),
        ("lightning_vcppo.rewards.verifier.last_boxed", "not an f\\(response, answer\\)"),
        ("lightning_vcppo.rewards.verifier.MAX_ANSWER_CHARS", "not an f\\(response, answer\\)"),
        (".verify", "expected one of"),
    ],
)
def test_load_reward_names_the_mistake(name, message):
    with pytest.raises(ValueError, match=message) as error:
        load_reward(name)
    assert "\n" not in str(error.value)


def test_a_function_is_taken_as_it_is():
    assert load_reward(verify) is verify
    with pytest.raises(ValueError, match=r"^reward: not an f\(response, answer\): .*len"):
        load_reward(len)


@pytest.mark.parametrize(
    ("given", "reward", "correct"),
    [(1.0, 1, True), (0.2, 0.2, True), (0.0, 0, False), (True, 1, True), (-1, -1, False)],
)
def test_a_positive_reward_means_correct(given, reward, correct):
    assert Grader(lambda response, answer: given).grade("", 0) == (reward, correct, True)


@pytest.mark.parametrize("given", [(0.2, False), (-0.5, True)])
def test_a_function_may_say_itself_what_is_correct(given):
    assert Grader(lambda response, answer: given).grade("", 0) == (*given, False)


@pytest.mark.parametrize("given", [None, "high", (1.0,), (1.0, True, 2), {"reward": 1}])
def test_another_answer_of_a_reward_function_is_told(given):
    with pytest.raises(ValueError, match=r"^reward: expected a number, or ") as error:
        Grader(lambda response, answer: given).grade("", 0)
    assert "\n" not in str(error.value) and str(error.value).endswith(f"got {given!r}")


REWARDS = """
def by_sign(response, answer):
    return 0.2 + 0.8 * (len(response) % 2)

def told(response, answer):
    return by_sign(response, answer), False
"""


@pytest.mark.parametrize(("name", "accuracy"), every(2, [("by_sign", 1.0), ("told", 0.0)]))
def test_partial_credit_is_correct_unless_the_function_says_otherwise(
    tiny_actor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, accuracy: float
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    Path("beside.py").write_text(REWARDS)
    arguments = [*TINY, f"--model.actor={tiny_actor}", f"--model.reward=beside.{name}"]
    arguments += ["--data.val_size=8", "--data.val_batch_size=8", "--loggers=[]"]
    if name == "by_sign":
        with pytest.warns(UserWarning, match="Rewards of 0.2 and 1 both count as correct"):
            run_program("validate", *arguments)
    else:
        run_program("validate", *arguments)
    (file,) = Path("runs/default/evaluation").glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["correct"] for record in records] == [bool(accuracy)] * 8


def test_the_module_takes_a_function(tiny_actor: Path) -> None:
    module = VCPPOModule(actor=str(tiny_actor), reward=lambda response, answer: (0.5, answer == 1))
    assert module.grader.grade("", 1) == (0.5, True, False)
