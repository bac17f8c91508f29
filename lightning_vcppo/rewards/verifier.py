r"""Grade responses: the only scorer of training and evaluation.

A verdict has three steps, each a pure function of strings:

1. `answer_part` skips the thinking: only the text after it is scored (VC-PPO, section 4).
2. `extract_answer` finds the final answer there, by one of four styles:

    boxed        the last complete \boxed{...} or \fbox{...}, nothing else (the default)
    answer_line  the last "Answer: ..." (DAPO's format)
    last_number  the last number
    lenient      a box, else "the answer is ...", else the last number (or, where the gold answer
                 is no integer, the last formula)

3. `answers_equal` compares it with the gold answer: numbers as numbers, the rest by math-verify.

Only "boxed" and "answer_line" are safe for training: a response truncated at "maybe the answer is
236" is wrong under them, and right under the lenient ones. `docs/verifier.md` compares with other
graders.

Training exploits any gap of the verifier, so every scan is linear in the response, only ASCII
digits count as digits, and no expression reaches sympy before `expressions.is_harmless` has bounded
its cost. There are no timeouts, because a verdict must not depend on the thread or on the load of
the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

from lightning_vcppo.rewards.answers import Answer, AnswerKind, accepted_answers, kind_of
from lightning_vcppo.rewards.equality import answers_equal
from lightning_vcppo.rewards.normalization import MAX_ANSWER_CHARS, normalize_answer

__all__ = [
    "INSTRUCTIONS",
    "MAX_ANSWER_CHARS",
    "THINKING_TAGS",
    "Style",
    "answer_part",
    "answers_equal",
    "asked_style",
    "extract_answer",
    "has_formulas",
    "is_correct",
    "last_boxed",
    "normalize_answer",
    "reads",
    "verify",
]

Style = Literal["boxed", "answer_line", "last_number", "lenient"]

_BOX_INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
INSTRUCTIONS: dict[Style, str] = {
    "boxed": _BOX_INSTRUCTION,
    "answer_line": "Please reason step by step, and put your final answer on the last line, after "
    "'Answer:'.",
    "last_number": "Please reason step by step, and end with your final answer, a number.",
    "lenient": _BOX_INSTRUCTION,
}
"""Instructions of prompts for the final answer, by style."""

THINKING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, texts))


_OPENING, _CLOSING = (_any_of(tags) for tags in zip(*THINKING_TAGS, strict=True))
_THINKING_TAG = re.compile(f"(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})", re.IGNORECASE)

# `\\` is a line break in LaTeX, but also how an escaped backslash reads: `\\boxed{5}` is a box.
_BOX_TOKEN = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox)\s(?P<bare>-?[0-9][^\s{}$\\]*)"
    r"|(?P<escape>\\\\(?!boxed|fbox)|\\[{}])|(?P<open>\{)|(?P<close>\})"
)
# A dash used as a minus is kept, because without it the number has the opposite sign
_NUMBER = re.compile(
    r"(?:(?<![\w)}\]])[-\u2212\u2010-\u2014\ufe63\uff0d])?"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
)
_ANSWER_LINE = re.compile(r"answer[\s*_]*:", re.IGNORECASE)
_ASKS_FOR_LINE = re.compile(r"[\"'`\u2018\u201c*]\s*(?:final )?answer\s*:|^answer\s*:", re.I | re.M)
_BOX = re.compile(r"\\boxed(?![A-Za-z])")
_CLAUSE_CHARS = 200
_CLAUSE_END = re.compile(r"[.;:!?,\n]|\b(?:and|but|then)\b", re.IGNORECASE)
_DECLINES = re.compile(
    r"(?:\b(?:do|does|need|must|should|shall|may|can|is|are|have)(?: not|n['\u2019]t)"
    r"|\b(?:cannot|never))\b(?! (?:forget|fail|omit|hesitate))"
    r"|\b(?:no need|avoid|instead of|rather than)\b"
    r"|\bwithout(?: (?:an?|any|the|using|writing|putting|wrapping|it|in))*[\s\"'`$]*$",
    re.IGNORECASE,
)
_FORMULA = re.compile(
    r"\$\$?([^$]+)\$\$?|\\\(((?:[^\\]|\\[^()])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]"
)
_SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")  # such as <|im_end|>, not a part of the answer
_ANSWER_IS = re.compile(r"answer[\s*_]*(?::|is\b)", re.IGNORECASE)


def _last(matches: Iterable[re.Match[str]]) -> re.Match[str] | None:
    last = None
    for last in matches:  # noqa: B007 (the loop is there for its last item)
        pass
    return last


def answer_part(response: str) -> str:
    """Return the text after the thinking.

    The last thinking tag decides: the text after it if it is a closing tag; "" if it is an opening
    tag, because the thinking never ended; the complete response without a tag. A tag that the
    prompt opened must precede the response, or unfinished thinking would count as an answer.
    """
    tag = _last(_THINKING_TAG.finditer(response))
    if tag is None:
        return response
    return response[tag.end() :] if tag["closing"] else ""


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last closed box (an outer box has precedence over inner ones)."""
    span: tuple[int, int] | None = None
    opened: list[int] = []  # where a box's content starts; -1 for a plain brace
    for token in _BOX_TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "bare":
            span = token.span("bare")
        elif kind in ("box", "open"):
            opened.append(token.end() if kind == "box" else -1)
        elif kind == "close" and opened and (start := opened.pop()) >= 0:
            span = (start, token.start())
    return text[slice(*span)] if span else None


def extract_answer(response: str, *, style: Style = "boxed", formulas: bool = False) -> str | None:
    """Find the final answer in a response.

    Args:
        response: Thinking and answer part.
        style: Form of a final answer, see the head of this file.
        formulas: Under `lenient`, take the last formula if no number follows it.

    Returns:
        The answer, or None if there is none of at most `MAX_ANSWER_CHARS` characters.

    Raises:
        ValueError: If the style is unknown.
    """
    if style not in get_args(Style):
        raise ValueError(f"style: {style!r} is not one of {', '.join(get_args(Style))}")
    text = answer_part(response)
    if style == "boxed":
        candidate = last_boxed(text)
    elif style == "answer_line":
        candidate = _line_after(_ANSWER_LINE, text)
    elif style == "last_number":
        candidate = _last_number(text)
    else:
        candidate = _lenient(text, formulas)
    candidate = candidate.strip() if candidate else None
    return candidate if candidate and len(candidate) <= MAX_ANSWER_CHARS else None


def _line_after(pattern: re.Pattern[str], text: str) -> str | None:
    match = _last(pattern.finditer(text))
    if match is None:
        return None
    line = text[match.end() :].lstrip(" \t\r\n*:`").partition("\n")[0]
    line = _SPECIAL_TOKEN.split(line, maxsplit=1)[0]
    return line.rstrip(" \t\r*`")  # emphasis around the answer or the complete line


def _last_number(text: str) -> str | None:
    match = _last(_NUMBER.finditer(text))
    return match.group() if match else None


def _lenient(text: str, formulas: bool) -> str | None:
    if (boxed := last_boxed(text)) is not None:
        return boxed
    line = _line_after(_ANSWER_IS, text)
    if line:
        if formula := _FORMULA.match(line):
            return formula[formula.lastindex or 0]
        number = _NUMBER.search(line)
        return number.group() if number else line
    number = _last(_NUMBER.finditer(text))
    formula = _last(_FORMULA.finditer(text)) if formulas else None
    if formula and not (number and number.start() >= formula.end()):
        return formula[formula.lastindex or 0]
    return number.group() if number else None


def asked_style(problem: str) -> Style | None:
    r"""Return the style whose answer form a problem's own text asks for, or None.

    A box is read by `boxed` and `lenient`, a line `Answer:` by `answer_line` and `lenient`. With
    another style a response that follows the problem is wrong. A form that the text declines ("you
    do not need \boxed{}") does not count.
    """
    if _asks_for(_BOX, problem):
        return "boxed"
    return "answer_line" if _asks_for(_ASKS_FOR_LINE, problem) else None


def _asks_for(form: re.Pattern[str], problem: str) -> bool:
    """Return whether a text names a form at least once without declining it in that clause."""
    return any(
        not _DECLINES.search(_CLAUSE_END.split(problem[max(0, at - _CLAUSE_CHARS) : at])[-1])
        for at in (found.start() for found in form.finditer(problem))
    )


def reads(style: Style, asked: Style) -> bool:
    """Return whether a style reads the form that another one asks for."""
    return style == asked or style == "lenient"


def is_correct(
    response: str, answer: Answer, *, style: Style = "boxed", kind: AnswerKind | None = None
) -> bool:
    """Return whether a response ends with the correct answer.

    Args:
        response: Thinking and answer part.
        answer: The gold answer, or several accepted ones.
        style: Form of a final answer, see the head of this file.
        kind: Kind of comparison; None compares an int as an integer, a text as math.

    Raises:
        ValueError: If style or kind is unknown.
    """
    candidate = extract_answer(response, style=style, formulas=has_formulas(answer, kind))
    return candidate is not None and answers_equal(candidate, answer, kind)


def verify(
    response: str, answer: Answer, *, style: Style = "boxed", kind: AnswerKind | None = None
) -> float:
    """Return +1.0 for a correct response and -1.0 for any other (VC-PPO, section 4).

    Args:
        response: As in `is_correct`.
        answer: As in `is_correct`.
        style: As in `is_correct`.
        kind: As in `is_correct`.

    Raises:
        ValueError: If style or kind is unknown.
    """
    return 1.0 if is_correct(response, answer, style=style, kind=kind) else -1.0


def has_formulas(answer: Answer, kind: AnswerKind | None = None) -> bool:
    """Return whether a gold answer may be other than a number, so that `lenient` reads formulas."""
    return any(kind_of(one, kind) == "math" for one in accepted_answers(answer))
