r"""Decide whether an expression is safe to evaluate, and whether two of them are equal.

math-verify parses, sympy evaluates: numbers to 30 digits, expressions with letters at fixed points
of both signs. Nothing is simplified, because that has no time bound. Text that the parser would
drop or misread (words, `3(4)`, letters of both cases) is refused or written out before.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any

import math_verify
import sympy

_CIRCULAR = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan"
_FUNCTIONS = f"{_CIRCULAR}|log|ln|sqrt|pi|frac"
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau"
    "|phi|varphi|chi|psi|omega|Delta|Omega"
)
_ALLOWED_COMMANDS = re.compile(rf"{_FUNCTIONS}|{_GREEK}|cdot|times|div|infty")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_CHARACTERS = re.compile(r"(?:[0-9A-Za-z+\-*/^_(){}\[\]|. ]|\\[A-Za-z]+)+")
_EXPONENT = re.compile(r"\^(?:\{([^{}^]*)\}|([0-9A-Za-z]|\\[a-z]+))(?!\^)")

_MAX_EXPRESSION_CHARS = 100
_MAX_NESTING = 4
_MAX_POWER = 5_000
_MAX_POWER_OF_LETTERS = 100
_MAX_POWER_IN_CIRCULAR = 20
_HAS_CIRCULAR = re.compile(rf"\\(?:{_CIRCULAR})(?![A-Za-z])")
_PLAIN_EXPONENT = re.compile(r"\^\{?-?[0-9]{0,2}[A-Za-z]?\}?")


def is_harmless(expression: str) -> bool:
    """Return whether sympy can evaluate an expression quickly, judged only by its text.

    It refuses long or deeply nested texts (the parser is exponential in parentheses), commands that
    can loop (sums, binomials, factorials), towers of powers, and exponents with a large product
    over the levels of nesting: 9^(9^9) takes all memory, in C code that cannot be interrupted. So
    does the sine of a number with very many digits; exponents next to circular functions must be
    small.
    """
    if len(expression) > _MAX_EXPRESSION_CHARS or not expression.isascii():
        return False
    if not _CHARACTERS.fullmatch(expression) or "**" in expression or ".." in expression:
        return False
    if not all(_ALLOWED_COMMANDS.fullmatch(name) for name in _COMMAND.findall(expression)):
        return False
    depths = list(accumulate((c in "([{") - (c in ")]}") for c in expression))
    if max(depths) > _MAX_NESTING or min(depths) < 0 or depths[-1]:
        return False
    exponents = list(_EXPONENT.finditer(expression))
    if len(exponents) != expression.count("^"):
        return False
    # Exponents at one level of nesting multiply those within it
    largest: dict[int, int] = {}
    for exponent in exponents:
        power = math.prod(max(int(n), 1) for n in re.findall("[0-9]{1,9}", exponent[0]))
        level = depths[exponent.start()]
        largest[level] = max(largest.get(level, 1), power)
    power = math.prod(largest.values())
    if _HAS_CIRCULAR.search(expression):
        are_plain = all(_PLAIN_EXPONENT.fullmatch(exponent[0]) for exponent in exponents)
        return are_plain and power <= _MAX_POWER_IN_CIRCULAR
    has_letters = re.search("[A-Za-z]", _COMMAND.sub("", expression)) is not None
    return power <= (_MAX_POWER_OF_LETTERS if has_letters else _MAX_POWER)


# Exact numbers -----------------------------------------------------------------------------------

_INTEGER = r"[0-9]{1,300}"
_RATIONAL = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<decimal>(?:{_INTEGER})?\.[0-9]*|{_INTEGER})"
    rf"|(?P<head>(?:{_INTEGER})?\.[0-9]{{0,300}})\\overline\{{(?P<cycle>[0-9]{{1,30}})\}}"
    rf"|(?P<ones>{_INTEGER}) (?P<n>{_INTEGER})/(?P<d>{_INTEGER})"
    rf"|(?P<over>{_INTEGER})/(?P<under>{_INTEGER})"
    rf"|(?P<whole>{_INTEGER})?\\frac(?:\{{(?P<top>-?{_INTEGER})\}}|(?P<t>[0-9]))"
    rf"(?:\{{(?P<bottom>-?{_INTEGER})\}}|(?P<b>[0-9])))"
)


def rational(text: str) -> Fraction | None:
    r"""Return the exact value of a decimal, a fraction or a mixed number; None for other texts."""
    found = _RATIONAL.fullmatch(text)
    if found is None or text.strip("+-") in ("", "."):
        return None
    parts = found.groupdict()
    if parts["cycle"] is not None:
        head, cycle = parts["head"], parts["cycle"]
        places = len(head.partition(".")[2])
        value = Fraction("0" + head.rstrip("."))
        value += Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**places)
    elif parts["ones"] is not None:
        if int(parts["d"]) == 0:
            return None
        value = int(parts["ones"]) + Fraction(int(parts["n"]), int(parts["d"]))
    elif parts["decimal"] is not None:
        value = Fraction("0" + parts["decimal"].rstrip("."))
    else:
        top = int(parts["over"] or parts["top"] or parts["t"])
        bottom = int(parts["under"] or parts["bottom"] or parts["b"])
        if bottom == 0 or (parts["whole"] and (top < 0 or bottom < 0)):
            return None
        value = Fraction(top, bottom) + int(parts["whole"] or 0)
    return -value if parts["sign"] == "-" else value


# Evaluation --------------------------------------------------------------------------------------

_SIZES = ((1, 3), (1, 3), (0, 1), (0, 1))
"""Bounds of a letter's absolute value at each point; its sign alternates between points."""
_DIGITS = 30
_CLOSE = 1e-20
_NOTHING = 1e-90

_WORD_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|pi)(?![A-Za-z])")
_EXP = re.compile(r"\\exp ?[({]([^(){}^]*)[)}]")
_WORD_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\(([^()]*)\)")
# A function keeps its argument; any other letter before a bracket is a factor: f(x) is f times x
_OPENED = re.compile(
    rf"(\\(?:{_FUNCTIONS})(?![A-Za-z]) ?(?:_(?:\{{\w+\}}|\w))? ?(?:\^(?:\{{-?\w+\}}|\w))? ?\()"
    r"|([0-9A-Za-z)}])\("
)
_MIXED = re.compile(r"(?<![0-9A-Za-z.^})\]])([0-9]+)\\frac(\{[0-9]+\}|[0-9])(\{[0-9]+\}|[0-9])")
_BRACED_ARGUMENTS = re.compile(
    r"\\frac ?(?:\{[^{}]*\}|[0-9A-Za-z]) ?(?:\{[^{}]*\}|[0-9A-Za-z])"
    r"|\\sqrt ?(?:\[[0-9a-z]+\])? ?\{[^{}]*\}|[\^_] ?\{[^{}]*\}"
)


def written_out(expression: str) -> str | None:
    """Rewrite an expression so that the parser reads all of it; None if that is impossible.

    Names of functions become commands, mixed numbers sums, and adjacent factors products.
    """
    text = _WORD_ROOT.sub(r"\\sqrt{\1}", expression)
    text = _WORD_FUNCTION.sub(r"\\\1", text)
    text = _MIXED.sub(r"(\1+\\frac\2\3)", text)
    text = re.sub(r"(\\log ?_(?:\{\w+\}|\w)) +", r"\1", text)
    if re.search(r"[0-9)}\]] +[0-9]|[0-9]_|\.[0-9]*\.|_\{?[^{}0-9A-Za-z]", text):
        return None
    bare = text
    while True:  # drop braces that are not arguments, which the parser would read as numbers
        fewer = _BRACED_ARGUMENTS.sub("x", bare)
        if fewer == bare:
            break
        bare = fewer
    if re.search(r"[{}\[\]]", bare):
        return None
    letters = set(re.findall("[A-Za-z]", _COMMAND.sub(" ", text)))
    if any(letter.swapcase() in letters for letter in letters):
        return None  # the parser does not distinguish letter case
    text = re.sub(
        r"(?<![A-Za-z\\])([A-Za-z])(?=[A-Za-z])|(?<= )([A-Za-z])(?=[A-Za-z])", r"\1\2 ", text
    )
    text = _OPENED.sub(lambda found: found[1] or rf"{found[2]}\cdot (", text)
    return re.sub(r"\)(?=[0-9A-Za-z\\])(?!\\(?:cdot|times|div))", r")\\cdot ", text)


@lru_cache(maxsize=4096)
def parse(expression: str) -> Any | None:
    """Return the sympy expression of a safe text, or None if it cannot be parsed."""
    expression = _EXP.sub(r"e^{\1}", expression)
    if not is_harmless(expression) or (text := written_out(expression)) is None:
        return None
    # math-verify warns that its timeouts are off; `is_harmless` replaces them.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    try:
        parsed = math_verify.parse(
            f"${text}$",
            [math_verify.LatexExtractionConfig()],
            "no_fallback",
            parsing_timeout=None,
        )
        return _exact(parsed[0]) if parsed and hasattr(parsed[0], "free_symbols") else None
    except Exception:  # sympy may raise any error on invalid text, which must not end a run
        return None


def _exact(parsed: Any) -> Any:
    """Replace the decimals of an expression by fractions, because floats are not exact.

    Exponents are not replaced, because an exact power may have any number of digits.
    """
    if any(power.exp.has(sympy.Float) for power in parsed.atoms(sympy.Pow)):
        return parsed
    return parsed.xreplace({x: sympy.Rational(str(x)) for x in parsed.atoms(sympy.Float)})


def equal(candidate: str, gold: str) -> bool:
    """Return whether two expressions have equal values, at every point if they have letters."""
    pairs = _values_at_points(candidate, gold)
    return bool(pairs) and all(_is_close(a, b) for a, b in pairs)


def ratio(candidate: str, gold: str) -> int:
    """Return the sign of the constant ratio of two expressions; 0 if it is not constant."""
    pairs = _values_at_points(candidate, gold)
    try:
        if not pairs or any(_is_close(b, sympy.Integer(0)) for _, b in pairs):
            return 0
        quotients = [a / b for a, b in pairs]
        first = quotients[0]
        if _is_close(first, sympy.Integer(0)) or not first.is_real:
            return 0
        return int(first / abs(first)) if all(_is_close(q, first) for q in quotients) else 0
    except Exception:  # as in `parse`
        return 0


def _values_at_points(candidate: str, gold: str) -> list[tuple[Any, Any]]:
    """Evaluate two expressions at the same points, except where both are undefined.

    The list is empty if an expression cannot be parsed, or only one of them is undefined.
    """
    letters = set(re.findall("[A-Za-z]", _COMMAND.sub(" ", f"{candidate} {gold}")))
    if any(letter.swapcase() in letters for letter in letters):
        return []
    ours, theirs = _values(candidate), _values(gold)
    if len(ours) == 1 or len(theirs) == 1:  # a number is the same at every point
        ours, theirs = ours * max(1, len(theirs)), theirs * max(1, len(ours))
    if not ours or len(ours) != len(theirs):
        return []
    if any((a is None) != (b is None) for a, b in zip(ours, theirs, strict=True)):
        return []
    defined = [pair for pair in zip(ours, theirs, strict=True) if pair[0] is not None]
    return defined if 2 * len(defined) >= len(ours) else []


@lru_cache(maxsize=4096)
def _values(expression: str) -> tuple[Any, ...]:
    """Evaluate an expression at the points, or a number once; None where it is undefined.

    The tuple is empty if the expression cannot be parsed, or its value is not a number.
    """
    parsed = parse(expression)
    if parsed is None:
        return ()
    try:
        letters = sorted(parsed.free_symbols, key=str)
        points = range(len(_SIZES) if letters else 1)
        found = [parsed.evalf(_DIGITS, subs={s: _at(n, str(s)) for s in letters}) for n in points]
        if not all(value.is_number for value in found):
            return ()
        return tuple(None if v.has(sympy.nan, sympy.zoo) else v for v in found)
    except Exception:  # as in `parse`
        return ()


def _at(point: int, letter: str) -> Any:
    """Return the value of a letter at a point, the same in every expression."""
    if letter == "i":  # the imaginary unit
        return sympy.I
    low, high = _SIZES[point]
    drawn = zlib.crc32(f"{letter} {point // 2}".encode())
    size = low + sympy.Rational(drawn % 999_983 + 1, 999_984) * (high - low)
    return size if (drawn + point) % 2 else -size


def _is_close(a: Any, b: Any) -> bool:
    if a == b or not a.is_finite or not b.is_finite:
        return bool(a == b)
    size = max(abs(a), abs(b))
    return bool(size < _NOTHING or abs(a - b) <= _CLOSE * size)
