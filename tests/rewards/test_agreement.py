"""Verdicts beside those of other graders, on published responses."""

import json

import pytest

from lightning_vcppo.rewards.verifier import (
    answers_equal,
    is_correct,
    last_boxed,
    normalize_answer,
)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Other graders


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("outputs_aime24_qwen2.5-math-7b.jsonl", 20.0),
        ("outputs_aime24_sky-t1-32b-ckpt133.jsonl", 40.0),
        ("outputs_amc23_qwen2.5-14b-instruct.jsonl", 65.0),
    ],
)
@pytest.mark.parametrize("style", ["boxed", "lenient"])
def test_published_scores_are_reproduced_sample_by_sample(name, score, style, shared_data):
    rows = read(shared_data / name)
    verdicts = [is_correct(row["response"], row["gold"], style=style) for row in rows]
    assert verdicts == [row["published_correct"] for row in rows]
    assert 100 * sum(verdicts) / len(verdicts) == score


STYLE_OF_MODE = {
    "strict_box": "boxed",
    "strict_box_tail300": "boxed",
    "answer_line": "answer_line",
    "last_number": "last_number",
    "gsm8k": "last_number",
    "lenient": "lenient",
    "qwen_lenient": "lenient",
    "symbolic": "lenient",
}
# Line of verifier_cases.jsonl: the rule of docs/verifier.md that it contradicts.
LAST_BOX = "the last closed box is the answer"
LAST_NUMBER = "without a box, the words and a formula, the last number is the answer"
EXACT = "decimals are exact"
COMMA = "a comma separates thousands or answers, and is no decimal point"
PERCENT = "28% is 28, not 0.28"
CONTRADICTIONS = {
    3: COMMA,
    6: COMMA,
    7: LAST_NUMBER,
    33: "one equality sign",
    41: EXACT,
    46: LAST_NUMBER,
    53: "a set is no tuple",
    60: LAST_BOX,
    67: LAST_BOX,
    68: LAST_BOX,
    69: LAST_BOX,
    71: LAST_BOX,
    73: "equations and inequalities are compared, not solved",
    75: "a tuple is no list of equations",
    76: LAST_BOX,
    91: "the whole answer part is read, not its last 300 characters",
    97: LAST_NUMBER,
    120: EXACT,
    121: EXACT,
    127: PERCENT,
    163: "the ends of intervals count",
}
# Lines that contradict no rule, and our verdict.
DISAGREEMENTS = {40: False}  # sums of matrices are not evaluated


def ours_of(case, gold):
    if case["kind"] == "pair" or case["mode"] == "string":
        return answers_equal(case["response"], gold)
    return is_correct(case["response"], gold, style=STYLE_OF_MODE[case["mode"]])


def test_agreement_with_other_graders(shared_data):
    cases = read(shared_data / "verifier_cases.jsonl")
    assert len(cases) == 214
    found = {}
    for line, case in enumerate(cases, 1):
        # A worked solution as the gold answer has its answer in a box, as in data sets
        gold = last_boxed(case["gold"]) or case["gold"]
        if (verdict := ours_of(case, gold)) != case["expected"]:
            found[line] = verdict
    assert {line: v for line, v in found.items() if line not in CONTRADICTIONS} == DISAGREEMENTS
    assert CONTRADICTIONS.keys() <= found.keys()
    others = len(cases) - len(CONTRADICTIONS)
    assert (others - len(DISAGREEMENTS)) / others >= 0.97


def test_agreement_on_integers_as_strict_as_ever(shared_data):
    """As integers, in 0..999, the verdicts are what they were before other answers came."""
    found = {}
    for line, case in enumerate(read(shared_data / "verifier_cases.jsonl"), 1):
        gold = normalize_answer(last_boxed(case["gold"]) or case["gold"])
        if case["gold_int_0_999"] and (v := ours_of(case, int(gold))) != case["expected"]:
            found[line] = v
    assert found == {10: False, 91: True, 97: False, 111: False}


def test_agreement_with_strict_graders_on_all_answers(shared_data):
    cases = [c for c in read(shared_data / "verifier_cases.jsonl") if c["mode"] == "strict_box"]
    assert len(cases) == 9
    for case in cases:
        assert is_correct(case["response"], case["gold"]) == case["expected"], case
