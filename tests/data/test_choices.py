"""Questions with choices."""

import json

import pytest

from lightning_vcppo.data.choices import choice_answers, join_choices, read_choices
from lightning_vcppo.data.sources import load_problems
from lightning_vcppo.data.texts import InvalidRow

CHOICES = {"A": "21", "B": "21.5", "C": r"\frac{1}{2}"}


@pytest.mark.parametrize(
    "cell",
    [
        [*CHOICES.values()],
        [f"{letter}) {text}" for letter, text in CHOICES.items()],
        [f"({letter}) {text}" for letter, text in CHOICES.items()],
        CHOICES,
        CHOICES | {"D": None},
        {"text": [*CHOICES.values()], "label": [*CHOICES]},
        json.dumps([*CHOICES.values()]),
        str([*CHOICES.values()]),
    ],
)
def test_choices_in_any_dress(cell):
    assert read_choices(cell) == CHOICES


@pytest.mark.parametrize("cell", [None, "", "text", [], ["one"], [["a"], ["b"]], 5, {"a": None}])
def test_cells_without_choices(cell):
    assert read_choices(cell) == {}


def test_choices_follow_the_question_once():
    joined = join_choices("Which?", CHOICES)
    assert joined == "Which?\n\nA. 21\nB. 21.5\nC. \\frac{1}{2}"
    assert join_choices(joined, CHOICES) == joined


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ("B", ("B", "21.5")),
        ("(B)", ("B", "21.5")),
        ("b", None),
        (1, ("B", "21.5")),  # a position, counted from 0
        ("21.5", ("B", "21.5")),
        ("1", None),
        (3, None),
        (-1, None),
        (True, None),
        (None, None),
        ("D", None),
    ],
)
def test_the_right_choice(value, answers):
    if answers:
        assert choice_answers(value, CHOICES) == answers
    else:
        with pytest.raises(InvalidRow, match="expected one of the choices A, B, C, got"):
            choice_answers(value, CHOICES)


def test_the_text_of_a_choice_is_not_accepted_where_it_means_another():
    assert choice_answers("A", {"A": "B", "B": "A"}) == ("A",)
    assert choice_answers("A", {"A": "5", "B": "5"}) == ("A",)


def test_rows_with_choices(tmp_path):
    rows = [
        {"question": "Which?", "choices": ["3", "4"], "answer": 1},
        {
            "question": "Who?",
            "choices": {"text": ["x", "y"], "label": ["A", "B"]},
            "answerKey": "A",
        },
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = load_problems(tmp_path / "a.jsonl")
    assert [(p.problem, p.answer, p.accepted, p.answer_kind) for p in problems] == [
        ("Which?\n\nA. 3\nB. 4", "B", ("4",), "math"),
        ("Who?\n\nA. x\nB. y", "A", ("x",), "math"),
    ]
