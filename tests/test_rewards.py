"""The scorer: what counts as an answer, what equals it, and what cannot be gamed or hung."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vcppo.rewards import (
    MAX_ANSWER_CHARS,
    answer_part,
    answers_equal,
    extract_answer,
    is_correct,
    last_boxed,
    load_reward,
    normalize_answer,
    overlong_penalty,
    verify,
)

SHARED_DATA = Path(
    os.environ.get("VCPPO_SHARED_DATA", Path(__file__).parents[1].parent / "shared/data")
)
STYLES = ("boxed", "answer_line", "last_number", "lenient")


def read_shared(name):
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"needs {name}, real data beside the project (VCPPO_SHARED_DATA)")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Thinking


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("no tag \\boxed{1}", "no tag \\boxed{1}"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a</think>b</think>c", "c"),
        ("<think>never ends \\boxed{1}", ""),
        ("<think>a</think>b<think>c", ""),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b"),
        ("<thinking>a</thinking>b", "b"),
        ("<reasoning>a</reasoning>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("◁think▷a◁/think▷b", "b"),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>b", "b"),
    ],
)
def test_answer_part_is_what_follows_the_thinking(response, expected):
    assert answer_part(response) == expected


# Extraction


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \boxed{5}}", r"a \boxed{5}"),
        (r"\boxed{\boxed{5}", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"so \boxed 7$.", "7"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{}", ""),
        (r"use \boxed for it", None),
        (r"\boxed{7", None),
        ("boxed{7}", None),
        ("", None),
    ],
)
def test_last_boxed(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("style", "response", "expected"),
    [
        ("boxed", "the answer is 5", None),
        ("answer_line", "Answer: 4\nAnswer: $5$\n", "$5$"),
        ("answer_line", "**Answer:** 5<|im_end|>", "5"),
        ("answer_line", r"\boxed{5}", None),
        ("last_number", "from 1,000 to -27.5.", "-27.5"),
        ("last_number", "7-3", "3"),
        ("last_number", "none", None),
        ("lenient", r"the answer is 4, no: \boxed{5}", "5"),
        ("lenient", "The answer is $x^2$, of 3.", "x^2"),
        ("lenient", "The answer is 27 because 3 divides it.", "27"),
        ("lenient", "we get 3, then 4", "4"),
        ("lenient", "The answer is blue", "blue"),
    ],
)
def test_each_style_finds_its_own_answer(style, response, expected):
    assert extract_answer(response, style=style) == expected


def test_unknown_style_is_refused():
    with pytest.raises(ValueError, match=r"style: 'box' is not one of boxed, answer_line"):
        extract_answer("", style="box")


# Equality


@pytest.mark.parametrize(
    "text",
    [
        "70", "070", "+70", "70.", "70.0", "70.00", " 70 ", "$70$", r"\(70\)", r"70^\circ",
        r"70^{\circ}", "70°", r"\boxed{70}", r"\text{70}", r"m + n = 70", r"x_{1}=70", r"f(3) = 70",
        r"70\text{ cm}^2", r"70^{\text{th}}", r"70 \mathrm{ miles}", r"\$70", r"140/2",
        r"\frac{140}{2}", r"\sqrt{4900}", "3+67", "7 \\cdot 10", "2^3+62", "**70**",
    ],
)  # fmt: skip
def test_ways_of_writing_seventy(text):
    assert answers_equal(text, 70)
    assert is_correct(rf"\boxed{{{text}}}", "070")


@pytest.mark.parametrize(
    "text",
    [
        "", "71", "-70", "7 0", "70.0000001", "69.9999999", "70, 71", "70 or 71", r"\pm 70",
        r"70 \text{ or } 71", "{70}, {71}", "7O", "700", "70%", "70x", "x", "1/0", "(", "70!",
        r"\frac{69999999999999}{1000000000000}", "\uff17\uff10", "\u0667\u0660",
        "\U0001d7d5\U0001d7d8",
    ],
)  # fmt: skip
def test_what_is_not_seventy(text):
    assert not answers_equal(text, 70)


def test_thousands_separators_and_long_numbers():
    assert answers_equal("1,234", 1234)
    assert answers_equal("1{,}234", 1234)
    assert answers_equal(r"1\,234", 1234)
    assert not answers_equal("1,23", 123)
    assert answers_equal("9" * 200, "9" * 200)
    assert not answers_equal("9" * 200, "9" * 199)


@pytest.mark.parametrize(
    ("candidate", "gold", "equal"),
    [
        (r"\frac{1}{2}", "1/2", True),
        (r"\dfrac{1}{2}", r"\frac12", True),
        ("0.5", r"\frac{1}{2}", True),
        ("-q + p", "p - q", True),
        ("p + q", "p - q", False),
        (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"4\sqrt{2}", r"\sqrt{32}", True),
        ("0.3333", "1/3", False),
    ],
)
def test_other_answers_are_compared_symbolically(candidate, gold, equal):
    assert answers_equal(candidate, gold) is equal


@given(st.integers(-(10**12), 10**12), st.integers(0, 5), st.integers(0, 5))
def test_padding_never_changes_an_integer(number, zeros_before, zeros_behind):
    sign, digits = ("-", str(-number)) if number < 0 else ("", str(number))
    padded = sign + "0" * zeros_before + digits + "." * bool(zeros_behind) + "0" * zeros_behind
    assert normalize_answer(padded) == str(number)


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from(STYLES))
def test_integers_are_right_exactly_when_equal(answer, gold, style):
    response = f"1 + 1 = 2. Answer: {answer}" if style != "boxed" else rf"2, \boxed{{{answer}}}"
    assert is_correct(response, gold, style=style) == (answer == gold)


# Rewards that are not earned


def test_a_truncated_response_is_never_right():
    cut = "wait, 200 + 36 ... maybe the answer is 236"
    assert not is_correct(cut, 236)
    assert not is_correct(cut, 236, style="answer_line")
    assert is_correct(cut, 236, style="lenient")  # the trap that lenient graders step into


@pytest.mark.parametrize(
    "response",
    [
        r"<think>\boxed{204}</think> I do not know.",
        r"<think>so \boxed{204}",
        r"<think>a</think>\boxed{204}<think>wait",
        " ".join(rf"\boxed{{{n}}}" for n in range(1000)),
        r"\boxed{" + ", ".join(map(str, range(100, 300))) + "}",
        r"\boxed{203, 204}",
        r"\boxed{203 \text{ or } 204}",
        r"\boxed{204 \text{ or } 203}",
        "\\boxed{\uff12\uff10\uff14}",
        "\\boxed{\u0662\u0660\u0664}",
        r"\boxed{20 4}",
        r"\boxed{204",
        r"\boxed{204} \boxed{}",
        r"Find it. The answer is 204. \boxed{n}",
        r"boxed{204}",
    ],
)
def test_guesses_and_tricks_are_not_rewarded(response):
    assert verify(response, 204) == -1.0


def test_the_reward_is_plus_or_minus_one():
    assert verify(r"<think>\boxed{1}</think> \boxed{204}", 204) == 1.0
    assert verify(r"\boxed{1}", 204) == -1.0
    assert verify("Answer: 204", 204, style="answer_line") == 1.0


# Nothing hangs


ADVERSARIAL = {
    "a million digits": "\\boxed{" + "1" * 10**6 + "}",
    "a million bare digits": "answer: " + "1" * 10**6,
    "nested boxes": "\\boxed{" * 10**5 + "5" + "}" * 10**5,
    "unclosed boxes": "\\boxed{" * 10**5,
    "boxes": "\\boxed{5} " * 10**5,
    "bare boxes": "\\boxed 5 " * 10**5,
    "braces": "\\boxed{" + "{" * 10**6,
    "closing braces": "\\boxed{5" + "}" * 10**6,
    "spaces": "answer" + " " * 10**6 + "\\boxed" + " " * 10**6,
    "newlines": "answer is" + "\n" * 10**6,
    "answers": "the answer is " * 10**5,
    "dollars": "answer: " + "$" * 10**6,
    "thousands": "1,234" * 10**5,
    "minuses": "-" * 10**6 + "1",
    "tags": "<think>" * 10**5 + "</think>" * 10**5,
    "halves of tags": "<" * 10**6,
    "tower": r"\boxed{9^{9^{9^{9}}}}",
    "power of a group": r"\boxed{9^{(9^9)}}",
    "powers of powers": r"\boxed{((9^{999})^{999})^{999}}",
    "huge exponent": r"\boxed{9^{99999999999}}",
    "programming power": r"\boxed{9**9**9**9}",
    "factorial": r"\boxed{99999999!}",
    "binomial": r"\boxed{\binom{999999999}{99999999}}",
    "sum": r"\boxed{\sum_{n=1}^{999999999} n}",
    "parentheses": r"\boxed{" + "(" * 40 + "5" + ")" * 40 + "}",
    "fractions": r"\boxed{" + r"\frac{1}{" * 30 + "5" + "}" * 30 + "}",
    "radicals": r"\boxed{" + "+".join(rf"\sqrt{{{n}}}" for n in range(2, 9)) + "}",
    "expansion": r"\boxed{(a+b)^{9999}}",
    "large expansion": r"\boxed{(a+b+c+d+e+f+g)^{99}}",
    "code": r"\boxed{__import__('os').abort()}",
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_nothing_hangs(name):
    answers_equal("1/2", r"\frac{3}{4}")  # the first call imports and caches
    for style in STYLES:
        for gold in (5, r"(a+b)^{2}"):
            start = time.process_time()
            is_correct(ADVERSARIAL[name], gold, style=style)
            assert time.process_time() - start < 1.0  # of CPU: the machine may be busy


def test_only_bounded_powers_are_evaluated():
    assert answers_equal(r"5 \cdot 9^{9} / 9^{9}", 5)
    assert not answers_equal(r"5 \cdot 9^{9999} / 9^{9999}", 5)


def test_long_candidates_are_no_answers():
    assert extract_answer(rf"\boxed{{{'1' * MAX_ANSWER_CHARS}}}") is not None
    assert extract_answer(rf"\boxed{{{'1' * (MAX_ANSWER_CHARS + 1)}}}") is None
    assert not is_correct("\\boxed{" + "0" * 400 + "5}", 5)


def test_verdicts_are_the_same_off_the_main_thread():
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(answers_equal(r"\sqrt{16}", 4)))
    thread.start()
    thread.join()
    assert verdicts == [True]


PIECES = st.lists(
    st.sampled_from(
        [
            *(
                r"\boxed{",
                r"\boxed",
                r"\fbox{",
                r"\text{",
                r"\(",
                r"\)",
                r"\frac",
                r"\sqrt",
                r"^\circ",
            ),
            *("answer is", "Answer:", "<think>", "</think>", "5", "07", "x", "\u0663", "\uff11"),
            *"{}$.,=^-/()\\ \n",
        ]
    ),
    max_size=25,
).map("".join)


@settings(max_examples=1500, deadline=None)
@given(st.one_of(PIECES, st.text(max_size=60)), st.sampled_from(STYLES))
def test_any_text_gets_a_verdict(text, style):
    assert is_correct(text, 5, style=style) in (True, False)
    candidate = extract_answer(text, style=style)
    if candidate is not None:
        normal = normalize_answer(candidate)
        assert normalize_answer(normal) == normal
        assert answers_equal(candidate, candidate) == bool(normal)


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
def test_published_scores_are_reproduced_sample_by_sample(name, score, style):
    rows = read_shared(name)
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


def test_agreement_with_other_graders_on_integer_answers():
    found = {}
    agreed = 0
    for line, case in enumerate(read_shared("verifier_cases.jsonl"), 1):
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


def test_agreement_with_strict_graders_on_all_answers():
    cases = [c for c in read_shared("verifier_cases.jsonl") if c["mode"] == "strict_box"]
    assert len(cases) == 9
    for case in cases:
        assert is_correct(case["response"], case["gold"]) == case["expected"], case


# Loading and shaping


def test_load_reward_by_style_and_by_path():
    assert load_reward("answer_line")("Answer: 5", 5) == 1.0
    assert load_reward("boxed")("Answer: 5", 5) == -1.0
    assert load_reward("lightning_vcppo.rewards.verify") is verify


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("box", "reward 'box': expected one of boxed, .* or an import path"),
        ("no_such_package.fn", "No module named 'no_such_package'"),
        ("lightning_vcppo.rewards.verfy", "no attribute 'verfy'"),
        ("lightning_vcppo.rewards.answer_part", "not an f\\(response, answer\\)"),
        ("lightning_vcppo.rewards.MAX_ANSWER_CHARS", "not an f\\(response, answer\\)"),
        (".verify", "expected one of"),
    ],
)
def test_load_reward_names_the_mistake(name, message):
    with pytest.raises(ValueError, match=message) as error:
        load_reward(name)
    assert "\n" not in str(error.value)


def test_overlong_penalty_by_hand():
    # Limit 100, buffer 20: free up to 80, half-way at 90, full at 100 and beyond.
    penalty_B = overlong_penalty(
        torch.tensor([0, 80, 85, 90, 100, 120]), max_response_length=100, overlong_buffer_len=20
    )
    assert torch.equal(penalty_B, torch.tensor([0.0, 0.0, -0.25, -0.5, -1.0, -1.0]))
    doubled_B = overlong_penalty(
        torch.tensor([90]), max_response_length=100, overlong_buffer_len=20, penalty_factor=2.0
    )
    assert doubled_B.tolist() == [-1.0]


def test_overlong_penalty_limits():
    lengths_B = torch.tensor([1, 50, 100])
    off_B = overlong_penalty(lengths_B, max_response_length=100, overlong_buffer_len=0)
    assert off_B.tolist() == [0.0, 0.0, 0.0]
    all_B = overlong_penalty(lengths_B, max_response_length=100, overlong_buffer_len=100)
    assert torch.allclose(all_B, -lengths_B / 100)
    with pytest.raises(ValueError, match=r"overlong_buffer_len: expected 0\.\.max_response_length"):
        overlong_penalty(lengths_B, max_response_length=100, overlong_buffer_len=101)
