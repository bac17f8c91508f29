"""Verdicts beside those of other graders, on published responses."""

import json

import pytest

from lightning_vcppo.rewards.verifier import answers_equal, is_correct


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
    "string": "lenient",
}
# Line of verifier_cases.jsonl: our verdict and why it is another one, see docs/verifier.md.
DISAGREEMENTS = {
    10: (False, "we take the last number, 1, of an unboxed `(9+1)`"),
    91: (True, "we read the whole answer part, not its last 300 characters"),
    97: (False, "we take the last number, 2, of an unboxed `3+2`"),
    111: (False, "`12cm`: we know units in \\text{} only"),
}


def test_agreement_with_other_graders_on_integer_answers(shared_data):
    found = {}
    agreed = 0
    for line, case in enumerate(read(shared_data / "verifier_cases.jsonl"), 1):
        if not case["gold_int_0_999"]:
            continue
        if case["kind"] == "pair":
            ours = answers_equal(case["response"], case["gold"])
        else:
            style = STYLE_OF_MODE[case["mode"]]
            ours = is_correct(case["response"], case["gold"], style=style)
        agreed += ours == case["expected"]
        if ours != case["expected"]:
            found[line] = ours
    assert found == {line: ours for line, (ours, _) in DISAGREEMENTS.items()}
    assert agreed == 80


def test_agreement_with_strict_graders_on_all_answers(shared_data):
    cases = [c for c in read(shared_data / "verifier_cases.jsonl") if c["mode"] == "strict_box"]
    assert len(cases) == 9
    for case in cases:
        assert is_correct(case["response"], case["gold"]) == case["expected"], case
