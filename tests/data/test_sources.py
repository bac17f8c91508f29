"""Reading problems: the schemas of the wild, and one clear line for every mistake."""

import csv
import json
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.schemas import find_year
from lightning_vcppo.data.sources import load_problems

ROWS = [
    {"problem": "What is 1 + 1?", "answer": "2", "solution": "By counting."},
    {"problem": "Lines\nand, commas; $x$?", "answer": "070", "solution": ""},
]
EXPECTED = [("What is 1 + 1?", 2, "By counting."), ("Lines\nand, commas; $x$?", 70, None)]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def contents(problems):
    return [(p.problem, p.answer, p.solution) for p in problems]


# Containers


def write_rows(path):
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.name == "list.json":
        write(path, json.dumps(ROWS, indent=2))
    elif path.name == "object.json":
        write(path, json.dumps({"version": 1, "data": ROWS}))
    else:
        write(path, lines(ROWS), "utf-8-sig")  # JSON Lines with a byte order mark
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "lines.json",
        "lines.txt",
        "list.json",
        "object.json",
        "a.csv",
        "a.tsv",
        "a.parquet",
    ],
)
def test_every_container_gives_the_same_problems(tmp_path, name):
    problems = load_problems(write_rows(tmp_path / name))
    assert contents(problems) == EXPECTED
    assert [p.source for p in problems] == [f"{name}:1", f"{name}:2"]


def test_one_row_is_a_data_set(tmp_path):
    assert contents(load_problems(write(tmp_path / "a.json", json.dumps(ROWS[0])))) == EXPECTED[:1]


def test_rows_of_json_lines_are_counted_in_lines(tmp_path):
    text = "\n" + json.dumps(ROWS[0]) + "\r\n\n" + '{"problem": "a\u2028b", "answer": 3}'
    problems = load_problems(write(tmp_path / "a.jsonl", text))
    assert [p.source for p in problems] == ["a.jsonl:2", "a.jsonl:4"]
    assert problems[1].problem == "a\u2028b"


def test_a_directory_is_read_by_datasets(tmp_path):
    directory = tmp_path / "set"
    directory.mkdir()
    write_rows(directory / "train-00000.parquet")
    problems = load_problems(directory)
    assert contents(problems) == EXPECTED
    assert problems[1].source == "set:2"


def test_splits_are_chosen_by_name(tmp_path):
    directory = tmp_path / "set"
    directory.mkdir()
    write_rows(directory / "train.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1]), directory / "test.parquet")
    with pytest.raises(ValueError, match="set: holds the splits train, test; choose one"):
        load_problems(directory)
    assert contents(load_problems(directory, split="test")) == EXPECTED[:1]
    with pytest.raises(ValueError, match='cannot be read as a data set, Unknown split "dev"'):
        load_problems(directory, split="dev")


def test_a_data_set_saved_to_disk(tmp_path):
    directory = tmp_path / "saved"
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(directory))
    assert contents(load_problems(directory, split="test")) == EXPECTED[:1]


def test_reasoning_gym_generates_tasks():
    pytest.importorskip("reasoning_gym")
    problems = load_problems("reasoning_gym:gcd", size=5, seed=3)
    assert len(problems) == 5
    assert problems == load_problems("reasoning_gym/gcd", size=5, seed=3)
    assert problems != load_problems("reasoning_gym:gcd", size=5, seed=4)
    assert "Greatest Common Divisor" in problems[0].problem
    assert problems[4].source == "reasoning_gym:gcd:5"
    with pytest.raises(ValueError, match=r"no such task; did you mean chain_sum\?"):
        load_problems("reasoning_gym:chan_sum")


# Fields


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "Q", "answer": 7},
        {"question": "Q", "final_answer": "7"},
        {"Problem": "Q", "Answer": 7.0},
        {"problem": "Q", "question": "another text", "expected_answer": "7"},
        {"problem": None, "question": "Q", "ground_truth": "7"},
        {"prompt": "Q", "label": "7"},
        {"prompt": [{"from": "human", "value": "Q"}], "answer": ["7"]},
        {"prompt": [{"role": "user", "content": "Q"}], "reward_model": {"ground_truth": "7"}},
        {"prompt": json.dumps([{"role": "user", "content": "Q"}]), "answer": "7"},
        {"prompt": "Q", "reward_model": json.dumps({"ground_truth": "7", "style": "rule"})},
        {"prompt": "Q", "reward_model.ground_truth": 7},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                {"role": "assistant", "content": "7"},
            ],
            "answer": 7,
        },
    ],
)
def test_fields_are_discovered(tmp_path, row):
    context = (("system", "Be brief."),) if "messages" in row else ()
    assert load_problems(write(tmp_path / "a.jsonl", lines([row]))) == [
        Problem("Q", 7, None, "a.jsonl:1", context=context)
    ]


def test_named_fields_win_and_may_be_paths(tmp_path):
    row = {"problem": "no", "answer": 1, "x": {"y": [{"q": "yes"}]}, "z": '{"gold": [2]}'}
    file = write(tmp_path / "a.jsonl", lines([row]))
    (problem,) = load_problems(file, problem_field="x.y[0].q", answer_field="z.gold[0]")
    assert (problem.problem, problem.answer) == ("yes", 2)


def test_gsm8k_answers_are_worked_out_in_front(tmp_path):
    row = {"question": "Q", "answer": "9 * 2 = <<9*2=18>>18 eggs.\n#### 18"}
    (problem,) = load_problems(write(tmp_path / "a.jsonl", lines([row])))
    assert (problem.answer, problem.solution) == (18, "9 * 2 = <<9*2=18>>18 eggs.")


@pytest.mark.parametrize(
    ("row", "source", "year"),
    [
        ({"year": 1983, "id": 60}, "", 1983),
        ({"year": "2007"}, "a.jsonl:1", 2007),
        ({"competition": "aime_2025_I"}, "", 2025),
        ({"url": "https://a.b/2024_AIME_I_Problems/Problem_1"}, "", 2024),
        ({"ID": "2024-II-4"}, "", 2024),
        ({"id": 2024}, "", None),  # the number of a row
        ({}, "aime24_qwq.jsonl:2023", 2024),
        ({}, "math-ai/aime25:1", 2025),
        ({}, "aime_1983_2023.json:2", None),  # which of them?
        ({}, "gsm8k.jsonl:1999", None),
        ({}, "", None),
    ],
)
def test_the_year_is_found_where_a_source_tells_it(row, source, year):
    assert find_year(row, source) == year


# Mistakes


def message(path, **arguments):
    with pytest.raises(ValueError) as error:
        load_problems(path, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_are_named_with_their_neighbours(tmp_path):
    write_rows(tmp_path / "aime24.jsonl")
    wrong = tmp_path / "aime_24.jsonl"
    assert message(wrong) == f"{wrong}: no such file; did you mean {tmp_path / 'aime24.jsonl'}?"
    assert message(tmp_path / "zzzzzz.csv").endswith("zzzzzz.csv: no such file")
    assert "the directory" in message(tmp_path / "nowhere" / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", b"", "a.jsonl: no rows"),
        ("a.csv", b"problem,answer\n", "a.csv: no rows"),
        ("a.json", b"[]", "a.json: no rows"),
        ("a.jsonl", b'{"problem": "Q", "answer": 1}\n{"problem": ', "a.jsonl:2: broken JSON"),
        ("a.json", b'[{"problem": "Q"},\n {"problem" 1}]', "a.json:2: broken JSON"),
        ("a.txt", b"What is 1 + 1?\n", "a.txt:1: broken JSON"),
        ("a.jsonl", b'[1]\n{"a": 1}', "a.jsonl: expected a list of JSON objects"),
        ("a.jsonl", b'[{"a": 1}]\n{"a": 1}', "a.jsonl:2: broken JSON, Extra data"),
        ("a.jsonl", b'{"a": 1}\n[1]', "a.jsonl:2: expected a JSON object, got [1]"),
        ("a.json", b"[1, 2]", "a.json: expected a list of JSON objects"),
        ("a.json", b"7", "a.json: expected a list of JSON objects"),
        (
            "a.jsonl",
            "é".encode("latin-1"),
            "a.jsonl:1: expected UTF-8 text, byte 1 of the line is 0xe9",
        ),
        ("a.csv", '"é"'.encode("utf-16"), "a.csv: expected UTF-8 text, but it is UTF-16"),
        ("a.csv", b"problem,answer\nQ,1,2\n", "a.csv:1: more cells than the header names"),
        ("a.parquet", b"PAR1 no", "a.parquet: not a complete parquet file"),
        ("a.xlsx", b"PK", "a.xlsx: expected one of .jsonl, .json, .txt"),
        ("a.csv", b"problem;answer\nQ;1\n", "fields: problem;answer"),
    ],
)
def test_broken_files_are_named_with_the_row(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    assert expected in message(tmp_path / name)


def test_a_directory_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty: cannot be read as a data set" in message(tmp_path / "empty")


def test_unknown_fields_list_what_there_is(tmp_path):
    file = write(tmp_path / "a.jsonl", lines(ROWS))
    assert message(file, problem_field="task") == (
        "a.jsonl: none of 2 rows is valid; a.jsonl:1: no field 'task' with a value; "
        "fields: problem, answer, solution"
    )
    file = write(tmp_path / "b.jsonl", lines([{"problem": "Q", "gold": 1}]))
    assert "no field answer, final_answer" in message(file)
    assert "fields: problem, gold" in message(file)


def test_invalid_rows_are_refused_or_dropped(tmp_path):
    rows = [ROWS[0], {"problem": "Q", "answer": "p - q"}, {"problem": " ", "answer": 3}]
    file = write(tmp_path / "a.jsonl", lines(rows))
    assert message(file, answer_kind="aime") == (
        "a.jsonl:2: expected an integer answer in 0..999, got 'p - q' (and 1 more such rows: "
        "a.jsonl:3); --data.drop_invalid=true leaves such rows out"
    )
    with pytest.warns(UserWarning, match="a.jsonl: left out 2 rows, a.jsonl:2: expected"):
        problems = load_problems(file, drop_invalid=True, answer_kind="aime")
    assert contents(problems) == EXPECTED[:1]
    file = write(tmp_path / "b.jsonl", lines(rows[1:]))
    assert message(file, drop_invalid=True, answer_kind="aime").startswith(
        "b.jsonl: none of 2 rows is valid"
    )


def test_a_hub_data_set_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert message("no-such-org/no-such-set").startswith("no-such-org/no-such-set: cannot be read")


# Real data


@pytest.mark.parametrize(
    ("name", "count", "with_solution"),
    [
        ("aime24_qwen25math.jsonl", 30, 30),
        ("aime24_qwq.jsonl", 30, 0),
        ("aime25_matharena.csv", 30, 0),
        ("aime_1983_2023_deepscaler.json", 975, 975),
    ],
)
def test_real_aime_sets_load_whole(name, count, with_solution, shared_data):
    problems = load_problems(shared_data / name)
    assert len(problems) == count
    assert sum(p.solution is not None for p in problems) == with_solution
    assert all(len(p.problem) > 30 for p in problems)


@pytest.mark.parametrize(
    ("name", "kind", "count", "of_aime"),
    [
        # Of AIME's kind are 273 bare integers, 19 with degrees, units, $ or "x="
        ("math500_simplerl.jsonl", "math", 500, 292),
        ("gsm8k_test_200.jsonl", "integer", 200, 183),  # the others exceed 999
    ],
)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_real_sets_with_other_answers(name, kind, count, of_aime, shared_data):
    problems = load_problems(shared_data / name)
    assert len(problems) == count and {p.answer_kind for p in problems} == {kind}
    assert "drop_invalid=true" in message(shared_data / name, answer_kind="aime")
    kept = load_problems(shared_data / name, answer_kind="aime", drop_invalid=True)
    assert len(kept) == of_aime


@pytest.mark.parametrize(
    ("name", "years"),
    [
        ("aime24_qwen25math.jsonl", {2024}),
        ("aime24_qwq.jsonl", {2024}),
        ("aime25_matharena.csv", {2025}),
        ("aime_1983_2023_deepscaler.json", set(range(1983, 2024))),
    ],
)
def test_years_of_real_sets(name, years, shared_data):
    assert {problem.year for problem in load_problems(shared_data / name)} == years


def test_two_copies_of_aime24_agree(shared_data):
    answers = [
        [p.answer for p in load_problems(shared_data / name)]
        for name in ("aime24_qwen25math.jsonl", "aime24_qwq.jsonl")
    ]
    assert answers[0] == answers[1]


def test_without_reasoning_gym_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match="reasoning_gym:gcd: needs `pip install reasoning-gym`"):
        load_problems("reasoning_gym:gcd")
