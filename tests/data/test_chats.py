"""Chats in any cell: read as they are, with all that stands in front of the question."""

import csv
import json

import numpy
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.data.chats import Chat, parsed, read_chat
from lightning_vcppo.data.sources import load_problems
from lightning_vcppo.data.texts import InvalidRow

TURNS = [
    {"role": "system", "content": "Answer in base 7."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And doubled? It's 'quoted' \\frac{1}{2}"},
]
CONTEXT = (("system", "Answer in base 7."), ("user", "1+1?"), ("assistant", "2"))
HF_ROLES = {"user": "human", "assistant": "gpt"}
QUESTION = TURNS[-1]["content"]


@pytest.mark.parametrize(
    "cell",
    [
        TURNS,
        json.dumps(TURNS),
        str(TURNS),
        json.dumps(TURNS).encode(),
        [{"from": HF_ROLES.get(t["role"], t["role"]), "value": t["content"]} for t in TURNS],
        [t | {"content": [{"type": "text", "text": t["content"]}]} for t in TURNS],
        [*TURNS, {"role": "assistant", "content": "4"}],
    ],
)  # fmt: skip
def test_the_whole_chat_is_kept(cell):
    chat = read_chat(cell)
    assert chat is not None
    assert (chat.question, chat.context) == (QUESTION, CONTEXT)
    assert chat.reply == ("4" if len(cell) == 5 else None)


@pytest.mark.parametrize(
    "text", ["[asy] draw(A--B); [/asy] Find AB.", "{1, 2} is a set.", "[1, 2]", "['a', 'b']"]
)
def test_problems_that_only_look_nested_stay_text(text):
    assert read_chat(text) == Chat(text)


@pytest.mark.parametrize("cell", [None, "", "  ", 5, [], [1], {}, [{"role": "user"}], {"x": "y"}])
def test_cells_without_a_question(cell):
    assert read_chat(cell) is None


TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).filter(str.strip)


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS), max_size=4), TEXTS
)
def test_any_chat_survives_json_and_python(turns, question):
    chat = [{"role": role, "content": text} for role, text in [*turns, ("user", question)]]
    for cell in (chat, json.dumps(chat), str(chat)):
        assert read_chat(cell) == Chat(question.strip(), tuple(turns))


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        parsed(text)
        read_chat(text)
    except InvalidRow as error:
        assert "the problem" in str(error)


@pytest.mark.parametrize("text", ["[" * 10**5, "{'a':" * 10**5, "['a', " + "-" * 10**6 + "1]"])
def test_deep_nesting_stays_text(text):
    assert parsed(text) == text


def test_a_table_of_chats_that_pandas_has_written(tmp_path):
    table = pandas.DataFrame(
        {
            "prompt": [TURNS, [{"content": "What is 1+1?", "role": "user"}]],
            "reward_model": [{"ground_truth": "4", "style": "rule"}, {"ground_truth": "2"}],
        }
    )
    table.to_csv(tmp_path / "a.csv", index=False)
    problems = load_problems(tmp_path / "a.csv")
    assert [(p.problem, p.context, p.answer) for p in problems] == [
        (QUESTION, CONTEXT, 4),
        ("What is 1+1?", (), 2),
    ]


def test_a_chat_that_cannot_be_read_is_refused(tmp_path):
    cell = str(numpy.array(TURNS, dtype=object))  # what pandas writes of a column of arrays
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "answer"], ["1+1?", 2], [cell, 4]])
    with pytest.raises(ValueError, match=r"a.csv:2: the problem is a chat, but neither JSON nor P"):
        load_problems(tmp_path / "a.csv")


def test_answers_as_python_writes_lists(tmp_path):
    (tmp_path / "a.csv").write_text("problem,answer\n1?,\"['33']\"\n")
    assert load_problems(tmp_path / "a.csv")[0].answer == 33


def test_system_messages_of_rows_and_columns(tmp_path):
    rows = [
        {"problem": "a", "answer": 1, "system": "Be brief."},
        {"prompt": TURNS, "answer": 2, "system": "Not this one."},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = load_problems(tmp_path / "a.jsonl")
    assert [p.context for p in problems] == [(("system", "Be brief."),), CONTEXT]
