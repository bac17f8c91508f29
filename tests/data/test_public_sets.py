"""The public sets of docs/howto/data.md: small files with their fields, read with its flags."""

import json
import re
import shlex
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lightning_vcppo.data.addresses import HubAddress, find_source
from lightning_vcppo.data.sources import load_problems

GUIDE = Path(__file__).parents[2] / "docs" / "howto" / "data.md"
LINE = re.compile(r"\| ([^|]+) \| `(--data\.path [^|]+)` \| (aime|integer|math) \|")
TABLE = {match[1]: (match[2], match[3]) for match in LINE.finditer(GUIDE.read_text())}


def user(text):
    return [{"role": "user", "content": text}]


DAPO = (
    "Solve the following math problem step by step. The last line of your response should be "
    "of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
    "\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
R1 = {"problem_type": "Algebra", "question_type": "math-word-problem", "source": "olympiads"}
OLYMPIAD = {"context": None, "is_multiple_answer": False, "unit": None, "answer_type": "Numerical"}

# Rows as in the data set, and what is read of them: problem, answer, accepted.
ROWS = {
    "AIME 2024": [
        {
            "id": 60,
            "problem": "P",
            "solution": "S",
            "answer": "033",
            "url": "x/2024_I",
            "year": "2024",
        },
        {
            "id": 61,
            "problem": "Q",
            "solution": "T",
            "answer": "204",
            "url": "x/2024_I",
            "year": "2024",
        },
    ],
    "AIME 2025": [
        {"problem_idx": 1, "problem": "P", "answer": 70, "problem_type": ["Number Theory"]}
    ],
    "AMC 2023": [
        {"id": 0, "question": "P", "answer": "27", "url": "x"},
        {"id": 1, "question": "Q", "answer": "3159", "url": "x"},
    ],
    "MATH-500": [
        {
            "problem": "P",
            "solution": r"so $\boxed{\frac{1}{2}}$",
            "answer": r"\frac{1}{2}",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        }
    ],
    "MATH": [
        {
            "problem": "P",
            "level": "Level 5",
            "type": "Algebra",
            "solution": r"$x=\boxed{\sqrt{2}}$.",
        },
        {"problem": "Q", "level": "Level ?", "type": "Algebra", "solution": r"is $\boxed{[2,5)}$."},
    ],
    "GSM8K": [
        {"question": "P", "answer": "9 * 2 = <<9*2=18>>18\n#### 18"},
        {"question": "Q", "answer": "it is\n#### 1,450"},
    ],
    "Minerva": [{"question": "P", "answer": r"9.6"}, {"question": "Q", "answer": "5e-11"}],
    "OlympiadBench": [
        OLYMPIAD
        | {"id": 1606, "question": "P", "solution": ["one", "two"], "final_answer": ["$(1,0)$"]}
        | {"subfield": "Algebra"},
        OLYMPIAD
        | {"id": 1607, "question": "Q", "solution": ["one"], "final_answer": ["2", r"$\sqrt{3}$"]}
        | {"subfield": "Number Theory"},
    ],
    "DAPO-Math-17k": [
        {
            "data_source": "math_dapo",
            "prompt": user(DAPO.format(question)),
            "ability": "MATH",
            "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b6eb4"},
        }
        for question, answer in (("P?", "34"), ("Q?", "-3"))
    ],
    "DeepScaleR": [
        {"problem": "P", "answer": "-\\frac{2}{3}", "solution": "S"},
        {"problem": "Q", "answer": "x = 5 \\text{ or } 6", "solution": ""},
    ],
    "NuminaMath-CoT": [
        {
            "source": "aops",
            "problem": "P",
            "solution": r"... $\boxed{\frac{7}{2}}$",
            "messages": user("P"),
        },
        {"source": "aops", "problem": "Q", "solution": "A proof.", "messages": user("Q")},
    ],
    "NuminaMath-1.5": [
        R1 | {"problem": "P", "solution": "S", "answer": r"\frac{7}{2}", "problem_is_valid": "Yes"},
        R1 | {"problem": "Q", "solution": "S", "answer": "proof", "problem_is_valid": "Yes"},
    ],
    "OpenR1-Math": [
        R1
        | {
            "problem": "P",
            "solution": "S",
            "answer": r"x_1=\frac{1}{2}",
            "generations": ["a", "b"],
        },
        R1 | {"problem": "Q", "solution": "S", "answer": "", "generations": ["a", "b"]},
    ],
    "Open-Reasoner-Zero": [
        {
            "0": {"from": "human", "value": question, "ground_truth": {"value": None}},
            "1": {"from": "assistant", "value": None, "ground_truth": {"value": answer}},
        }
        for question, answer in (("P", "20"), ("Q", r"\frac{1}{2}"))
    ],
    "Skywork-OR1": [
        {
            "data_source": "train-math-numinamath1.5_amc_aime",
            "prompt": user(f"{question} Output the final answer within \\boxed{{}}."),
            "ability": "math",
            "reward_model": {"ground_truth": json.dumps([answer]), "style": "rule"},
            "extra_info": {"index": 1, "model_difficulty": {"DeepSeek-R1-Distill-Qwen-7B": 3}},
        }
        for question, answer in (("P", "20"), ("Q", r"\frac{1}{2}"))
    ],
    "Big-Math": [
        {
            "problem": "P",
            "answer": "2",
            "source": "orca_math",
            "domain": ["Math"],
            "llama8b_solve_rate": 0.3,
        },
        {
            "problem": "Q",
            "answer": r"\pi",
            "source": "cn_k12",
            "domain": ["Math"],
            "llama8b_solve_rate": None,
        },
    ],
    "DeepMath": [
        {"question": "P", "final_answer": r"\dfrac{1}{e}", "difficulty": 5.0, "topic": "Calculus"},
        {"question": "Q", "final_answer": "Yes", "difficulty": 4.5, "topic": "Algebra"},
    ],
    "MMLU-Pro": [
        {
            "question_id": 70,
            "question": "P",
            "options": ["3", r"$\frac12$", "N/A"],
            "answer": "B",
            "answer_index": 1,
            "cot_content": "",
            "category": "math",
            "src": "x",
        }
    ],
}

ANSWERS = {
    "AIME 2024": [(33, ()), (204, ())],
    "AIME 2025": [(70, ())],
    "AMC 2023": [(27, ()), (3159, ())],
    "MATH-500": [(r"\frac{1}{2}", ())],
    "MATH": [(r"\sqrt{2}", ()), ("[2,5)", ())],
    "GSM8K": [(18, ()), (1450, ())],
    "Minerva": [("9.6", ()), ("5e-11", ())],
    "OlympiadBench": [("$(1,0)$", ()), ("2", (r"$\sqrt{3}$",))],
    "DAPO-Math-17k": [(34, ()), (-3, ())],
    "DeepScaleR": [(r"-\frac{2}{3}", ()), (r"x = 5 \text{ or } 6", ())],
    "NuminaMath-CoT": [(r"\frac{7}{2}", ())],
    "NuminaMath-1.5": [(r"\frac{7}{2}", ())],
    "OpenR1-Math": [(r"x_1=\frac{1}{2}", ())],
    "Open-Reasoner-Zero": [("20", ()), (r"\frac{1}{2}", ())],
    "Skywork-OR1": [("20", ()), (r"\frac{1}{2}", ())],
    "Big-Math": [("2", ()), (r"\pi", ())],
    "DeepMath": [(r"\dfrac{1}{e}", ()), ("Yes", ())],
    "MMLU-Pro": [("B", (r"$\frac12$",))],
}


def arguments(flags):
    """Return the hub address of a line of flags, and the other arguments of `load_problems`."""
    words = shlex.split(flags)
    given = {
        flag.removeprefix("--data."): value
        for flag, value in zip(words[::2], words[1::2], strict=True)
        if flag.startswith("--data.")
    }
    if "drop_invalid" in given:
        given["drop_invalid"] = given["drop_invalid"] == "true"
    return given.pop("path"), given


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_table_has_the_sets_that_are_tested():
    assert TABLE.keys() == ROWS.keys() == ANSWERS.keys() and len(TABLE) >= 15


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore:.*left out 1 rows")
def test_a_public_set_is_read_with_its_flags(tmp_path, name, kind):
    flags, expected_kind = TABLE[name]
    address, given = arguments(flags)
    found = find_source(address)
    assert isinstance(found, HubAddress) and found.split
    problems = load_problems(write(tmp_path / f"a.{kind}", ROWS[name]), **given)
    assert [(p.answer, p.accepted) for p in problems] == ANSWERS[name]
    assert {p.answer_kind for p in problems} == {"math" if expected_kind == "math" else "integer"}
    assert [p.problem[:1] for p in problems][:1] in (["P"], ["S"])


def test_levels_subjects_years_and_choices_of_public_sets(tmp_path):
    def first(name):
        return load_problems(write(tmp_path / "a.jsonl", ROWS[name][:1]))[0]

    assert (first("MATH-500").level, first("MATH-500").subject) == ("2", "Precalculus")
    assert (first("MATH").level, first("MATH").subject) == ("5", "Algebra")
    assert (first("DeepMath").level, first("DeepMath").subject) == ("5", "Calculus")
    assert first("AIME 2024").year == 2024
    assert first("AIME 2025").subject == "Number Theory"
    assert first("MMLU-Pro").problem == "P\n\nA. 3\nB. $\\frac12$\nC. N/A"


def test_a_document_of_lists_of_messages(tmp_path):
    rows = [[row["0"], row["1"]] for row in ROWS["Open-Reasoner-Zero"]]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    problems = load_problems(tmp_path / "a.json")
    assert [(p.problem, p.answer) for p in problems] == [("P", "20"), ("Q", r"\frac{1}{2}")]


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("a/b", ("a/b", None, None, None)),
        ("a/b@main", ("a/b", "main", None, None)),
        ("a/b:x-y", ("a/b", None, "x-y", None)),
        ("a/b[test]", ("a/b", None, None, "test")),
        ("a/b@v1.0:x[train[:10%]]", ("a/b", "v1.0", "x", "train[:10%]")),
        ("a/b:x@refs/pr/3", ("a/b", "refs/pr/3", "x", None)),
    ],
)
def test_addresses_of_the_hub(address, parts):
    assert find_source(address) == HubAddress(*parts)


@pytest.mark.parametrize("address", ["a/b.jsonl", "a/b.csv.gz", "a", "a/b/c"])
def test_what_is_no_address_of_the_hub(address):
    with pytest.raises(ValueError, match="no such file"):
        find_source(address)


def test_configs_and_splits_of_a_directory(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.parquet", [{"problem": "P", "answer": 1}])
    write(tmp_path / "set" / "test.parquet", [{"problem": "Q", "answer": 2}])
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: x\n  data_files: [{split: dev, path: test.parquet}]\n---\n"
    )
    assert [p.problem for p in load_problems(f"{tmp_path}/set:x[dev]")] == ["Q"]
    with pytest.raises(ValueError, match="a directory has no revision; omit @v1"):
        load_problems(f"{tmp_path}/set@v1")
