r"""Decide whether two answers are equal: as integers, as mathematics, or as text.

`quick_verdict` decides from the texts if they suffice; other answers are evaluated, which takes
milliseconds and may be done by worker processes. `docs/verifier.md` lists which answers are equal.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import get_args

from lightning_vcppo.rewards import expressions
from lightning_vcppo.rewards.answers import Answer, AnswerKind, accepted_answers, kind_of
from lightning_vcppo.rewards.normalization import (
    DECIMAL,
    MAX_ANSWER_CHARS,
    UNITS_IN_LETTERS,
    canonical_number,
    drop_unit,
    enclosed,
    normalize_answer,
    says_what,
    tidy,
)
from lightning_vcppo.rewards.structure import (
    Brackets,
    Form,
    Items,
    Leaf,
    Matrix,
    Relation,
    Union,
    is_name,
    read,
)


def answers_equal(candidate: str, answer: Answer, kind: AnswerKind | None = None) -> bool:
    """Return whether a candidate equals the gold answer, or one of several.

    Args:
        candidate: Final answer of a response.
        answer: The gold answer, or several accepted ones.
        kind: Kind of comparison; None compares an int as an integer, a text as math.

    Raises:
        ValueError: If the kind is unknown.
    """
    verdict = quick_verdict(candidate, answer, kind)
    if verdict is not None:
        return verdict
    accepted = accepted_answers(answer)
    return any(_equal(candidate, one, kind_of(one, kind)) for one in accepted) or _is_choice(
        candidate, accepted, kind
    )


def quick_verdict(candidate: str, answer: Answer, kind: AnswerKind | None = None) -> bool | None:
    """Return the verdict if the texts decide it, or None if an evaluation is needed.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind is not None and kind not in get_args(AnswerKind):
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(get_args(AnswerKind))}")
    accepted = accepted_answers(answer)
    verdicts = [_quick(candidate, str(one), kind_of(one, kind)) for one in accepted]
    if any(verdicts):
        return True
    return None if None in verdicts or len(accepted) > 1 else False


def group_equal(
    predictions: Sequence[str | None], kind: AnswerKind | None = None
) -> list[int | None]:
    """Number predictions so that equal ones have the same number.

    Args:
        predictions: Answers to one problem; None or empty text means no answer.
        kind: Kind of comparison; None compares them as math.

    Returns:
        A number for each prediction, from 0 in the order of appearance; None for no answer.
    """
    kind = kind or "math"
    firsts: list[str] = []
    others: list[int] = []  # numbers of groups whose value is not a plain number
    known: dict[Hashable, int] = {}  # a group's number by text, and by value
    numbers: list[int | None] = []
    for prediction in predictions:
        if prediction is None or not prediction.strip():
            numbers.append(None)
            continue
        value = _value(prediction, kind)
        number = known.get(prediction, known.get(value) if value is not None else None)
        if number is None:
            candidates = others if value is not None else range(len(firsts))
            same = (n for n in candidates if answers_equal(prediction, firsts[n], kind))
            number = next(same, len(firsts))
        if number == len(firsts):
            firsts.append(prediction)
            if value is None:
                others.append(number)
        known[prediction] = number
        if value is not None:
            known[value] = number
        numbers.append(number)
    return numbers


def _value(prediction: str, kind: AnswerKind) -> tuple[str, Hashable] | None:
    """Return a key of a plain number or a text among predictions, or None."""
    if kind == "text":
        return "text", _text(prediction)
    if kind == "integer":
        normal = normalize_answer(prediction)
        return ("number", normal) if DECIMAL.fullmatch(normal) else None
    exact = expressions.rational(_bare(tidy(prediction)))
    return None if exact is None else ("number", exact)


def _quick(candidate: str, gold: str, kind: AnswerKind) -> bool | None:
    if len(candidate) > MAX_ANSWER_CHARS and kind != "text":
        return candidate == gold
    if kind == "text":
        ours, theirs = _text(candidate), _text(gold)
        return ours == theirs != ""
    if kind == "integer":
        ours, theirs = normalize_answer(candidate), normalize_answer(gold)
        if not ours or not theirs or ours == theirs:
            return bool(ours and theirs)
        if DECIMAL.fullmatch(ours) and DECIMAL.fullmatch(theirs):
            return False
        return None if _ARITHMETIC.fullmatch(ours) else False
    ours, theirs = tidy(candidate), tidy(gold)
    if not ours or not theirs or ours == theirs:
        return bool(ours and theirs)
    a, b = (expressions.rational(_bare(text)) for text in (ours, theirs))
    return None if a is None or b is None else a == b


def _equal(candidate: str, answer: int | str, kind: AnswerKind) -> bool:
    verdict = _quick(candidate, str(answer), kind)
    if verdict is not None:
        return verdict
    if kind == "integer":
        return expressions.equal(normalize_answer(candidate), normalize_answer(str(answer)))
    return _same(read(tidy(candidate)), read(tidy(str(answer))))


_ARITHMETIC = re.compile(r"(?:[0-9+\-*/^(){}.]|\\(?:frac|sqrt|cdot|times|div)(?![A-Za-z]))+")


def _text(text: str) -> str:
    return " ".join(tidy(text).split())


# Forms -------------------------------------------------------------------------------------------


def _same(ours: Form, gold: Form) -> bool:
    """Return whether two forms are equal; the second is the gold answer."""
    if isinstance(ours, Relation) and isinstance(gold, Brackets) and gold.relation:
        gold = gold.relation
    if isinstance(gold, Relation) and isinstance(ours, Brackets) and ours.relation:
        ours = ours.relation
    if isinstance(ours, Relation) and isinstance(gold, Relation):
        return _same_relation(ours, gold)
    if isinstance(ours, Relation) or isinstance(gold, Relation):
        return _same_as_named(ours, gold)
    if isinstance(ours, Items) != isinstance(gold, Items):  # 5, 5 is 5
        ours, gold = (f if isinstance(f, Items) else Items((f,)) for f in (ours, gold))
    if type(ours) is not type(gold):
        return False
    if isinstance(ours, Leaf) and isinstance(gold, Leaf):
        return _same_leaf(ours.text, gold.text)
    if isinstance(ours, Matrix) and isinstance(gold, Matrix):
        shapes = [[len(row) for row in matrix.rows] for matrix in (ours, gold)]
        return shapes[0] == shapes[1] and all(
            map(_same, [c for row in ours.rows for c in row], [c for row in gold.rows for c in row])
        )
    if isinstance(ours, Brackets) and isinstance(gold, Brackets):
        ends = (ours.opening, ours.closing) == (gold.opening, gold.closing)
        return (
            ends and len(ours.parts) == len(gold.parts) and all(map(_same, ours.parts, gold.parts))
        )
    assert isinstance(ours, Items | Union) and isinstance(gold, Items | Union)
    return _same_in_any_order(ours.parts, gold.parts)


def _same_in_any_order(ours: Sequence[Form], gold: Sequence[Form]) -> bool:
    """Return whether each part has an equal on the other side; repeated parts count once."""
    pairs = [[_same(part, other) for other in gold] for part in ours]
    return all(map(any, pairs)) and all(map(any, zip(*pairs, strict=True)))


def _same_as_named(ours: Form, gold: Form) -> bool:
    """Compare an equation with a form that is not one.

    `x = 5` is 5 on either side. In a response any left side that is not a number names the answer
    (`m + n = 5`); a gold equation is not a number.
    """
    if isinstance(ours, Relation):
        named = ours.sign == "=" and _names(ours.left)
        if not named and ours.sign == "=" and expressions.equal(ours.left, ours.right):
            named = True  # 10^3 = 1000, a true statement, is its value
        return named and _same(read(ours.right), gold)
    assert isinstance(gold, Relation)
    return gold.sign == "=" and is_name(gold.left) and _same(ours, read(gold.right))


def _names(left: str) -> bool:
    return is_name(left) or says_what(left)


def _same_relation(ours: Relation, gold: Relation) -> bool:
    if ours.sign != gold.sign:
        return False
    if ours.sign == "=" and ours.left == gold.left and _same(read(ours.right), read(gold.right)):
        return True
    a, b = (f"{side.left}-({side.right})" for side in (ours, gold))
    factor = expressions.ratio(a, b)
    return factor > 0 or (factor < 0 and ours.sign == "=")


# Single expressions ------------------------------------------------------------------------------

_LETTER_UNIT = re.compile(rf"(?<=[0-9)}}]) ?(?:{UNITS_IN_LETTERS})(?:\^\{{?[23]\}}?)?$")
_PERCENT = re.compile(r"\\?%$")
_TEMPERATURE = re.compile(r"\^\{?\\circ\}?\s*(?:\\(?:text|mathrm)\{[CF]\}|[CF])$")
_CURRENCY = re.compile(r"^(?:\\\$|[$€£¥])|[€£¥]$")
_BASE = re.compile(r"([0-9A-F]+)_\{?(?:\\text\{)?([0-9]+|[a-z]+)\}*")
_BASE_NAMES = "two three four five six seven eight nine ten eleven twelve"
_BASES = {name: str(number) for number, name in enumerate(_BASE_NAMES.split(), 2)} | {
    "sixteen": "16"
}
_WORD = re.compile(r"[A-Za-z][A-Za-z '\-]{2,}")


def _same_leaf(ours: str, gold: str) -> bool:
    ours, gold = _bare(ours), _bare(gold)
    if not ours or not gold:
        return False
    if ours == gold:
        return True
    if _BASE.fullmatch(ours) or _BASE.fullmatch(gold):
        return _in_base(ours) == _in_base(gold)
    a, b = expressions.rational(ours), expressions.rational(gold)
    if a is not None and b is not None:
        return a == b
    if _WORD.fullmatch(ours) and _WORD.fullmatch(gold):  # Even is even, but AB is not ab
        return ours[0].lower() + ours[1:] == gold[0].lower() + gold[1:]
    return expressions.equal(ours, gold)


def _bare(text: str) -> str:
    """Drop signs of units, percent and money, and brackets around one letter or expression."""
    before = None
    while before != text:
        before = text
        text = drop_unit(tidy(text), "[0-9A-Za-z)}]")
        text = _CURRENCY.sub("", _PERCENT.sub("", _TEMPERATURE.sub("", text)))
        text = _LETTER_UNIT.sub("", text)
        if (inside := enclosed(text, "(", ")")) is not None and "," not in inside:
            text = inside
    return canonical_number(text) if DECIMAL.fullmatch(text.replace(",", "")) else text


def _in_base(text: str) -> tuple[str, str]:
    found = _BASE.fullmatch(text)
    return (found[1], _BASES.get(found[2], found[2])) if found else (text, "")


# Choices -----------------------------------------------------------------------------------------

_CHOICE = re.compile(r"\(?([A-Z])(?:\)|[.:])+\s*(.+)", re.DOTALL)


def _is_choice(candidate: str, accepted: Sequence[int | str], kind: AnswerKind | None) -> bool:
    """Return whether a candidate has an accepted letter together with its accepted content."""
    letters = {text for one in accepted if len(text := _bare(str(one))) == 1 and text.isupper()}
    found = _CHOICE.fullmatch(_unwrapped_letter(tidy(candidate)))
    if not found or found[1] not in letters:
        return False
    rest = [one for one in accepted if _bare(str(one)) not in letters]
    return any(_equal(found[2], one, kind_of(one, kind)) for one in rest)


def _unwrapped_letter(text: str) -> str:
    return re.sub(r"^\\(?:text|textbf|mathrm|mathbf)\{(\(?[A-Z][).:]*)\s*\}", r"\1", text)
