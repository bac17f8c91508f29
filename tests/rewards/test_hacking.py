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
from tests.support.rows import every

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
        ("**Answer: 204**", 1.0),
        ("Answer: **204**", 1.0),
        ("**Answer**: 204", 1.0),
        ("*Answer:* *204*", 1.0),
        ("Answer: `204`<|im_end|>", 1.0),
        ("Answer: **203** or **204**", -1.0),
        ("Answer: 204<|203", -1.0),
        ("Answer: 204 or 203", -1.0),
        ("Answer: 203, 204", -1.0),
        ("Answer: 204 because of 203", -1.0),
        ("Answer: answer", -1.0),
        ("<think>Answer: 204", -1.0),
    ],
)
def test_an_answer_line_holds_one_answer(line, reward):
    assert verify(line, 204, style="answer_line") == reward


UNREAD = [
    r"33\text{ or 34}", r"33\text{00}", r"33\text{ thousand}", r"33\text{ is wrong}",
    r"33\text{ hundred}", r"33\text{k}", r"33\text{ million}", r"33\text{ and a half}",
    r"33\text{ thirds}", r"33\text{ squared}", r"33\text{ plus one}", r"33\text{ not}",
    r"33\text{ or more}", r"33\text{ at least}", r"33\text{ mod seven}", r"33\text{ base eight}",
    r"33\text{}^2", r"33\text{ cm}^{33}", r"33^{\text{cm}}", r"33\text{-}34", r"33\text{!}",
    r"33\text{ percent}", r"33\text{ pi}", r"33\text{i}", r"33\text{, } 34", r"33\mathrm{e}5",
    r"33\quad 4", r"3\ 3", r"3~3", r"3\;3", "33<|4", r"\text{not } 33", r"33 \pmod{1000}",
    "33...", r"33\text{...}", r"33\text{ hundreds}", r"33\text{ dozens}", r"33\text{ millions}",
    r"33\text{ zillionths}", r"33\text{ ppm}", r"33\text{ basis points}", r"33\text{ in binary}",
    r"33\text{ hex}", r"33\text{ doubled}", r"33\text{ twice}", r"33\text{ reciprocal}",
    r"33\text{ish}", r"33\text{ too high}", r"33\text{ fails}", r"33\text{ rejected}",
    r"33\text{ impossible}", r"33\text{ cannot hold}", r"33\text{ excluded}",
]  # fmt: skip


@pytest.mark.parametrize("text", UNREAD)
def test_no_text_is_dropped_unread(text):
    for gold in (33, 3300, 33000, 334):
        assert not is_correct(rf"\boxed{{{text}}}", gold)


@pytest.mark.parametrize(
    "unit",
    [
        r"\text{ cm}", r"\ \text{cm}", r"\,\mathrm{cm}", r"~\text{cm}", r"\;\mbox{cm}",
        r"\quad\text{cm}", r"\text{ cm}^2", r"\text{ cm}^{3}", r"\text{ square units}",
        r"\text{ miles per hour}", r"\text{ ways}", r"\text{ seconds}", r"\text{m}", r"\text{}",
        r"^{\text{rd}}", r"^{\mathrm{}}", r"\text{ degrees}", r"\text{ sq. in.}", r"\textrm{ days}",
    ],
)  # fmt: skip
def test_units_are_dropped(unit):
    assert is_correct(rf"\boxed{{33{unit}}}", 33)
    assert not is_correct(rf"\boxed{{34{unit}}}", 33)


@pytest.mark.parametrize(
    "left",
    [
        "n =", "m + n =", "10p+q =", "100m + n =", "|S| =", r"\#S =", "f(x, y) =", r"\angle ABC =",
        r"\text{the remainder} =", r"a_1 + a_{10} =", r"\sum_{i=1}^{9} a_i =", "P(X=2) =", "2N =",
        r"N \equiv", "N ≡", r"\lfloor x \rfloor =", r"AB \cdot CD =", r"\gcd(a,b) =",
    ],
)  # fmt: skip
def test_the_left_side_of_the_only_equality_says_what_the_number_is(left):
    assert is_correct(rf"\boxed{{{left} 33}}", 33)
    assert not is_correct(rf"\boxed{{{left} 34}}", 33)
    assert is_correct(rf"\boxed{{{left} \frac{{66}}{{2}}}}", 33)


@pytest.mark.parametrize(
    "text",
    [
        r"N \equiv 33 \pmod{1000}", r"N \equiv 33 \bmod 1000", r"N\equiv33\pmod m",
        r"N \equiv 33 (\mod 1000)",
    ],
)  # fmt: skip
def test_a_congruence_is_its_remainder(text):
    assert is_correct(rf"\boxed{{{text}}}", 33)
    assert not is_correct(rf"\boxed{{{text}}}", 1000)


@pytest.mark.parametrize(
    "text",
    [
        "n = 204 = 33", "n = 33 = 204", "x = 1, y = 33", "x = 33; y = 1", r"n \neq 33", "n < 33",
        r"n \le 33", r"n \approx 33", "30 + 4 = 33", "34 = 33", r"n \neq 3 = 33", "n == 33",
        r"\text{not } n = 33", r"n = 33 \equiv 0 \pmod{3}", "n := 33 = 34",
        r"x = 33 \text{ or } 34",
    ],
)  # fmt: skip
def test_several_equalities_and_other_relations_say_no_number(text):
    assert not is_correct(rf"\boxed{{{text}}}", 33)


@pytest.mark.parametrize("minus", ["-", "\u2212"])
def test_a_minus_is_never_lost(minus):
    for style in ("lenient", "last_number"):
        for response in (f"the answer is {minus}3", f"so we get {minus}3."):
            assert is_correct(response, -3, style=style)
            assert not is_correct(response, 3, style=style)
    assert is_correct(f"7{minus}3", 3, style="last_number")
    assert is_correct(rf"\boxed{{{minus}3}}", -3)


def test_a_dash_makes_no_number_of_its_opposite():
    for dash in "\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d":
        for style in ("lenient", "last_number"):
            assert not is_correct(f"the answer is {dash}3", 3, style=style)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("count", "golds"),
    [(40, range(40)), (1000, (0, 1, 2, 9, 10, 99, 100, 123, 499, 500, 501, 900, 997, 998, 999))],
)
def test_a_list_of_all_answers_is_worth_one_guess(style, count, golds):
    """Of a list that is long enough to be cut, some are tried; of a short one, all."""
    everything = ", ".join(map(str, range(count)))
    boxes = " ".join(rf"\boxed{{{n}}}" for n in range(count))
    for response in (rf"\boxed{{{everything}}}", boxes, f"answer: {everything}"):
        earned = [gold for gold in golds if verify(response, gold, style=style) > 0]
        assert earned in ([], [0], [count - 1])


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
    "sine of many digits": r"\boxed{\tan(9^{4999}x)}",
    "towers of exp": r"\boxed{\exp(\exp(\exp(99)))}",
    "sine of a tower": r"\boxed{\cos(e^{99}^{99}) + \cos(\exp(\exp(99)))}",
    "exponent by division": r"\boxed{2^{99/0.000000000000000000000001}}",
    "root of everything": r"\boxed{\sqrt[9]{9^{4999}} - 9^{\frac{4999}{9}}}",
    "items": r"\boxed{" + ",".join(f"{c}+x_{c}" for c in "abcdefghjklmnopqrstuvwyz") + "}",
    "nested brackets": r"\boxed{" + "(" * 149 + "1,2" + ")" * 149 + "}",
    "nested sets": r"\boxed{" + r"\{" * 73 + "5" + r"\}" * 73 + "}",
    "alternatives": r"\boxed{" + " or ".join("x" * 9) + r" \pm \mp" * 20 + "}",
    "relations": r"\boxed{" + "<".join("x" * 99) + "}",
    "code": r"\boxed{__import__('os').abort()}",
}


@pytest.mark.parametrize("name", every(6, ADVERSARIAL))
def test_nothing_hangs(name):
    answers_equal("1/2", r"\frac{3}{4}")  # the first call imports and caches
    for style in STYLES:
        for gold in (5, r"(a+b)^{2}", "1,2,x", "(0,x]"):
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
