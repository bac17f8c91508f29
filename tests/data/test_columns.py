"""Columns of the data that a reward function reads."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
import torch

from lightning_vcppo.data.cell_types import MAX_DEPTH, as_json
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.sources import load_problems
from lightning_vcppo.data.texts import InvalidRow
from lightning_vcppo.rewards.signatures import Reads
from lightning_vcppo.rollouts.rollout import Rollout
from tests.support.rollouts import make_rollout

ROWS = [
    {"problem": "1 + 1?", "answer": 2, "Level": 1, "tests": "a", "source": "book"},
    {"problem": "2 + 2?", "answer": 4, "Level": 5, "tests": "b", "source": "web"},
]
NONE = {"level": None, "tests": None}


def write(path, rows, suffix):
    """Write rows as a file of one of three formats."""
    file = path / f"rows{suffix}"
    if suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == ".csv":
        with file.open("w") as text:
            writer = csv.DictWriter(text, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def columns(path, *reads, **how):
    return [problem.columns for problem in load_problems(path, reads=Reads("f", *reads), **how)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_columns_that_are_read_are_kept(tmp_path, suffix):
    file = write(tmp_path, ROWS, suffix)
    number = str if suffix == ".csv" else int
    assert columns(file) == [{}, {}]
    assert columns(file, ("level", "tests"), ("rarity",)) == [
        {"level": number(1), "tests": "a", "rarity": None},
        {"level": number(5), "tests": "b", "rarity": None},
    ]
    everything = columns(file, ("level",), (), True)[1]
    kept = {"level": 5, "Level": 5, "tests": "b", "source": "web"}
    assert everything == {k: number(v) if v == 5 else v for k, v in kept.items()}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_column_that_no_row_has_is_refused(tmp_path, suffix):
    file = write(tmp_path, ROWS, suffix)
    message = rf"^reward: f reads 'difficulty', which is no column of rows{suffix} \(it has probl"
    with pytest.raises(ValueError, match=message):
        columns(file, ("difficulty",))


def test_rows_without_a_value_have_none(tmp_path):
    file = write(tmp_path, [ROWS[0], {"problem": "3?", "answer": 3}], ".jsonl")
    assert columns(file, ("level", "tests"))[1] == NONE


@pytest.mark.parametrize(
    ("cell", "plain"),
    [
        ("text", "text"),
        (b"bytes", "bytes"),
        (Decimal(3), 3),
        (datetime.date(2026, 1, 31), "2026-01-31"),
        ((1, [2.5, None], {"a": {3: True}}), [1, [2.5, None], {"a": {"3": True}}]),
    ],
)
def test_cells_become_what_checkpoints_and_records_can_have(cell, plain):
    assert as_json(cell, "c") == plain
    assert json.loads(json.dumps(plain)) == plain


def test_cells_that_nothing_can_write_are_refused():
    deep = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    for cell, message in (
        ({"a": ["\ud800"]}, "^c holds half a surrogate pair"),
        ({"\ud800": 1}, "^c holds half a surrogate pair"),
        (b"\xff", "^c: expected text in UTF-8"),
        (deep, "^c: nested more than 32 deep"),
        ([object()], "^c: expected text, a number, a list or an object, got <object"),
    ):
        with pytest.raises(InvalidRow, match=message):
            as_json(cell, "c")


def test_rows_need_an_answer_only_if_the_reward_reads_it(tmp_path):
    rows = [{"problem": "Write f.", "tests": "f()"}, {"problem": "1?", "answer": 1, "tests": ""}]
    file = write(tmp_path, rows, ".jsonl")
    with pytest.raises(ValueError, match="no field answer, "):
        load_problems(file)
    with pytest.raises(ValueError, match="no field 'gold' with a value"):
        load_problems(file, answer_field="gold", reads=Reads("f", answer=False))
    first, second = load_problems(file, reads=Reads("f", ("tests",), answer=False))
    assert (first.answer, first.answer_kind, first.columns) == ("", "text", {"tests": "f()"})
    assert (second.answer, second.answer_kind) == (1, "integer")
    (problem,) = load_problems(
        write(tmp_path, rows[:1], ".jsonl"), reads=Reads("f", ("tests",), answer=False)
    )
    assert problem.answer == ""


def test_columns_are_a_part_of_checkpoints_but_not_of_hashes(tmp_path):
    problems = [Problem(f"{i}?", i, columns={"tests": [{"in": i}], "level": None}) for i in "12"]
    assert hash(problems[0]) == hash(Problem("1?", "1")) and problems[0] != Problem("1?", "1")
    rollout = make_rollout([[1], [2]], [[3], [4, 5]]).with_(problems=tuple(problems))
    torch.save(rollout.to_plain(), tmp_path / "plain.pt")
    plain = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert Rollout.from_plain(plain).problems == tuple(problems)
    for fields in plain["problems"]:
        del fields[-1]  # as checkpoints from before
    assert [problem.columns for problem in Rollout.from_plain(plain).problems] == [{}, {}]
