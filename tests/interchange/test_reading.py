"""Dumps of other trainers: each is recognised, and says the same of the same responses."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from lightning_vcppo.interchange.reading import Reading, read_responses
from lightning_vcppo.interchange.schemas import Fields, ForeignResponse
from tests.support import dumps


def write(path: Path, rows: list[object]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def read(*paths: Path, **options: object) -> list[ForeignResponse]:
    return [response for _, response in read_responses(paths, **options)]


def question(response: ForeignResponse) -> str:
    prompt = response.prompt
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


@pytest.mark.parametrize("trainer", dumps.DUMPS)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_dump_is_recognised(trainer: str, suffix: str, tmp_path: Path) -> None:
    rows = [dumps.DUMPS[trainer](n) for n in range(4)]
    path = tmp_path / f"dump{suffix}"
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    found = read(path)
    assert [question(r) for r in found] == [dumps.QUESTIONS[n // 2] for n in range(4)]
    assert [r.response for r in found] == dumps.REPLIES
    assert [r.reward for r in found] == dumps.REWARDS


@pytest.mark.parametrize("trainer", ["SkyRL", "verifiers", "prime-rl"])
def test_truncation_and_answers_are_read(trainer: str, tmp_path: Path) -> None:
    found = read(write(tmp_path / "dump.jsonl", [dumps.DUMPS[trainer](n) for n in range(4)]))
    assert [r.finished for r in found] == [True, False, True, True]
    assert [r.answer for r in found] == [dumps.ANSWERS[n // 2] for n in range(4)]


@pytest.mark.parametrize("trainer", ["NeMo-RL", "prime-rl"])
def test_token_ids_are_taken_where_they_are(trainer: str, tmp_path: Path) -> None:
    found = read(write(tmp_path / "dump.jsonl", [dumps.DUMPS[trainer](n) for n in range(4)]))
    assert [bytes(r.response_ids or ()).decode() for r in found] == dumps.REPLIES
    prompts = [bytes(r.prompt_ids or ()).decode().rstrip("\n") for r in found]
    assert prompts == [dumps.QUESTIONS[n // 2] for n in range(4)]


def test_a_batch_finds_its_prompts_in_the_input_file_whatever_the_order(tmp_path: Path) -> None:
    output = write(tmp_path / "a_output.jsonl", [dumps.batch_output(n) for n in range(4)])
    with pytest.raises(ValueError, match=r"a_output.jsonl:1: no prompt; name the batch's input"):
        read(output)
    requests = write(tmp_path / "b_input.jsonl", [dumps.batch_request(n) for n in range(4)])
    for files in ([output, requests], [requests, output]):
        found = read(*files)
        assert [question(r) for r in found] == [dumps.QUESTIONS[n // 2] for n in range(4)]
        assert [r.finished for r in found] == [True, False, True, True]


def test_a_directory_is_read_in_order_of_its_steps(tmp_path: Path) -> None:
    for step in (10, 9, 1):
        write(tmp_path / f"{step}.jsonl", [dumps.verl(0) | {"step": step}])
    assert [r.step for r in read(tmp_path)] == [1, 9, 10]
    assert [r.step for r in read(tmp_path / "1*.jsonl")] == [1, 10]


def test_a_row_may_have_several_responses(tmp_path: Path) -> None:
    row = {"problem": "p", "responses": ["a", "b"], "rewards": [1, 0]}
    found = read(write(tmp_path / "dump.jsonl", [row]))
    assert [(r.response, r.reward) for r in found] == [("a", 1.0), ("b", 0.0)]
    broken = write(tmp_path / "broken.jsonl", [row | {"rewards": [1]}])
    with pytest.raises(ValueError, match=r"broken.jsonl:1: 2 responses and 1 rewards"):
        read(broken)


def test_fields_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "dump.jsonl", [{"ask": "p", "say": "r", "good": True}])
    (found,) = read(path, fields=Fields("ask", "say", "good"))
    assert (found.prompt, found.response, found.reward) == ("p", "r", 1.0)
    with pytest.raises(ValueError, match="no field 'sey'; fields: ask, say, good"):
        read(path, fields=Fields("ask", "sey", "good"))


def test_the_responses_of_a_row_get_their_own_token_ids(tmp_path: Path) -> None:
    several = {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0], "prompt_ids": [1]}
    cells = {"response_ids": [[3], [4, 5]], "values": [[0.5], [0, 1]], "finished": [True, False]}
    found = read(write(tmp_path / "dump.jsonl", [several | cells]))
    assert [r.response_ids for r in found] == [[3], [4, 5]]
    assert [r.values for r in found] == [[0.5], [0.0, 1.0]]
    assert [r.finished for r in found] == [True, False]


@pytest.mark.parametrize(("suffix", "comma"), [(".csv", ","), (".tsv", "\t")])
def test_the_cells_of_csv_are_read_by_their_columns(
    suffix: str, comma: str, tmp_path: Path
) -> None:
    path = tmp_path / f"dump{suffix}"
    rows = [["prompt", "response", "reward", "finished"], ["1+1", "2", "1.0", "False"]]
    path.write_text("".join(comma.join(row) + "\n" for row in rows))
    (found,) = read(path)
    assert (found.prompt, found.response, found.reward, found.finished) == ("1+1", "2", 1.0, False)
    path.write_text(path.read_text().replace("1.0", "high"))
    with pytest.raises(ValueError, match=rf"dump{suffix}:1: reward: expected a finite number"):
        read(path)


SEVERAL = {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0], "prompt_ids": [1]}
BAD_CELLS = {
    "reward": [float("inf"), 1e39, 10**400, "high", {}],
    "prompt_ids": [5, "ab", [1.5], [-1], [True], ["1"], [[1]], [2**31]],
    "response_ids": [5, "ab", [1.5], [-1], [True], ["1"], [1, [1]], [10**400]],
    "finished": ["false", "no", 300, [1, 1]],
    "values": [0.7, {"a": 1}, [10**400], "abc", [["a"]], [float("nan")]],
    "step": [10**400, "one", 0.5, [1]],
    "response": ["\ud800", [{"role": "assistant", "content": "\ud800"}]],
    "prompt": ["\ud800", [{"role": "user", "content": "\ud800"}]],
    "answer": ["\ud800", ["\ud800"]],
}
BAD_ROWS = {
    "one list of ids for several responses": (
        [SEVERAL | {"response_ids": [3, 4]}],
        "response_ids: expected 2 lists, one for each response",
    ),
    "lists of ids for other responses": (
        [SEVERAL | {"response_ids": [[3], [4], [5]]}],
        "response_ids: expected 2 lists, one for each response",
    ),
    "score is NaN": (
        [
            dumps.prime_rl(0)
            | {"traces": [dumps.prime_rl(0)["traces"][0] | {"rewards": {"r": {"score": math.nan}}}]}
        ],
        "reward: expected a finite number, got nan",
    ),
    **{
        f"{field}: {place!s}": ([dumps.plain(0) | {field: cell}], f"{field}: expected")
        for field, cells in BAD_CELLS.items()
        for place, cell in enumerate(cells)
    },
    "kind of answer": ([dumps.ours(0) | {"answer_kind": "word"}], "answer_kind: expected one of"),
    "columns": ([dumps.ours(0) | {"columns": [1]}], "columns: expected an object"),
    "no JSON object": ([1], "expected a JSON object, got int"),
    "no prompt": ([{"response": "r", "reward": 1}], "no prompt: expected one of prompt"),
    "no response": ([{"prompt": "p", "reward": 1}], "no response: expected one of response"),
    "reward is text": ([dumps.plain(0) | {"reward": "1"}], "reward: expected a finite number"),
    "reward is NaN": ([dumps.plain(0) | {"reward": float("nan")}], "expected a finite number"),
    "several turns": (
        [dumps.verifiers(0) | {"completion": [{"role": "assistant", "content": "a"}] * 2}],
        "completion: the response has 2 turns; one is expected",
    ),
    "no mask": (
        [dumps.nemo_rl(0) | {"token_loss_mask": [[0] * 20]}],
        "token_loss_mask is 0 everywhere",
    ),
    "wrong shape": ([dumps.prime_rl(0) | {"traces": [3]}], "not a row of prime-rl"),
    "failed request": (
        [dumps.batch_output(0) | {"response": None, "error": "limit"}],
        "the request failed: limit",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_and_skipped_on_request(case: str, tmp_path: Path) -> None:
    rows, message = BAD_ROWS[case]
    path = write(tmp_path / "dump.jsonl", [dumps.plain(0), *rows, dumps.plain(1)])
    with pytest.raises(ValueError, match="1 rows cannot be read") as error:
        read(path)
    assert "dump.jsonl:2: " in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)
    reading = Reading()
    assert len(read(path, drop_invalid=True, reading=reading)) == 2
    assert reading.invalid == 1


def test_token_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    row = dumps.plain(0) | {"prompt_ids": [1], "response_ids": [2, 10]}
    path = write(tmp_path / "dump.jsonl", [row])
    with pytest.raises(ValueError, match=r"dump.jsonl:1: response_ids: .* in 0\.\.9, got 10"):
        read(path, vocabulary=10)
    assert read(path, vocabulary=11)[0].response_ids == [2, 10]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"reward": ' + "1" * 5000 + "}", "a number of thousands of digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_beyond_the_limits_of_json_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_text(f"{json.dumps(dumps.plain(0))}\n{line}\n")
    with pytest.raises(ValueError, match=f"^dump.jsonl:2: broken JSON, {reason}$"):
        read(path)


def test_what_holds_no_responses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file, and no directory or pattern with data"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="no responses"):
        read(write(tmp_path / "empty.jsonl", []))
    (tmp_path / "torn.jsonl").write_text('{"prompt": "p"')
    with pytest.raises(ValueError, match=r"torn.jsonl:1: broken JSON"):
        read(tmp_path / "torn.jsonl")


def test_files_with_and_without_numbers_are_read_in_order(tmp_path: Path) -> None:
    row = dumps.DUMPS["verl"](0)
    for name in ("10.jsonl", "2.jsonl", "step2_part1.jsonl", "more.jsonl"):
        write(tmp_path / name, [row])
    places = [place for place, _ in read_responses([str(tmp_path)])]
    names = [Path(place.split(":")[0]).name for place in places]
    assert names == ["more.jsonl", "2.jsonl", "step2_part1.jsonl", "10.jsonl"]


def test_our_own_rows_keep_what_they_say_of_their_policy(tmp_path: Path) -> None:
    origin = {"model": "abc", "temperature": 0.7}
    row = {"index": 0, "sample": 0, "problem": "p", "response": "r", "correct": True, "answer": 1}
    (found,) = read(write(tmp_path / "ours.jsonl", [row | {"origin": origin}]))
    assert found.origin == origin
