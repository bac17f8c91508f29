"""Answers of the wild, and the kind of a set's answers."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.data.answers import (
    Answers,
    answer_values,
    choose_kind,
    parse_answer,
    parse_integer,
    read_answers,
)
from lightning_vcppo.data.sources import load_problems
from lightning_vcppo.data.texts import InvalidRow


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (70, 70), (70.0, 70), ("070", 70), ("70.0", 70), (["70"], 70), ([70.0], 70), ('["70"]', 70),
        (r"70^\circ", 70), ("$70$", 70), (r"\boxed{70}", 70), (r"so $\boxed{070}$.", 70),
        ("so\n#### 70", 70),
        (0, 0), ("000", 0), (999, 999), (1000, None), (-1, None), ("-1", None), ("1,000", None),
        (9.6, None), (["9.6"], None), (["1", "2"], None), ([], None), (True, None), (None, None),
        ("", None), ("p - q", None), (r"\frac{1}{2}", None), ("twelve", None), (float("nan"), None),
        (float("inf"), None), ("\u0667\u0660", None), ({"a": 1}, None),
    ],
)  # fmt: skip
def test_parse_answer(value, answer):
    assert parse_answer(value) == answer


@given(st.integers(-2000, 2000))
def test_parse_answer_accepts_exactly_three_digits(number):
    answer = number if 0 <= number <= 999 else None
    assert (
        parse_answer(number) == parse_answer(str(number)) == parse_answer(float(number)) == answer
    )


@pytest.mark.parametrize(
    ("value", "integer"),
    [
        (1000, 1000), (-7, -7), ("-7", -7), ("1,000", 1000), (r"\$1,450", 1450), (2.0, 2),
        (Decimal("33"), 33), (Decimal("33.00"), 33), (Decimal("33.5"), None),
        (Decimal("NaN"), None),
        (b"33", 33), ("so\n#### 1,200", 1200), (r"x = \boxed{-12}", -12),
        ("1e3", None), (True, None),
        (r"\frac{1}{2}", None), ("", None),
    ],
)  # fmt: skip
def test_parse_integer(value, integer):
    assert parse_integer(value) == integer


@pytest.mark.parametrize(
    ("value", "values"),
    [
        ("7", ("7",)),
        (["7", "8"], ("7", "8")),
        (["7", "7"], ("7",)),
        ('["7", "8"]', ("7", "8")),  # JSON in a text (Skywork)
        ("['7', '8']", ("7", "8")),  # as pandas writes it
        ("[1, 2]", ("[1, 2]",)),  # an interval
        ("[1, 2)", ("[1, 2)",)),
        (r"\{1, 2\}", (r"\{1, 2\}",)),
        ([], ()),
        (b"7", ("7",)),
        ([Decimal(7)], (7,)),
    ],
)
def test_which_values_are_accepted(value, values):
    assert answer_values(value) == values


@pytest.mark.parametrize(
    ("values", "kind", "answers"),
    [
        (("070",), "aime", Answers(70)),
        (("70", "070"), "aime", Answers(70)),
        (("1,000", "-1"), "integer", Answers(1000, (-1,))),
        ((r"\frac{1}{2}", "0.5"), "math", Answers(r"\frac{1}{2}", ("0.5",))),
        ((27.0,), "math", Answers("27")),
        ((9.6,), "math", Answers("9.6")),
        ((r"so $\boxed{\frac12}$.",), "math", Answers(r"\frac12")),
        (("east",), "math", Answers("east")),
        (("9 * 2\n#### 18",), "math", Answers("18")),
        ((True,), "text", Answers("True")),
        (("None of it",), "text", Answers("None of it")),
    ],
)
def test_answers_of_a_kind(values, kind, answers):
    assert read_answers(values, kind) == answers


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (("1", "2"), "aime", r"an integer answer in 0..999, got \['1', '2'\]"),
        (("1", "x"), "integer", "an integer answer, got"),
        (("1.5",), "integer", "an integer answer, got '1.5'"),
        (("proof",), "math", "a mathematical answer of at most 300 characters, got 'proof'"),
        ((r"\text{Not Found}",), "math", "a mathematical answer"),
        (("x" * 301,), "math", "a mathematical answer of at most 300 characters, got 'xxx"),
        ((True,), "math", "a mathematical answer"),
        (({"is": 2},), "text", "an answer of at most"),
        ((" ",), "text", "an answer of at most 300 characters, got ' '"),
        ((), "math", "a mathematical answer"),
        (("\frac{1}{2}",), "math", r"the answer holds the control character '\\x0c' in front of"),
    ],
)
def test_an_answer_that_is_not_of_the_kind(values, kind, message):
    with pytest.raises(InvalidRow, match=message):
        read_answers(values, kind)


# The kind of a set


def chosen(*answers, **arguments):
    return choose_kind(((answer,) for answer in answers), **arguments).kind


def test_the_kind_is_that_of_all_answers():
    assert chosen("070", 5, "999", r"36^\circ") == "aime"
    assert chosen(*range(990, 1010)) == "integer"
    assert chosen(*[5] * 50, -1, 1000, 1001, "-7", 12345, 6000) == "integer"
    assert chosen(*[5] * 50, *[r"\frac{1}{2}"] * 9) == "math"
    assert chosen("A", "B", "E") == "math"
    assert chosen(r"\frac{1}{2}") == "math"
    assert choose_kind([("1", "2"), ("3",)]).kind == "integer"


@pytest.mark.parametrize(("rows", "few"), [(30, 3), (13, 1), (9, 0), (975, 9)])
def test_a_few_other_answers_do_not_change_what_aime_is(rows, few):
    for bad, kind in ((few, "aime"), (few + 1, "integer")):
        assert chosen(*[70] * (rows - bad), *[1000 + i for i in range(bad)]) == kind
    assert chosen(*[70] * (rows - 1), 1000, tolerant=False) == "integer"


def test_rows_without_any_answer_do_not_count():
    assert chosen(*[70] * 5, *[None, "proof", True, float("nan"), " ", {"is": 2}] * 4) == "aime"
    assert choose_kind([]).kind == "aime"


@given(st.lists(st.integers(-2000, 2000), min_size=1))
def test_integers_in_any_dress_are_integers(numbers):
    dressed = [
        [number, str(number), float(number), f"${number}$", rf"\boxed{{{number}}}"][i % 5]
        for i, number in enumerate(numbers)
    ]
    choice = choose_kind((value,) for value in dressed)
    assert choice.integers == len(numbers)
    assert choice.of_aime == sum(0 <= number <= 999 for number in numbers)


def write(path, answers):
    rows = [{"problem": f"{i}?", "answer": answer} for i, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_auto_says_what_it_has_decided(tmp_path, caplog):
    for name, answers, words in (
        ("aime", [1, "070"], "aime, for 2 of 2 are integers in 0..999"),
        ("gsm", [1, 1450], "integer, for 2 of 2 are integers"),
        ("math", [1, "x^2"], "math, for 1 of 2 are integers"),
    ):
        caplog.clear()
        with caplog.at_level("INFO"):
            load_problems(write(tmp_path / f"{name}.jsonl", answers))
        assert f"data: {name}.jsonl: answers are read as {words}" in caplog.text
        caplog.clear()
        load_problems(write(tmp_path / f"{name}.jsonl", answers), answer_kind="math")
        assert "are read as" not in caplog.text


def test_a_few_bad_rows_of_aime_are_named(tmp_path):
    file = write(tmp_path / "a.jsonl", [*range(28), "p - q", 1000])
    with pytest.raises(ValueError) as error:
        load_problems(file)
    assert str(error.value) == (
        "a.jsonl:29: expected an integer answer in 0..999, got 'p - q' (and 1 more such rows: "
        "a.jsonl:30); answers are read as aime, for 28 of 30 are integers in 0..999, "
        "--data.answer_kind chooses another kind; --data.drop_invalid=true leaves such rows out"
    )
    assert len(load_problems(file, answer_kind="math")) == 30
    with pytest.warns(UserWarning, match=r"a.jsonl: left out 2 rows, a.jsonl:29: .*a.jsonl:30"):
        assert len(load_problems(file, drop_invalid=True)) == 28


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="answer_kind: expected one of auto, aime, integer, math"):
        load_problems(write(tmp_path / "a.jsonl", [1]), answer_kind="number")


def test_generated_answers_are_never_mistakes():
    pytest.importorskip("reasoning_gym")
    problems = load_problems("reasoning_gym:chain_sum", size=40, seed=1)
    assert len(problems) == 40 and {p.answer_kind for p in problems} == {"integer"}
