r"""Parse the form of a mathematical answer: its sets, tuples, intervals and equations.

`read` splits a text into forms down to single expressions, which `expressions` compares:

    Leaf        an expression, a word, a letter of a choice: `\frac{1}{2}`, `Evelyn`, `C`
    Items       several answers in any order: `1, 2`, `\{1, 2\}`, `1 \pm 2`, `1 \text{ or } 2`
    Brackets    in order, with their ends: `(1, 2)`, `[0, 1)`
    Union       of intervals, in any order: `(0, 1) \cup (2, 3)`
    Matrix      rows of entries
    Relation    `y = 2x`, `x > 5`; `x \in [1, 2]` and `1 \le x \le 2` are the interval
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lightning_vcppo.rewards.normalization import CLOSING, FULL_STOP, OPENING, THOUSANDS, enclosed

MAX_ITEMS = 30
"""Largest number of items; a list with more is one text."""


@dataclass(frozen=True)
class Leaf:
    """A single expression or word."""

    text: str


@dataclass(frozen=True)
class Items:
    """Several answers, in any order."""

    parts: tuple[Form, ...]


@dataclass(frozen=True)
class Brackets:
    """A tuple, a point or an interval: parts in order between an opening and a closing bracket.

    Attributes:
        opening: The bracket before the parts.
        closing: The bracket after them.
        parts: Forms between the brackets.
        relation: The inequality that was read as this interval, if one was.
    """

    opening: str
    closing: str
    parts: tuple[Form, ...]
    relation: Relation | None = None


@dataclass(frozen=True)
class Union:
    """A union of intervals or sets, in any order."""

    parts: tuple[Form, ...]


@dataclass(frozen=True)
class Matrix:
    """A matrix or a column vector, row by row."""

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True)
class Relation:
    """An equation or an inequality.

    Attributes:
        sign: "=", or "<" or "<=" after the sides are ordered so that the left is the smaller one.
        left: Text of the left side.
        right: Text of the right side.
    """

    sign: Literal["=", "<", "<="]
    left: str
    right: str


Form: TypeAlias = Leaf | Items | Brackets | Union | Matrix | Relation

_NAME = re.compile(r"(?:\\?[A-Za-z]+|[A-Za-z])(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z](?:,[A-Za-z])*\))?")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{\1\}", re.DOTALL)
_REALS = re.compile(r"\\mathbb ?(?:\{R\}|R)|\\R(?![A-Za-z])|\u211d")
_CONJUNCTION = re.compile(
    r",?\s*(?:\\(?:text|mbox|mathrm)\{\s*,?\s*(?:or|and)\s*\}|(?<![A-Za-z])(?:or|and)(?![A-Za-z]))\s*|;"
)
_APPROXIMATION = re.compile(r"(?:\\approx(?![A-Za-z])|≈).*$", re.DOTALL)
_MEMBER = re.compile(rf"({_NAME.pattern})(?:\\in(?![A-Za-z])|∈)\s*(.+)", re.DOTALL)
_SIGNS = re.compile(r"\\(?:leq?|geq?|lt|gt|neq?|equiv|not|sim|cong)(?![A-Za-z])|<=|>=|[<>=≤≥≠≡]")
_SIGN = {
    **dict.fromkeys(("\\le", "\\leq", "<=", "≤"), "<="),
    **dict.fromkeys(("\\lt", "<"), "<"),
    **dict.fromkeys(("\\ge", "\\geq", ">=", "≥"), ">="),
    **dict.fromkeys(("\\gt", ">"), ">"),
    "=": "=",
}
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])|±")


def read(text: str) -> Form:
    """Return the form of a tidy text, see the head of this file."""
    text = FULL_STOP.sub("", _APPROXIMATION.sub("", text).strip())
    if member := _MEMBER.fullmatch(text):
        text = member[2]
    if _REALS.fullmatch(text):
        return Brackets("(", ")", (Leaf(r"-\infty"), Leaf(r"\infty")))
    if THOUSANDS.fullmatch(text):
        return Leaf(text.replace(",", ""))
    if matrix := _MATRIX.fullmatch(text):
        return _matrix(matrix[2])
    pieces = split(_CONJUNCTION.sub(",", text), ",")
    if 1 < len(pieces) <= MAX_ITEMS and all(piece.strip() for piece in pieces):
        return items(read(piece.strip()) for piece in pieces)
    if len(parts := split(text.replace("\u222a", r"\cup"), r"\cup")) > 1:
        return Union(tuple(read(part.strip()) for part in parts)) if all(parts) else Leaf(text)
    if (inside := enclosed(text, r"\{", r"\}")) is not None and r"\mid" not in inside:
        return items((read(inside),))
    if (inside := enclosed(text, "{", "}")) is not None:
        return read(inside)
    if text[:1] in tuple("([") and (form := _brackets(text)) is not None:
        return form
    return _relation(text) if _SIGNS.search(text) else _expression(text)


def items(parts: Iterator[Form] | tuple[Form, ...]) -> Form:
    """Return several answers as one form: nested lists are merged, and one part is itself."""
    flat: list[Form] = []
    for part in parts:
        flat += part.parts if isinstance(part, Items) else (part,)
    return flat[0] if len(flat) == 1 else Items(tuple(flat))


def split(text: str, separator: str) -> list[str]:
    """Split a text at a separator outside all brackets."""
    pieces, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if text.startswith(separator, at) and depth == 0:
            pieces.append(text[start:at])
            start = at = at + len(separator)
            continue
        depth += (text[at] in OPENING) - (text[at] in CLOSING)
        at += 1
    return [*pieces, text[start:]]


def _matrix(content: str) -> Form:
    rows = [row.split("&") for row in re.split(r"\\\\", content.strip()) if row.strip()]
    return Matrix(tuple(tuple(read(cell.strip()) for cell in row) for row in rows))


def _brackets(text: str) -> Form | None:
    opening, closing = text[0], text[-1]
    if closing not in ")]":
        return None
    # An interval's brackets need not match, so depth is counted over both kinds
    inside, depth = text[1:-1], 0
    for character in inside:
        depth += (character in OPENING) - (character in CLOSING)
        if depth < 0:
            return None
    pieces = split(inside, ",")
    if depth or len(pieces) > MAX_ITEMS or not all(piece.strip() for piece in pieces):
        return None
    if len(pieces) > 1:
        return Brackets(opening, closing, tuple(read(piece.strip()) for piece in pieces))
    return read(inside) if (opening, closing) == ("(", ")") else None


def _relation(text: str) -> Form:
    found = list(_SIGNS.finditer(text))
    signs = [_SIGN.get(sign[0]) for sign in found]
    ends = [0, *(end for sign in found for end in sign.span()), len(text)]
    sides = [text[a:b].strip() for a, b in zip(ends[::2], ends[1::2], strict=True)]
    if None in signs or not all(sides) or len(signs) > 2:
        return Leaf(text)
    if len(signs) == 2:
        return _chain(sides, [str(sign) for sign in signs]) or Leaf(text)
    sign, (left, right) = signs[0], sides
    if sign in (">", ">="):
        left, right = right, left
    relation = Relation("=" if sign == "=" else "<" if sign in ("<", ">") else "<=", left, right)
    has_name = is_name(left) or is_name(right)
    return _ray(relation) if relation.sign != "=" and has_name else relation


def _ray(relation: Relation) -> Form:
    """Return the interval of x < 5 or 5 < x."""
    left, right, is_open = relation.left, relation.right, relation.sign == "<"
    if is_name(left):
        ends = (Leaf(r"-\infty"), read(right))
        return Brackets("(", ")" if is_open else "]", ends, relation)
    return Brackets("(" if is_open else "[", ")", (read(left), Leaf(r"\infty")), relation)


def _chain(sides: list[str], signs: list[str]) -> Form | None:
    """Return the interval of 1 < x <= 2, or None for any other chain."""
    if signs[0] in (">", ">="):
        sides, signs = sides[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    if not is_name(sides[1]) or not set(signs) <= {"<", "<="}:
        return None
    opening, closing = "(" if signs[0] == "<" else "[", ")" if signs[1] == "<" else "]"
    return Brackets(opening, closing, (read(sides[0]), read(sides[2])))


def is_name(text: str) -> bool:
    """Return whether a text is a variable or a function of variables, such as `x_1` or `f(x)`."""
    return _NAME.fullmatch(text) is not None and text not in ("e", "i", r"\pi", r"\infty")


def _expression(text: str) -> Form:
    r"""Return an expression, or both values of one with `\pm`."""
    if not _PLUS_MINUS.search(text):
        return Leaf(text)
    plus = _PLUS_MINUS.sub(lambda sign: "-" if sign[0] == r"\mp" else "+", text)
    minus = _PLUS_MINUS.sub(lambda sign: "+" if sign[0] == r"\mp" else "-", text)
    return Items((Leaf(plus.removeprefix("+")), Leaf(minus)))
