"""The scorer: what counts as an answer, and what equals it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.rewards.shaping import overlong_penalty
from lightning_vcppo.rewards.verifier import (
    INSTRUCTIONS,
    answer_part,
    answers_equal,
    asked_style,
    extract_answer,
    is_correct,
    last_boxed,
    normalize_answer,
    reads,
)

STYLES = ("boxed", "answer_line", "last_number", "lenient")


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
    ("opening", "closing"),
    [
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ],
)
def test_every_kind_of_thinking_tag_is_known(opening, closing):
    assert answer_part(f"{opening}a{closing}b") == "b"
    assert answer_part(f"{opening.upper()}a{closing.upper()}b") == "b"
    assert answer_part(f"a{opening}b") == ""


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


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so $\frac13$", r"\frac13"),
        (r"so \(x+1\) it is.", "x+1"),
        (r"so \[ [0,1) \]", " [0,1) "),
        ("$x = 2$, so 5", "5"),
        ("we get 3, then 4", "4"),
        (r"$7$ or \boxed{x}", "x"),
    ],
)
def test_lenient_takes_the_last_formula_where_the_gold_answer_may_be_one(response, expected):
    found = extract_answer(response, style="lenient", formulas=True)
    assert found == expected.strip()


# What a prompt asks for


@pytest.mark.parametrize("style", INSTRUCTIONS)
def test_a_response_that_does_as_it_is_told_is_read(style):
    asked = asked_style(INSTRUCTIONS[style])
    assert asked is None or reads(style, asked)
    response = {"boxed": r"\boxed{33}", "answer_line": "Answer: 33", None: "It is 33"}[asked]
    assert is_correct(response, 33, style=style)


@pytest.mark.parametrize(
    ("problem", "style"),
    [
        ("What is 30+3?", None),
        (r"What is 30+3? Put it in \boxed{}.", "boxed"),
        ("Remember to put your answer on its own line after 'Answer:'.", "answer_line"),
        ('The last line should be of the form "Answer: $Answer"', "answer_line"),
        ("What is the answer: 3 or 4?", None),
        (r"What is 30+3? You do not need \boxed{}.", None),
        (r"You don't have to put the answer in $\boxed{}$.", None),
        (r"Give the number alone, without \boxed{}; there is no need for a `\boxed{}`.", None),
        (r"Never use a \boxed{}, but write 'Answer:' on the last line.", "answer_line"),
        (r"Use \boxed{}. You need not write 'Answer:'.", "boxed"),
        ("Do not write 'Answer:'.", None),
        (r"Don't forget to put the answer in \boxed{}.", "boxed"),
        (r"Do not include units, and put the answer in \boxed{}.", "boxed"),
        (r"Give the answer without units in \boxed{}.", "boxed"),
        (r"You do not need a calculator. Put the answer in \boxed{}.", "boxed"),
        (r"Put it in \boxed{}. Do not use \boxed{} anywhere else.", "boxed"),
    ],
)
def test_the_form_that_a_problem_asks_for_is_seen(problem, style):
    assert asked_style(problem) == style


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


def test_what_is_too_long_is_left_as_it_is():
    assert normalize_answer("0" * 299 + "5") == "5"
    assert normalize_answer("0" * 300 + "5") == "0" * 300 + "5"


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
        ("\u22125", "-5", True),
        ("\u2212x", "-x", True),
        (r"\frac{1}{2}.", "0.5", True),
        ("x + x", "2x", True),
        ("x + y", "2x", False),
        ("(3, 4)", "(3,4)", True),
        ("(3, 4)", "(4, 3)", False),
        ("6, 343", "6343", False),
        ("6,343", "6343", True),
        ("6, 343", "6, 343", True),
        ("final answer = 42", "final answer = 42", True),
        ("3!/12", "1/2", False),  # factorials are not evaluated
        ("x^{5}x^{2}", "x^{7}", True),
        ("x^{11}/x", "x^{10}", True),
        ("x^{101}/x", "x^{100}", False),  # nor are large powers of letters
        ("x^{1}x^{1}x^{1}x^{1}x^{1}", "x^{5}", True),
        ("((((5))))", "10/2", True),
        ("(((((5)))))", "10/2", True),
        ("(((((5)+0)+0)+0)+0)+0", "10/2", False),  # nor what is nested deeply
        ("+".join(["1"] * 50), "100/2", True),
        ("+".join(["1"] * 52), "104/2", False),  # nor what is long
        ("π/2", r"\frac{\pi}{2}", True),
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


# Shaping


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
