"""Files: compressed ones, tables of bytes and decimals, patterns, and JSON in pieces."""

import csv
import gzip
import json
import lzma
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.data import json_rows
from lightning_vcppo.data.files import file_rows
from lightning_vcppo.data.sources import load_problems

ROWS = [{"problem": f"What is {i} + 1? ✓", "answer": str(i + 1)} for i in range(300)]
COMPRESS = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}


def encoded(rows, suffix):
    if suffix == "parquet":
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    if suffix in ("csv", "tsv"):
        mark = "," if suffix == "csv" else "\t"
        lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
        return "\n".join(lines).encode()
    text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
    return text.encode()


def contents(problems):
    return [(problem.problem, str(problem.answer)) for problem in problems]


EXPECTED = [(row["problem"], row["answer"]) for row in ROWS]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "txt", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("packing", COMPRESS)
def test_compressed_files_are_read(tmp_path, suffix, packing):
    file = tmp_path / f"a.{suffix}.{packing}"
    packed = COMPRESS[packing](encoded(ROWS, suffix))
    file.write_bytes(packed)
    problems = load_problems(file)
    assert contents(problems) == EXPECTED and problems[0].source == f"{file.name}:1"
    for wrong, kind in ((packed[:-9], "cut off"), (b"nonsense " * 9, "nonsense")):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"{file.name}: not a complete .* file, ") as error:
            load_problems(file)
        assert "\n" not in str(error.value), kind


def test_a_stream_of_several_frames(tmp_path):
    for packing, compress in COMPRESS.items():
        parts = [encoded(ROWS[:100], "jsonl") + b"\n", encoded(ROWS[100:], "jsonl")]
        (tmp_path / f"a.jsonl.{packing}").write_bytes(b"".join(map(compress, parts)))
        assert contents(load_problems(tmp_path / f"a.jsonl.{packing}")) == EXPECTED


@pytest.mark.parametrize("packing", COMPRESS)
def test_a_compressed_file_without_its_suffix_is_told(tmp_path, packing):
    (tmp_path / "a.jsonl").write_bytes(COMPRESS[packing](encoded(ROWS, "jsonl")))
    with pytest.raises(
        ValueError, match=rf"compressed with .*; unpack it or call it a.jsonl.{packing}"
    ):
        load_problems(tmp_path / "a.jsonl")


def test_shards_of_a_pattern_in_order(tmp_path):
    for i in range(3):
        part = encoded(ROWS[100 * i : 100 * (i + 1)], "parquet")
        (tmp_path / f"train-{i}.parquet").write_bytes(part)
    (tmp_path / "test-0.parquet").write_bytes(encoded(ROWS[:1], "parquet"))
    problems = load_problems(tmp_path / "train-*.parquet")
    assert contents(problems) == EXPECTED
    assert problems[100].source == "train-1.parquet:1"
    with pytest.raises(ValueError, match=r"dev-\*.parquet: no file matches this pattern"):
        load_problems(tmp_path / "dev-*.parquet")


def test_decimals_and_bytes_of_parquet(tmp_path):
    table = pyarrow.table(
        {
            "problem": pyarrow.array([b"What is 3?", "é?".encode()], pyarrow.binary()),
            "answer": pyarrow.array([Decimal("33.00"), Decimal("7")], pyarrow.decimal128(9, 2)),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert contents(load_problems(tmp_path / "a.parquet")) == [("What is 3?", "33"), ("é?", "7")]

    broken = {"problem": pyarrow.array([b"\xff"], pyarrow.binary()), "answer": [1]}
    pyarrow.parquet.write_table(pyarrow.table(broken), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet:1: expected text in UTF-8, found other bytes"):
        load_problems(tmp_path / "b.parquet")


def test_columns_that_nobody_needs_are_named_but_not_read(tmp_path):
    rows = [{"task": "1?", "gold": 2, "generations": ["a"] * 9}]
    (tmp_path / "a.parquet").write_bytes(encoded(rows, "parquet"))
    with pytest.raises(ValueError, match=r"fields: task, gold, generations"):
        load_problems(tmp_path / "a.parquet")
    (problem,) = load_problems(tmp_path / "a.parquet", problem_field="task", answer_field="gold")
    assert (problem.problem, problem.answer) == ("1?", 2)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=5),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
)
def test_a_list_in_pieces_is_what_the_whole_is(tmp_path_factory, rows, indent, chunk):
    file = tmp_path_factory.getbasetemp() / "pieces.json"
    file.write_text(json.dumps(rows, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", chunk)
        assert [row for _, row in json_rows.json_rows(file, lambda row: True)] == rows


@pytest.mark.parametrize("chunk", [1, 3, 2**20])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a" 2}]', r"a.json:2: broken JSON, Expecting ':' delimiter \(column 7\)"),
        ('[{"a": 1}\n {"a": 2}]', r"a.json:2: broken JSON, Expecting ',' delimiter \(column 2\)"),
        ('[{"a": 1},\n{"a": "b', r"a.json:2: broken JSON, Unterminated string .* \(column 7\)"),
        ('[{"a": 1}]\n\n x', r"a.json:3: broken JSON, Extra data \(column 2\)"),
        ('[{"a": 1}', r"a.json:1: broken JSON, Expecting ',' delimiter \(column 10\)"),
    ],
)
def test_the_place_of_a_mistake_in_a_list(tmp_path, monkeypatch, chunk, text, message):
    (tmp_path / "a.json").write_text(text)
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    with pytest.raises(ValueError, match=message):
        list(json_rows.json_rows(tmp_path / "a.json", lambda row: True))


def test_long_cells_of_problems_leave_the_limit_of_other_tables(tmp_path):
    before = csv.field_size_limit()
    path = tmp_path / "p.csv"
    path.write_text("problem,answer\n" + f"{'x' * 2 * before},1\n" * 2 + '"a"b,1\n')
    rows = file_rows(path, lambda row: True, ("problem", "answer"))
    assert len(next(iter(rows))[1]["problem"]) == 2 * before
    assert csv.field_size_limit() == before  # between two rows, too
    with pytest.raises(ValueError, match=r"p\.csv:3: broken CSV"):
        list(rows)
    assert csv.field_size_limit() == before
