r"""From a response to its reward: the one scorer of training and of evaluation.

A verdict is made in three steps, each a pure function of strings:

1. `answer_part` leaves the thinking out: only what follows it is scored (VC-PPO, section 4).
2. `extract_answer` finds the final answer there, by one of four styles:

    boxed        the last complete \boxed{...} or \fbox{...}, nothing else (the default)
    answer_line  the last "Answer: ..." (DAPO's format)
    last_number  the last number
    lenient      a box, else "the answer is ...", else the last number

3. `answers_equal` compares it with the gold answer: numbers as numbers, the rest by math-verify.

Only "boxed" and "answer_line" are safe to train on: a response cut off at "maybe the answer is 236"
is wrong under them, right under the lenient ones. `docs/verifier.md` compares with other graders.

Responses are written by an optimizer that looks for holes, so every scan is linear in the response,
only ASCII digits count as digits, and no expression reaches sympy before `_is_harmless` has bounded
what evaluating it can cost. No timeout is used: they need signals, which exist in the main thread
only, and a verdict must not depend on the thread or on how busy the machine is.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from itertools import accumulate
from typing import Literal, get_args

import math_verify

Style = Literal["boxed", "answer_line", "last_number", "lenient"]

MAX_ANSWER_CHARS = 300
"""A longer candidate is no answer."""

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
_NUMBER = re.compile(
    r"(?:(?<![\w)}\]])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
)
_ANSWER_LINE = re.compile(r"answer\s*:", re.IGNORECASE)
_FORMULA = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)")
_ANSWER_IS = re.compile(r"answer\s*(?::|is\b)", re.IGNORECASE)


def _last(matches: Iterable[re.Match[str]]) -> re.Match[str] | None:
    last = None
    for last in matches:  # noqa: B007 (the loop is there for its last item)
        pass
    return last


def answer_part(response: str) -> str:
    """Return what follows the thinking.

    The last thinking tag decides: the text after it if it closes; nothing if it opens, for then the
    thinking never ended; the whole response if there is no tag. A tag that the prompt opened must
    be put in front of the response, or thinking that never ends would count as an answer.
    """
    tag = _last(_THINKING_TAG.finditer(response))
    if tag is None:
        return response
    return response[tag.end() :] if tag["closing"] else ""


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last box that is closed (an outer box wins over those inside)."""
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


def extract_answer(response: str, *, style: Style = "boxed") -> str | None:
    """Find the final answer in a response.

    Args:
        response: Thinking and answer part.
        style: What counts as a final answer, see the head of this file.

    Returns:
        Its text, or None if there is none or none of at most `MAX_ANSWER_CHARS` characters.

    Raises:
        ValueError: Unknown style.
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
        candidate = _lenient(text)
    candidate = candidate.strip() if candidate else None
    return candidate if candidate and len(candidate) <= MAX_ANSWER_CHARS else None


def _line_after(pattern: re.Pattern[str], text: str) -> str | None:
    match = _last(pattern.finditer(text))
    if match is None:
        return None
    line = text[match.end() :].lstrip(" \t\r\n*:").partition("\n")[0]
    return line.partition("<|")[0]  # a special token (<|im_end|>) is not part of the answer


def _last_number(text: str) -> str | None:
    match = _last(_NUMBER.finditer(text))
    return match.group() if match else None


def _lenient(text: str) -> str | None:
    if (boxed := last_boxed(text)) is not None:
        return boxed
    line = _line_after(_ANSWER_IS, text)
    if line:
        if formula := _FORMULA.match(line):
            return formula[formula.lastindex or 0]
        number = _NUMBER.search(line)
        return number.group() if number else line
    return _last_number(text)


_WRAPPING = re.compile(
    r"\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\]|\*\*(.+)\*\*"
    r"|\\(?:text|mathrm|mathbf|textbf|mbox|boxed|fbox)\s*\{([^{}]*)\}",
    re.DOTALL,
)
_TEXT = r"\\(?:text|mathrm|textrm|mbox)"
_NAME = r"\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\(\w*\))?"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\\[,;:! ]|~", ""),
        (r"\{,\}", ","),
        (r"\u2212", "-"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])|°)\s*$", ""),
        (r"^\\\$", ""),
        # The left side of an assignment, m + n = 27, but not of a list of them
        (rf"^{_NAME}(?:\s*\+\s*{_NAME})*\s*=(?!=)(?=[^,;]*$)", ""),
        # A unit or an ordinal's ending behind a number: 12\text{ cm}^2, 12^{\text{th}}
        (rf"(?<=[0-9])\s*\^?\{{?\s*{_TEXT}\s*\{{[^{{}}]*\}}\}}?(?:\^\{{?[0-9]\}}?)?$", ""),
    )
)
# Space that tells things apart: 20 4 is not 204, the list 1, 234 not 1234
_SPACE = re.compile(r"((?<=[0-9])\s+(?=[0-9])|(?<=[A-Za-z])\s+(?=[A-Za-z])|(?<=,)\s+(?=[0-9]))|\s+")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_DECIMAL = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?")
_INTEGER = re.compile(r"-?[0-9]+")


def normalize_answer(text: str) -> str:
    r"""Write an answer in one canonical way, for comparing and for majority votes.

    Numbers lose their padding ("070" and "70.0" become "70"), thousands separators, units and signs
    of dollars and degrees; "m + n = 5" becomes "5"; any other answer loses wrapping, and space that
    tells nothing apart.

    Returns:
        The canonical text; a text of more than `MAX_ANSWER_CHARS` characters comes back as it is.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return text
    before = None
    while before != text:
        before = text
        text = _SPACE.sub(lambda space: " " if space[1] else "", text.strip().removesuffix("."))
        if wrapped := _WRAPPING.fullmatch(text):
            text = wrapped[wrapped.lastindex or 0]
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    decimal = _DECIMAL.fullmatch(text)
    if decimal and (decimal[2] or decimal[3]):
        sign, whole, fraction = decimal[1], decimal[2].lstrip("0"), (decimal[3] or "").rstrip("0")
        number = (whole or "0") + (f".{fraction}" if fraction else "")
        return f"-{number}" if sign == "-" and number != "0" else number
    return re.sub(",(?=[0-9])", ", ", text)  # a list like any other


def answers_equal(candidate: str, answer: int | str) -> bool:
    """Tell whether two answers are the same number or the same expression.

    Decimal numbers are compared exactly, as text. Against an integer only arithmetic is evaluated
    (`8/2`), so that a list of guesses never matches; math-verify compares what remains.
    """
    ours, gold = normalize_answer(candidate), normalize_answer(str(answer))
    if not ours or not gold:
        return False
    if ours == gold:
        return True
    if _DECIMAL.fullmatch(ours) and _DECIMAL.fullmatch(gold):
        return False
    if _INTEGER.fullmatch(gold) and not _ARITHMETIC.fullmatch(ours):
        return False
    return _is_harmless(ours) and _is_harmless(gold) and _evaluate_equal(ours, gold)


_ARITHMETIC = re.compile(r"(?:[0-9+\-*/^(){}.]|\\(?:frac|sqrt|cdot|times|div))+")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_HARMLESS_COMMANDS = re.compile(
    r"frac|sqrt|cdot|times|div|pm|mp|pi|infty|cup|cap|in|leq?|geq?|lt|gt|neq?|text|mathrm|mathbb"
    r"|begin|end|alpha|beta|gamma|delta|epsilon|theta|phi|omega|circ|angle|emptyset|mid"
)
_EXPONENT = re.compile(r"\^(?:\{([^{}^]*)\}|([0-9A-Za-z]))(?!\^)")
_MAX_EXPRESSION_CHARS = 100
_MAX_NESTING = 4
_MAX_POWER = 5_000
_MAX_POWER_OF_LETTERS = 10


def _is_harmless(expression: str) -> bool:
    """Tell whether sympy can evaluate an expression quickly, judged by its text alone.

    Refused are: what is long or deeply nested (the parser is exponential in parentheses), commands
    that can loop (sums, binomials, factorials) or be rewritten forever (sin), towers of powers, and
    exponents with a large product: 9^(9^9) takes all memory, in C code that nothing interrupts.
    """
    if len(expression) > _MAX_EXPRESSION_CHARS or not expression.isascii():
        return False
    if re.search(r"[!$]|\*\*", expression):
        return False
    if not all(_HARMLESS_COMMANDS.fullmatch(name) for name in _COMMAND.findall(expression)):
        return False
    depths = accumulate((c in "([{") - (c in ")]}") for c in expression)
    if max(depths) > _MAX_NESTING:
        return False
    exponents = _EXPONENT.findall(expression)
    if len(exponents) != expression.count("^"):
        return False
    numbers = (int(n) for group in exponents for n in re.findall("[0-9]{1,9}", "".join(group)))
    has_letters = re.search("[A-Za-z]", _COMMAND.sub("", expression)) is not None
    limit = _MAX_POWER_OF_LETTERS if has_letters else _MAX_POWER
    return math.prod(max(n, 1) for n in numbers) <= limit


def _evaluate_equal(candidate: str, gold: str) -> bool:
    # math-verify warns that its timeouts are off; `_is_harmless` does what they are for.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    try:
        ours, theirs = (
            math_verify.parse(
                f"${text}$",
                [math_verify.LatexExtractionConfig()],
                "no_fallback",
                parsing_timeout=None,
            )[0]
            for text in (candidate, gold)
        )
        if ours.free_symbols != theirs.free_symbols:
            return False
        if getattr(ours, "is_number", False) and getattr(theirs, "is_number", False):
            # Not by simplifying the difference, which has no bound in time.
            a, b = ours.evalf(30), theirs.evalf(30)
            return bool(abs(a - b) <= 1e-20 * max(1, abs(b)))
        return bool(math_verify.verify(theirs, ours, timeout_seconds=None))
    except Exception:  # sympy raises anything on nonsense, and nonsense must not end a training run
        return False


def is_correct(response: str, answer: int | str, *, style: Style = "boxed") -> bool:
    """Tell whether a response ends with the right answer.

    Args:
        response: Thinking and answer part.
        answer: The gold answer.
        style: What counts as a final answer, see the head of this file.

    Raises:
        ValueError: Unknown style.
    """
    candidate = extract_answer(response, style=style)
    return candidate is not None and answers_equal(candidate, answer)


def verify(response: str, answer: int | str, *, style: Style = "boxed") -> float:
    """Return +1.0 for a correct response and -1.0 for any other (VC-PPO, section 4).

    Raises:
        ValueError: Unknown style.
    """
    return 1.0 if is_correct(response, answer, style=style) else -1.0
