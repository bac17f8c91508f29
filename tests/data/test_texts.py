"""Texts that no author meant, wherever they come in."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.data.datamodule import AIMEDataModule
from lightning_vcppo.data.sources import load_problems
from lightning_vcppo.data.texts import InvalidRow, fault_in, plain

CONTROL = [chr(code) for code in [*range(32), 127] if chr(code) not in "\t\n\r"]


@pytest.mark.parametrize("character", CONTROL, ids=repr)
def test_control_characters_are_found_anywhere(character):
    assert "(character 4)" in fault_in(f"abc{character} d")
    assert fault_in(character) and fault_in(f"x{character}")


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (r"Compute \frac{1}{2}", r"\frac"),
        (r"\binom{3}{2}", r"\binom"),
        (r"\boxed{3}", r"\boxed"),
        (r"\forall x", r"\forall"),
        (r"the angle \theta is", r"\theta"),
        (r"2 \times 3", r"\times"),
        (r"\triangle ABC", r"\triangle"),
        (r"5\text{ cm}", r"\text"),
        (r"x \neq 3", r"\neq"),
        (r"x \notin S", r"\notin"),
        (r"\left(x\right)", r"\right"),
    ],
)
def test_latex_with_one_backslash_in_json_is_named(text, command):
    read = json.loads(f'"{text}"' if r"\left" not in text else r'"\\left(x\right)"')
    assert rf"LaTeX's {command} with one backslash; write \{command} in JSON" in fault_in(read)


@pytest.mark.parametrize(
    "text",
    [
        "Tabs\tand\nlines\r\nand \\frac{1}{2} \\theta",
        "\ttheta\n\tthe next\n\textra: text\ntan\teither",
        "a\nnew line\nequal parts\nright\rangle",
        "Ünï ✓ 数学 \U0001d465 \u2212 \xa0",
        "",
    ],
)
def test_what_authors_mean_stays(text):
    assert fault_in(text) is None


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"))))
def test_a_text_without_control_characters_has_no_fault(text):
    assert fault_in(text) is None


def test_half_a_character_is_found():
    assert "half a surrogate pair (character 2)" in fault_in("a\ud800")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "a \frac{1}{2}", "answer": 4}, "the problem holds the control character"),
        ({"problem": "a", "answer": "\frac{1}{2}"}, "the answer holds the control character"),
        ({"problem": "a", "answer": ["1", "\boxed{2}"]}, "the answer holds the control character"),
        ({"problem": "a", "answer": 4, "solution": "\boxed{4}"}, "the solution holds the control"),
        (
            {"problem": "a", "answer": 4, "system": "\x1b[2J"},
            "the system message holds the control",
        ),
        ({"problem": "a", "choices": ["1", "\frac12"], "answer": 1}, "a choice holds the control"),
        (
            {"prompt": [{"role": "system", "content": "\0"}, {"role": "user", "content": "a"}]},
            "the problem holds a NUL byte (character 1)",
        ),
        (
            {"prompt": json.dumps([{"role": "user", "content": "\forall"}]), "answer": 4},
            "the problem holds the control character '\\x0c' in front of 'orall' (character 1)",
        ),
    ],
)
def test_every_text_of_a_row_is_checked(tmp_path, row, message):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in ({"problem": "b", "answer": 1}, row)))
    with pytest.raises(ValueError) as error:
        load_problems(file)
    assert str(error.value).startswith(f"a.jsonl:2: {message}"), error.value
    with pytest.warns(UserWarning, match="left out 1 rows"):
        assert len(load_problems(file, drop_invalid=True)) == 1


@pytest.mark.parametrize("name", ["instruction", "system_prompt"])
def test_texts_of_flags_are_checked(name):
    with pytest.raises(ValueError, match=f"{name}: holds the control character"):
        AIMEDataModule(**{name: "within \boxed{}"})


def test_bytes_are_text_if_they_are_utf8():
    assert plain("é".encode()) == "é"
    with pytest.raises(InvalidRow, match="expected text in UTF-8"):
        plain("é".encode("latin-1"))
