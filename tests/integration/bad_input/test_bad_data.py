"""Data files: what is wrong, in which file and row; and what only looks wrong."""

import csv
import gzip
import io
import json
import os
import re
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from lightning_vcppo.data import files, json_rows
from lightning_vcppo.data.sources import load_problems
from tests.integration.bad_input.conftest import without_privileges
from tests.support.rows import every
from tests.support.tiny_runs import TINY

FORMATS = ("jsonl", "json", "csv", "parquet")
RIGHT = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(12)]


def encoded(rows, kind):
    """Return the bytes of a file."""
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows, indent=0).encode()
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


# What is done to a right file, and what is said of it, by format. A file is called bad.FORMAT.
SPOILED = [
    (
        "empty",
        lambda right: b"",
        {
            "jsonl": "bad.jsonl: no rows; expected problems with a text and an answer",
            "json": "bad.json: no rows; expected problems with",
            "csv": "bad.csv: no rows; expected problems with",
            "parquet": "bad.parquet: not a complete parquet file, Parquet file size is 0 bytes",
        },
    ),
    (
        "cut off in row 9",
        lambda right: right[: right.index(b"What is 8") + 4],
        {
            "jsonl": "bad.jsonl:9: broken JSON, Unterminated string starting at (column 13); exp",
            "json": "bad.json:35: broken JSON, Unterminated string",
            "csv": "bad.csv:9: no field answer, final_answer",
        },
    ),
    (
        "cut off",
        lambda right: right[: len(right) // 2],
        {"parquet": "bad.parquet: not a complete parquet file, Parquet magic bytes not found"},
    ),
    (
        "Latin 1",
        lambda right: right.replace(b"What is 3", b"Qu\xe9 es 3"),
        {
            "jsonl": "bad.jsonl:4: expected UTF-8 text, byte 16 of the line is 0xe9; convert it",
            "json": "bad.json:15: expected UTF-8 text, byte 15 of the line is 0xe9; convert it",
            "csv": "bad.csv:5: expected UTF-8 text, byte 3 of the line is 0xe9; convert it",
        },
    ),
    (
        "UTF-16",
        lambda right: right.decode("latin1").encode("utf-16"),
        {
            kind: f"bad.{kind}: expected UTF-8 text, but it is UTF-16; convert it with `iconv"
            for kind in ("jsonl", "json", "csv")
        },
    ),
    (
        "compressed",
        gzip.compress,
        {
            "jsonl": "bad.jsonl: expected UTF-8 text, but it is compressed with gzip; unpack it or",
            "csv": "bad.csv: expected UTF-8 text, but it is compressed with gzip; unpack it or",
            "parquet": "bad.parquet: not a complete parquet file",
        },
    ),
    (
        "NUL bytes in row 4",
        lambda right: right.replace(b"What is 3", b"What\0is 3"),
        {
            "jsonl": "bad.jsonl:4: expected text, found a NUL byte",
            "json": "bad.json:15: expected text, found a NUL byte",
            "csv": "bad.csv:5: expected text, found a NUL byte",
        },
    ),
    (
        "not of the format",
        lambda right: b"<!DOCTYPE html>\n<p>Sign in to download</p>\n",
        {
            "jsonl": "bad.jsonl:1: broken JSON, Expecting value (column 1); expected one JSON obj",
            "json": "bad.json:1: broken JSON, Expecting value (column 1)",
            "csv": "bad.csv: none of 1 rows is valid; bad.csv:1: no field problem, question",
            "parquet": "bad.parquet: not a complete parquet file, Parquet magic bytes not found",
        },
    ),
    (
        "its first page overwritten",
        lambda right: right[:10] + b"\xff" * 30 + right[40:],
        {"parquet": "bad.parquet: not a complete parquet file, Couldn't deserialize thrift"},
    ),
]


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        pytest.param(spoil, kind, message, id=f"{name}-{kind}")
        for name, spoil, messages in SPOILED
        for kind, message in messages.items()
    ],
)
def test_a_spoiled_file(data_mistake, tmp_path, spoil, kind, message):
    (tmp_path / f"bad.{kind}").write_bytes(spoil(encoded(RIGHT, kind)))
    line = data_mistake(f"bad.{kind}")
    assert line.startswith(message), line


# A thirteenth row, behind twelve right ones. In CSV all cells are text.
WRONG_ROWS = [
    ({"problem": "1 + 1?", "answer": "1000"}, "expected an integer answer in 0..999, got '1000'"),
    ({"problem": "1 + 1?", "answer": "-1"}, "expected an integer answer in 0..999, got '-1'"),
    ({"problem": "1 + 1?", "answer": "x^2"}, "expected an integer answer in 0..999, got 'x^2'"),
    ({"problem": "1 + 1?", "answer": "1.5"}, "expected an integer answer in 0..999, got '1.5'"),
    ({"problem": "1 + 1?", "answer": ""}, "no field answer, final_answer, expected_answer"),
    ({"problem": "", "answer": "2"}, "no field problem, question, prompt, messages, conv"),
    ({"problem": "  ", "answer": "2"}, "the problem is empty or not text; fields: problem, ans"),
]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("row", "message"), WRONG_ROWS, ids=lambda value: str(value)[:30])
def test_a_wrong_row(data_mistake, tmp_path, row, message, kind):
    (tmp_path / f"bad.{kind}").write_bytes(encoded([*RIGHT, row], kind))
    line = data_mistake(f"bad.{kind}")
    assert line.startswith(f"bad.{kind}:13: {message}"), line
    assert line.endswith("; --data.drop_invalid=true leaves such rows out")
    with pytest.warns(UserWarning, match=f"bad.{kind}: left out 1 rows"):
        assert len(load_problems(tmp_path / f"bad.{kind}", drop_invalid=True)) == 12


@pytest.mark.parametrize("kind", FORMATS)
def test_no_valid_row(data_mistake, tmp_path, kind):
    (tmp_path / f"bad.{kind}").write_bytes(encoded([{"task": "1 + 1?", "gold": "2"}] * 3, kind))
    line = data_mistake(f"bad.{kind}")
    assert line.startswith(f"bad.{kind}: none of 3 rows is valid; bad.{kind}:1: no field problem")
    assert line.endswith("fields: task, gold (--data.problem_field names one)")


# Lines that JSON Lines, or JSON, alone can have.
WRONG_LINES = [
    ('{"problem": 5, "answer": 1}', "the problem is empty or not text; fields: problem, answer"),
    ('{"problem": "1?", "answer": true}', "expected an integer answer in 0..999, got True"),
    ('{"problem": "1?", "answer": NaN}', "expected an integer answer in 0..999, got nan"),
    ('{"problem": "1?", "answer": 1e999}', "expected an integer answer in 0..999, got inf"),
    ('{"problem": "1?", "answer": {"is": 2}}', "expected an integer answer in 0..999, got {'is'"),
    ('{"problem": "1?", "answer": 1, "answer": 2}', "the key 'answer' is there twice"),
    (f'{{"problem": "1?", "answer": {"9" * 5000}}}', "a number of thousands of digits"),
    (f'{{"problem": "1?", "answer": {"[" * 99999}', "broken JSON, nested too deeply"),
    (
        r'{"problem": "\ud800?", "answer": 1}',
        "the problem holds half a surrogate pair (character 1)",
    ),
    (r'{"problem": "1\u0000?", "answer": 1}', "the problem holds a NUL byte (character 2)"),
    ('{"problem": "1?", "answer": 1', "broken JSON, Expecting ',' delimiter (column 30); expected"),
    ("[1, 2]", "expected a JSON object, got [1, 2]"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_LINES, ids=lambda value: value[:40])
def test_a_wrong_line(data_mistake, problems, text, message):
    problems(text)
    line = data_mistake("problems.jsonl")
    assert line.startswith(f"problems.jsonl:13: {message}"), line


def table(text):
    columns = [pyarrow.array([cell]) for cell in ("1?", "1", "2")]
    buffer = io.BytesIO()
    names = text.decode().split(",")
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names), buffer)
    return buffer.getvalue()


WRONG_FILES = [
    ("two.csv", b"problem,answer,answer\n1?,1,2\n", "two.csv: two columns are named 'answer'"),
    ("two.parquet", table(b"problem,answer,answer"), "two.parquet: two columns are named 'answ"),
    ("more.csv", b"problem,answer\n1?,1\n2?,2,3\n", "more.csv:2: more cells than the header nam"),
    ("less.csv", b"problem,answer\n1?,1\n2?\n", "less.csv:2: no field answer"),
    ("open.csv", b'problem,answer\n1?,1\n"2?,2\n3?,3\n', "open.csv:2: broken CSV, unexpected end"),
    ("head.csv", b"problem,answer\n", "head.csv: no rows"),
    ("a.json", b'"text"', "a.json: expected a list of JSON objects or one object a line"),
    ("b.json", b"[1, 2]", "b.json: expected a list of JSON objects or one object a line"),
    ("c.json", b"[]", "c.json: no rows"),
    ("d.json", b'{"data": []}', "d.json: none of 1 rows is valid; d.json:1: no field problem"),
    ("e.json", b'[\n{"problem": "1?",\n"answer": 1,\n}]', "e.json:4: broken JSON"),
    ("f.json", b'[{"answer": 1, "answer": 2}]', "f.json: the key 'answer' is there twice"),
    ("a.xlsx", b"PK", "a.xlsx: expected one of .jsonl, .json, .txt, .csv, .tsv, .parquet"),
    ("a.jsonl.gz", b"\x1f\x8b", "a.jsonl.gz: not a complete gzip file, Compressed file"),
    (
        "none",
        b"{}",
        "none: expected one of .jsonl, .json, .txt, .csv, .tsv, .parquet, got ''",
    ),
    (
        "pointer.jsonl",
        b"version https://git-lfs.github.com/spec/v1\n",
        "pointer.jsonl:1: broken JSON, Expecting value (column 1)",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG_FILES, ids=lambda v: str(v)[:20])
def test_a_wrong_file(data_mistake, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    line = data_mistake(name)
    assert line.startswith(message), line


def test_text_of_a_parquet_file_that_is_not_utf8(data_mistake):
    buffers = [None, pyarrow.py_buffer(b"\0\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"Qu\xe9?")]
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)
    pyarrow.parquet.write_table(pyarrow.table({"problem": text, "answer": [1]}), "bad.parquet")
    assert data_mistake("bad.parquet") == "bad.parquet: expected text in UTF-8, but a cell is not"


# Places


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_no_ordinary_file(data_mistake, tmp_path, kind):
    (tmp_path / f"directory.{kind}").mkdir()
    line = data_mistake(f"directory.{kind}")
    assert line.startswith(f"directory.{kind}: cannot be read as a data set"), line
    os.symlink(f"loop.{kind}", tmp_path / f"loop.{kind}")
    line = data_mistake(f"loop.{kind}")
    assert line == f"loop.{kind}: a symbolic link to loop.{kind}, which does not exist"
    os.mkfifo(tmp_path / f"pipe.{kind}")
    assert data_mistake(f"pipe.{kind}") == f"pipe.{kind}: expected a regular file"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_without_permission(data_mistake, tmp_path, kind):
    file = tmp_path / f"mine.{kind}"
    file.write_bytes(encoded(RIGHT, kind))
    file.chmod(0)
    tmp_path.chmod(0o755)
    with without_privileges():
        line = data_mistake(file.name)
    assert line.startswith(f"mine.{kind}: permission denied; change its permissions"), line


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/file.jsonl", "no/file.jsonl: no such file, the directory no does not exist"),
        ("problem.jsonl", "problem.jsonl: no such file; did you mean problems.jsonl?"),
        ("", "path: expected a file, a directory or a data set of the hub, got ''"),
        ("a\0b.jsonl", "path: expected a file, a directory or a data set of the hub, got 'a\\x00b"),
        (f"{'a' * 300}.jsonl", f"{'a' * 120}...: file name too long"),
        ("nobody/nothing", "nobody/nothing: cannot be read as a data set, the hub cannot be"),
        ("reasoning_gym:chan_sum", "reasoning_gym:chan_sum: no such task; did you mean chain_sum"),
    ],
    ids=lambda value: value[:20].replace("\0", "NUL"),
)
def test_a_wrong_place(data_mistake, problems, path, message):
    if path.startswith("reasoning_gym"):
        pytest.importorskip("reasoning_gym")
    problems()
    line = data_mistake(path)
    assert line.startswith(message), line


# Sizes


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_gigabyte_of_nothing_is_refused_at_once(data_mistake, tmp_path, kind):
    with (tmp_path / f"big.{kind}").open("wb") as file:
        file.truncate(2**30)  # takes no space on the disk
    assert data_mistake(f"big.{kind}") == f"big.{kind}:1: expected text, found a NUL byte"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_without_an_end_does_not_fill_the_memory(data_mistake, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 2**20)
    head = '{"problem": "' if kind == "jsonl" else "problem,answer\n"
    (tmp_path / f"long.{kind}").write_text(head + "a" * 2**25)
    tracemalloc.start()
    line = data_mistake(f"long.{kind}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    row = 1 if kind == "jsonl" else 2
    assert line == f"long.{kind}:{row}: the line is longer than 1 MiB"
    assert peak < 2**23


def test_a_document_is_read_up_to_a_limit(data_mistake, tmp_path, monkeypatch):
    (tmp_path / "long.json").write_text(json.dumps({"data": RIGHT * 3000}, indent=0))
    assert len(load_problems(tmp_path / "long.json")) == 36000
    monkeypatch.setattr(json_rows, "MAX_DOCUMENT", 2**20)
    line = data_mistake("long.json")
    assert line == "long.json: a JSON document of more than 1 MiB; write it as JSON Lines, one " + (
        "object a line"
    )


def test_a_list_is_read_row_by_row(data_mistake, tmp_path, monkeypatch):
    (tmp_path / "long.json").write_bytes(encoded(RIGHT * 3000, "json").replace(b"\n", b""))
    for name, value in (("MAX_LINE", 2**12), ("CHUNK", 2**12), ("MAX_DOCUMENT", 2**12)):
        monkeypatch.setattr(json_rows, name, value)
    assert len(load_problems(tmp_path / "long.json")) == 36000
    (tmp_path / "long.json").write_text(json.dumps([*RIGHT, {"problem": "a" * 2**14}]))
    line = data_mistake("long.json")
    assert line.startswith("long.json:1: broken JSON, a row of more than 0 MiB (column 5"), line


# Settings


UNUSABLE = [
    (["--data.answer_field=gold"], "problems.jsonl: none of 12 rows is valid; problems.jsonl:1"),
    (["--data.val_size=12"], "--data.val_size: 12 of 12 problems leaves none to train on; low"),
    (["--data.val_path=problems.jsonl"], "--data.val_path: all 12 training problems are near"),
    (["--data.prompts_per_rollout=20"], "--data.prompts_per_rollout: 20 is more than the 10"),
    (["--data.chat_template=chat"], "--data.chat_template: the tokenizer has none; expected"),
    (["--data.evaluation_sets={a: b.jsonl}"], "b.jsonl: no such file"),
    (["--data.evaluation_sets={a b: b}"], "--data.evaluation_sets: expected names of letters"),
    (["--data.max_prompt_length=5"], "problems.jsonl:"),
]


@pytest.mark.parametrize(("arguments", "message"), every(4, UNUSABLE))
def test_data_that_cannot_be_used(mistake, problems, arguments, message):
    line = mistake(problems(), *arguments)
    assert line.startswith(message), line


def test_a_long_prompt_says_what_to_do(mistake, problems):
    line = mistake(problems(), "--data.max_prompt_length=5")
    assert "tokens, more than max_prompt_length=5" in line and "--data.on_long_prompt=drop" in line


def test_cold_start_needs_solutions(mistake, problems):
    module = ["--model=ColdStartModule", *TINY, "--data.prompts_per_rollout=2"]
    line = mistake(problems(), base=module, leaves=("run/config.yaml", "run/start.json"))
    assert line.startswith("problems.jsonl:") and "no worked solution" in line, line


# What only looks wrong


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda right: b"\xef\xbb\xbf" + right, id="byte order mark"),
        pytest.param(lambda right: right.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda right: right.replace(b"\n", b"\r"), id="CR"),
        pytest.param(lambda right: right + b"\n\n", id="empty lines"),
        pytest.param(lambda right: right.rstrip(b"\n"), id="no end of line"),
    ],
)
def test_what_is_right(tmp_path, kind, change):
    (tmp_path / f"right.{kind}").write_bytes(change(encoded(RIGHT, kind)))
    found = load_problems(tmp_path / f"right.{kind}")
    assert [(p.problem, p.answer) for p in found] == [
        (row["problem"], int(row["answer"])) for row in RIGHT
    ]


def test_cells_with_line_ends_and_quotes(tmp_path):
    rows = [{"problem": 'Say "two"\nand\n\nadd 1', "answer": "3"}]
    (tmp_path / "right.csv").write_bytes(encoded(rows, "csv"))
    assert load_problems(tmp_path / "right.csv")[0].problem == rows[0]["problem"]


def test_a_link_to_a_file(tmp_path):
    (tmp_path / "right.csv").write_bytes(encoded(RIGHT, "csv"))
    os.symlink("right.csv", tmp_path / "link.csv")
    found = load_problems(tmp_path / "link.csv")
    assert len(found) == 12 and re.fullmatch(r"link\.csv:\d+", found[0].source)
