"""Files of graded responses: what is written comes back, and files of earlier versions load."""

import json

from lightning_vcppo.cli.commands.regrade import regrade
from lightning_vcppo.rollouts.records import ResponseRecord, read_records, write_records


def record(sample, response, **fields):
    given = {
        "index": 0,
        "sample": sample,
        "source": "a.jsonl:1",
        "problem": "Half?",
        "answer": r"\frac{1}{2}",
        "response": response,
        "prediction": None,
        "correct": False,
        "length": 3,
        "finished": True,
    }
    return ResponseRecord(**given | fields)


def test_accepted_answers_and_kinds_come_back_and_are_graded_again(tmp_path):
    math = {"accepted": ["B"], "answer_kind": "math", "level": "3", "subject": "Algebra"}
    records = [
        record(0, r"\boxed{0.5}", **math),
        record(1, r"\boxed{B}", **math),
        record(2, r"\boxed{0.5}", **math | {"answer_kind": "text"}),
        record(3, r"\boxed{C}", **math),
    ]
    write_records(tmp_path / "new.jsonl", records)
    assert read_records(tmp_path / "new.jsonl") == records
    again = regrade(str(tmp_path / "new.jsonl"))
    assert [r.correct for r in again] == [True, True, False, False]
    assert [r.prediction for r in again] == ["0.5", "B", "0.5", "C"]


def test_files_without_the_newer_fields_load_and_are_graded_as_before(tmp_path):
    newer = ("accepted", "answer_kind", "level", "subject", "seed", "year", "evaluation_set")
    lines = []
    for sample, answer in enumerate((7, "1/2")):
        row = vars(record(sample, rf"\boxed{{{answer}.0}}", answer=answer))
        lines.append(json.dumps({key: row[key] for key in row if key not in newer}))
    (tmp_path / "old.jsonl").write_text("\n".join(lines) + "\n")
    first, second = regrade(str(tmp_path / "old.jsonl"))
    assert first.correct and second.correct  # an int as an integer, a text as mathematics
    assert (first.accepted, first.answer_kind, first.level) == ([], None, None)
