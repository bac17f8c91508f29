"""Imported rollouts: token ids, groups, rewards and ends, and the command that writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lightning_vcppo.interchange import Importer, read_responses
from lightning_vcppo.interchange.schemas import ForeignResponse
from lightning_vcppo.interchange.tokens import Tokens
from lightning_vcppo.rollouts.records import ImportedResponse, SavedResponse, read_records
from tests.support import dumps
from tests.support.data import byte_tokenizer
from tests.support.tiny_runs import run_program

TEMPLATE = (
    "{% for m in messages %}<pad>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<pad>assistant\n{% endif %}"
)


def dump(path: Path, trainer: str) -> Path:
    path.write_text("".join(json.dumps(dumps.DUMPS[trainer](n)) + "\n" for n in range(4)))
    return path


@pytest.mark.parametrize("trainer", dumps.DUMPS)
def test_the_command_writes_what_rollouts_are_read_from(
    trainer: str, tmp_path: Path, tiny_actor: Path
) -> None:
    path, output = dump(tmp_path / "dump.jsonl", trainer), tmp_path / "rollouts.jsonl"
    run_program("import", path, "--output", output, "--model", tiny_actor)
    records = read_records(output)
    assert all(isinstance(record, SavedResponse) for record in records)
    assert [r.index for r in records] == [0, 0, 1, 1]
    assert [r.sample for r in records] == [0, 1, 0, 1]
    assert [r.correct for r in records] == [True, False, True, True]
    # What was imported can be imported again.
    again = tmp_path / "again.jsonl"
    run_program("import", output, "--output", again)
    kept = ("problem", "response", "reward", "prompt_ids", "response_ids", "finished", "index")
    for first, second in zip(records, read_records(again), strict=True):
        assert all(getattr(first, name) == getattr(second, name) for name in kept)


def test_without_a_tokenizer_texts_stay_texts(tmp_path: Path) -> None:
    importer = Importer()
    records = list(importer.records(read_responses([dump(tmp_path / "dump.jsonl", "verl")])))
    assert all(isinstance(record, ImportedResponse) for record in records)
    assert importer.report.prompts == 2
    assert any("no token ids" in line for line in importer.report.lines())


@pytest.fixture(scope="module")
def chat_tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer(TEMPLATE)


def test_a_prompt_without_special_tokens_gets_its_template_back(
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?\nSo?"}]
    ids = chat_tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    stripped = chat_tokenizer.decode(ids, skip_special_tokens=True)
    tokens = Tokens(chat_tokenizer)
    for prompt in (stripped, turns):
        ((prompt_ids, _),) = tokens.ids_of([ForeignResponse(prompt, "x")])
        assert prompt_ids == ids
    assert (tokens.round_trips.restored, tokens.round_trips.bare) == (1, 0)
    tokens.ids_of([ForeignResponse("no chat at all", "x")])
    assert (tokens.round_trips.restored, tokens.round_trips.bare) == (1, 1)


@pytest.mark.parametrize(("finished", "ends"), [(True, True), (None, True), (False, False)])
def test_a_response_ends_with_eos_unless_it_was_truncated(
    finished: bool | None, ends: bool, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tokens = Tokens(chat_tokenizer)
    ((_, ids),) = tokens.ids_of([ForeignResponse("p", "abc", finished=finished)])
    assert (ids[-1] == chat_tokenizer.eos_token_id) == ends


def test_a_limit_says_which_responses_were_truncated(
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    rows = [("f:1", ForeignResponse("p", "abcd", 1.0)), ("f:2", ForeignResponse("p", "ab", 1.0))]
    importer = Importer(chat_tokenizer, max_response_length=4)
    records = list(importer.records(rows))
    assert [r.finished for r in records] == [False, True]
    assert [isinstance(r, SavedResponse) and len(r.response_ids) for r in records] == [4, 3]


def test_responses_are_graded_again_on_request(tmp_path: Path) -> None:
    rows = [dumps.verl(n) | {"score": 0.0} for n in range(4)]
    path = tmp_path / "dump.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    importer = Importer(reward="boxed")
    records = list(importer.records(read_responses([path])))
    assert [r.reward for r in records] == dumps.REWARDS
    assert importer.report.changed_verdicts == 3


def test_answers_come_from_a_file_of_problems(tmp_path: Path, tiny_actor: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(
            json.dumps({"problem": q, "answer": int(a)}) + "\n"
            for q, a in zip(dumps.QUESTIONS, dumps.ANSWERS, strict=True)
        )
    )
    path = dump(tmp_path / "dump.jsonl", "TRL")
    output = tmp_path / "rollouts.jsonl"
    run_program("import", path, "--output", output, "--reward", "boxed", "--problems", problems)
    assert [r.reward for r in read_records(output)] == dumps.REWARDS


def test_the_kind_of_an_answer_comes_back(tmp_path: Path) -> None:
    """By its type the answer would be a formula, and 0.50 equal to it."""
    row = dumps.ours(0) | {"answer": "1/2", "answer_kind": "text", "response": r"\boxed{0.50}"}
    path, output = tmp_path / "rollouts.jsonl", tmp_path / "imported.jsonl"
    for kind, reward in (("text", -1.0), ("math", 1.0)):
        path.write_text(json.dumps(row | {"answer_kind": kind}) + "\n")
        run_program("import", path, "--output", output, "--reward", "boxed")
        (record,) = read_records(output)
        assert (record.answer_kind, record.reward) == (kind, reward)


def by_column(response: str, *, problem: str, question: str, finished: bool | None) -> float:
    """Return a column, if it belongs to the problem."""
    return len(question) if question == problem else 0.0


def test_columns_come_from_a_file_of_problems(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": q} for q in dumps.QUESTIONS]  # no answers, since nothing reads them
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path, output = dump(tmp_path / "dump.jsonl", "TRL"), tmp_path / "rollouts.jsonl"
    reward = f"{__name__}.by_column"
    run_program("import", path, "--output", output, "--reward", reward, "--problems", problems)
    found = read_records(output)
    assert sorted({r.reward for r in found}) == sorted({*map(len, dumps.QUESTIONS)})
    # What it has written has them, too, so that it can be graded once more without the problems.
    again = tmp_path / "again.jsonl"
    run_program("import", output, "--output", again, "--reward", reward)
    assert [vars(r) | {"source": ""} for r in read_records(again)] == [
        vars(r) | {"source": ""} for r in found
    ]
    with pytest.raises(SystemExit):
        run_program("import", path, "--output", output, "--reward", reward)


def test_the_rewards_that_are_summed_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("import", dump(tmp_path / "dump.jsonl", "TRL"), "--output", tmp_path / "out.jsonl")
    run_program(*arguments)
    assert "the reward is accuracy_reward + format_reward (--reward" in capsys.readouterr().out
    run_program(*arguments, "--reward_field=accuracy_reward")
    assert "the reward is" not in capsys.readouterr().out


@pytest.mark.parametrize("limit", [-3, 0])
def test_a_limit_that_no_response_can_have_is_refused(
    limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rollouts.jsonl"
    path = dump(tmp_path / "dump.jsonl", "verl")
    with pytest.raises(SystemExit):
        run_program("import", path, "--output", output, f"--max_response_length={limit}")
    assert f"--max_response_length={limit}: expected a positive" in capsys.readouterr().err
    assert not output.exists()


def test_a_missing_reward_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_text(json.dumps({"prompt": "p", "response": "r"}) + "\n")
    with pytest.raises(SystemExit):
        run_program("import", path, "--output", tmp_path / "rollouts.jsonl")
    assert "dump.jsonl:1: no reward; grade the responses" in capsys.readouterr().err
    assert not (tmp_path / "rollouts.jsonl").exists()
