"""Evaluation sets with settings of their own, and copies among problems."""

import json

import pytest

from lightning_vcppo.data.datamodule import AIMEDataModule
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.sets import ProblemSet, named_sets
from lightning_vcppo.data.splits import copies_among, set_aside, without_duplicates_of
from tests.support.data import byte_tokenizer


def data_module(stage="fit", **arguments):
    data = AIMEDataModule(tokenizer=byte_tokenizer(), prompts_per_rollout=4, **arguments)
    data.setup(stage)
    return data


def test_sets_in_all_forms():
    given = {
        "a": "a.jsonl",
        "b": ["a.jsonl", "b.jsonl"],
        "c": {"path": "c.jsonl", "answer_kind": "math", "split": "test"},
        "d": ProblemSet("d.jsonl"),
        "e": None,
    }
    sets = named_sets(given, split="dev", problem_field=None)
    assert [s.paths for s in sets.values()] == [
        *(["a.jsonl"], ["a.jsonl", "b.jsonl"], ["c.jsonl"], ["d.jsonl"], []),
    ]
    assert [s.answer_kind for s in sets.values()] == ["auto", "auto", "math", "auto", "auto"]
    assert [s.split for s in sets.values()] == ["dev", "dev", "test", "dev", "dev"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": {"kind": "math"}}, "evaluation_sets: a has no field 'kind'"),
        ({"a": {"answer_kin": "math"}}, "did you mean answer_kind"),
        ({"a": {"answer_kind": "number"}}, "a has the answer_kind 'number'; expected one of auto"),
    ],
)
def test_mistakes_in_a_set(given, message):
    with pytest.raises(ValueError, match=message):
        named_sets(given)


def test_each_set_has_its_own_kind_and_fields(tmp_path):
    rows = {
        "aime": [{"problem": f"{i}?", "answer": i} for i in range(3)],
        "math": [{"task": f"{i}!", "gold": rf"\frac{{1}}{{{i + 2}}}"} for i in range(3)],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sets = {
        "aime": str(tmp_path / "aime.jsonl"),
        "math": {
            "path": str(tmp_path / "math.jsonl"),
            "problem_field": "task",
            "answer_field": "gold",
        },
    }
    data = data_module("validate", val_size=0, evaluation_sets=sets)
    for loader, kind in zip(data.val_dataloader(), ("integer", "math"), strict=True):
        assert {p.answer_kind for batch in loader for p in batch.problems} == {kind}


def problem(text, *context):
    return Problem(text, 1, context=context)


def test_copies_are_counted_and_kept():
    problems = [problem("Find 3."), problem("find  3"), problem("Find 4."), problem("Find 3!")]
    assert copies_among(problems) == 2
    kept, copies = without_duplicates_of([problem("FIND 4")], problems)
    assert (len(kept), copies) == (3, 2)


def test_the_turns_before_a_question_belong_to_it():
    first, second = ("user", "1 + 1?"), ("user", "1 + 2?")
    problems = [problem("And doubled?", turn) for turn in (first, second)]
    assert copies_among(problems) == 0
    assert copies_among([*problems, problem("And doubled?", ("system", "Be brief."), first)]) == 1


def test_copies_are_told(tmp_path, caplog):
    rows = [{"problem": f"Find {i % 5}.", "answer": i % 5} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.jsonl").write_text(json.dumps({"problem": "Find 4", "answer": 4}))
    with caplog.at_level("INFO"):
        data_module(path=str(tmp_path / "a.jsonl"), val_path=str(tmp_path / "b.jsonl"))
    assert "data: 16 training problems, 12 of them duplicates (4 near-dup" in caplog.text


def test_setting_aside_leaves_the_pool_as_it_is():
    pool = [problem(str(i)) for i in range(9)]
    before = list(pool)
    val, train = set_aside(pool, 3, seed=1)
    assert pool == before and len(val) == 3 and {*val, *train} == {*pool}
