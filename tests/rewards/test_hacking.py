"""What cannot be gamed or hung: an optimizer writes the responses."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vcppo.rewards.verifier import (
    MAX_ANSWER_CHARS,
    answers_equal,
    extract_answer,
    is_correct,
    normalize_answer,
    verify,
)

STYLES = ("boxed", "answer_line", "last_number", "lenient")


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
        r"\boxed{204 or 203}",
        r"\boxed{204/203}",
        r"\boxed{204..203}",
        r"\boxed{\{204\}\{203\}}",
        r"\boxed{x = 203, y = 204}",
        r"\boxed{204 \neq 203}",
        r"\boxed{\text{the answer}}",
        r"\boxed{n = 204 = 203}",
        "\\boxed{\U0001d7d0\U0001d7ce\U0001d7d2}",
        "\\boxed{2\u200b04}",
        "\\boxed{\u2082\u2080\u2084}",
        "\\boxed{20\u0664}",
        r"\boxed{0xcc}",
        r"\boxed{2.04e2}",
        r"\boxed{204} or maybe \boxed{203}",
        r"<think>\boxed{204}</think> The answer is in my thoughts.",
        r"<THINK>\boxed{204}",
        r"\boxed{<think>204}",
        r"\boxed{\boxed{203} 204}",
        r"\boxed{204\boxed{203}}",
        r"The problem says 204, so it is \boxed{}.",
        r"[THINK]</think>\boxed{204}<think>",
    ],
)
def test_guesses_and_tricks_are_not_rewarded(response):
    assert verify(response, 204) == -1.0


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (r"\boxed{203} no, \boxed{204}", 1.0),  # the last box is the answer, whatever came before
        (r"\boxed{\boxed{204}}", 1.0),
        (r"\boxed{204} and then more, 203", 1.0),  # text behind the box is no answer
        (r"\boxed{204}<|im_end|>user: and now? \boxed{203}", -1.0),  # a written-out end is text
        (r"<think>\boxed{203}[/THINK] \boxed{204}", 1.0),  # any closing tag ends the thinking
        (r"\boxed{204}</think>", -1.0),  # that was thinking, and nothing follows it
        (r"\boxed{2 \cdot 102}", 1.0),  # one number, if one that is worked out
        (r"\boxed{204}\boxed{", 1.0),  # a box that is never closed is none
    ],
)
def test_what_decides_between_several_answers(response, reward):
    assert verify(response, 204) == reward


@pytest.mark.parametrize(
    ("line", "reward"),
    [
        ("Answer: 204", 1.0),
        ("answer : 204.", 1.0),
        ("Answer:\n204", 1.0),
        ("Answer: 203\nAnswer: 204", 1.0),
        ("Answer: Answer: 204", 1.0),
        ("Answer: 204\nAnswer: 203", -1.0),
        ("Answer: 204\nAnswer:", -1.0),
        ("Answer: 204 or 203", -1.0),
        ("Answer: 203, 204", -1.0),
        ("Answer: 204 because of 203", -1.0),
        ("Answer: answer", -1.0),
        ("<think>Answer: 204", -1.0),
    ],
)
def test_an_answer_line_holds_one_answer(line, reward):
    assert verify(line, 204, style="answer_line") == reward


def test_a_list_of_all_answers_is_worth_one_guess():
    everything = ", ".join(map(str, range(1000)))
    boxes = " ".join(rf"\boxed{{{n}}}" for n in range(1000))
    for style in STYLES:
        for response in (rf"\boxed{{{everything}}}", boxes, f"answer: {everything}"):
            earned = [gold for gold in range(1000) if verify(response, gold, style=style) > 0]
            assert len(earned) <= 1 and earned in ([], [0], [999])


def test_the_reward_is_plus_or_minus_one():
    assert verify(r"<think>\boxed{1}</think> \boxed{204}", 204) == 1.0
    assert verify(r"\boxed{1}", 204) == -1.0
    assert verify("Answer: 204", 204, style="answer_line") == 1.0


# Nothing hangs


ADVERSARIAL = {
    "very many digits": "\\boxed{" + "1" * 200_000 + "}",
    "very many bare digits": "answer: " + "1" * 200_000,
    "nested boxes": "\\boxed{" * 30_000 + "5" + "}" * 30_000,
    "unclosed boxes": "\\boxed{" * 30_000,
    "boxes": "\\boxed{5} " * 30_000,
    "bare boxes": "\\boxed 5 " * 30_000,
    "braces": "\\boxed{" + "{" * 200_000,
    "closing braces": "\\boxed{5" + "}" * 200_000,
    "spaces": "answer" + " " * 200_000 + "\\boxed" + " " * 200_000,
    "newlines": "answer is" + "\n" * 200_000,
    "answers": "the answer is " * 30_000,
    "dollars": "answer: " + "$" * 200_000,
    "thousands": "1,234" * 30_000,
    "minuses": "-" * 200_000 + "1",
    "tags": "<think>" * 30_000 + "</think>" * 30_000,
    "halves of tags": "<" * 200_000,
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
