r"""One expression: whether it is harmless to evaluate, and whether two of them are equal.

math-verify parses, sympy evaluates: numbers to 30 digits, expressions with letters at fixed points
of both signs. Nothing is simplified, for that has no bound in time. What the parser would drop or
read as something else (text, `3(4)`, letters of both cases) is refused or written out before.
"""

from __future__ import annotations

import logging
import math
import re
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any

import math_verify
import sympy

_FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|sqrt|pi|frac"
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


def is_harmless(expression: str) -> bool:
    """Tell whether sympy can evaluate an expression quickly, judged by its text alone.

    Refused are: what is long or deeply nested (the parser is exponential in parentheses), commands
    that can loop (sums, binomials, factorials), towers of powers, and exponents with a large
    product over the levels of nesting: 9^(9^9) takes all memory, in C code that nothing interrupts.
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
    # What is raised at one level of nesting multiplies what is raised within it
    largest: dict[int, int] = {}
    for exponent in exponents:
        power = math.prod(max(int(n), 1) for n in re.findall("[0-9]{1,9}", exponent[0]))
        level = depths[exponent.start()]
        largest[level] = max(largest.get(level, 1), power)
    has_letters = re.search("[A-Za-z]", _COMMAND.sub("", expression)) is not None
    return math.prod(largest.values()) <= (_MAX_POWER_OF_LETTERS if has_letters else _MAX_POWER)


# Exact numbers -----------------------------------------------------------------------------------

_INTEGER = r"[0-9]{1,300}"
_RATIONAL = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<decimal>(?:{_INTEGER})?\.[0-9]*|{_INTEGER})"
    rf"|(?P<over>{_INTEGER})/(?P<under>{_INTEGER})"
    rf"|(?P<whole>{_INTEGER})?\\frac(?:\{{(?P<top>-?{_INTEGER})\}}|(?P<t>[0-9]))"
    rf"(?:\{{(?P<bottom>-?{_INTEGER})\}}|(?P<b>[0-9])))"
)


def rational(text: str) -> Fraction | None:
    r"""Return the value of a decimal, a fraction or a mixed number, exactly; None of any other."""
    found = _RATIONAL.fullmatch(text)
    if found is None or text.strip("+-") in ("", "."):
        return None
    parts = found.groupdict()
    if parts["decimal"] is not None:
        value = Fraction("0" + parts["decimal"].rstrip("."))
    else:
        top = int(parts["over"] or parts["top"] or parts["t"])
        bottom = int(parts["under"] or parts["bottom"] or parts["b"])
        if bottom == 0 or (parts["whole"] and (top < 0 or bottom < 0)):
            return None
        value = Fraction(top, bottom) + int(parts["whole"] or 0)
    return -value if parts["sign"] == "-" else value


# Evaluation --------------------------------------------------------------------------------------

_POINTS = (
    ("0.7310585786", "-0.4142135623", "1.2020569031", "0.5671432904", "-1.3247179572"),
    ("-0.6180339887", "1.7320508075", "-0.3010299956", "-1.1447298858", "0.9159655941"),
    ("2.2360679774", "0.5772156649", "1.6449340668", "0.2614972128", "0.1234567891"),
    ("-1.8392867552", "-2.5029078750", "-0.7642236535", "1.4513692348", "0.3183098861"),
)
"""Where expressions with letters are compared: the k-th letter has the k-th value, and so on."""
_DIGITS = 30
_CLOSE = 1e-20
_NOTHING = 1e-90

_WORD_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|pi)(?![A-Za-z])")
_WORD_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\(([^()]*)\)")
# A function keeps its argument; anything else before a bracket is a factor, f(x) is f times x
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
    """Write an expression such that the parser reads all of it; None if it cannot.

    Words of functions become commands, mixed numbers sums, and what stands side by side products.
    """
    text = _WORD_ROOT.sub(r"\\sqrt{\1}", expression)
    text = _WORD_FUNCTION.sub(r"\\\1", text)
    text = _MIXED.sub(r"(\1+\\frac\2\3)", text)
    text = re.sub(r"(\\log ?_(?:\{\w+\}|\w)) +", r"\1", text)
    if re.search(r"[0-9)}\]] +[0-9]|[0-9]_|\.[0-9]*\.|_\{?[^{}0-9A-Za-z]", text):
        return None
    bare = text
    while True:  # braces that are no arguments say nothing, and the parser makes numbers of them
        fewer = _BRACED_ARGUMENTS.sub("x", bare)
        if fewer == bare:
            break
        bare = fewer
    if re.search(r"[{}\[\]]", bare):
        return None
    letters = set(re.findall("[A-Za-z]", _COMMAND.sub(" ", text)))
    if any(letter.swapcase() in letters for letter in letters):
        return None  # the parser knows letters of one case only
    text = re.sub(
        r"(?<![A-Za-z\\])([A-Za-z])(?=[A-Za-z])|(?<= )([A-Za-z])(?=[A-Za-z])", r"\1\2 ", text
    )
    text = _OPENED.sub(lambda found: found[1] or rf"{found[2]}\cdot (", text)
    return re.sub(r"\)(?=[0-9A-Za-z\\])(?!\\(?:cdot|times|div))", r")\\cdot ", text)


@lru_cache(maxsize=4096)
def parse(expression: str) -> Any | None:
    """Return the sympy expression of a harmless text, or None if there is none."""
    if not is_harmless(expression) or (text := written_out(expression)) is None:
        return None
    # math-verify warns that its timeouts are off; `is_harmless` does what they are for.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    try:
        parsed = math_verify.parse(
            f"${text}$",
            [math_verify.LatexExtractionConfig()],
            "no_fallback",
            parsing_timeout=None,
        )
        return parsed[0] if parsed and hasattr(parsed[0], "free_symbols") else None
    except Exception:  # sympy raises anything on nonsense, and nonsense must not end a training run
        return None


def equal(candidate: str, gold: str) -> bool:
    """Tell whether two expressions have the same value, at every point if they have letters."""
    pairs = _values_at_points(candidate, gold)
    return bool(pairs) and all(_is_close(a, b) for a, b in pairs)


def ratio(candidate: str, gold: str) -> int:
    """Return the sign of the constant number that one expression is of the other; 0 if none is."""
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
    """Evaluate two expressions at the same points, those apart where both are undefined.

    The list is empty if an expression cannot be read, or is undefined alone.
    """
    letters = set(re.findall("[A-Za-z]", _COMMAND.sub(" ", f"{candidate} {gold}")))
    if any(letter.swapcase() in letters for letter in letters):
        return []
    expressions = [e for e in (parse(candidate), parse(gold)) if e is not None]
    if len(expressions) < 2:
        return []
    try:
        symbols = sorted(set().union(*(e.free_symbols for e in expressions)), key=str)
        points = [{}] if not symbols else [_point(symbols, numbers) for numbers in _POINTS]
        pairs = []
        for point in points:
            a, b = (e.evalf(_DIGITS, subs=point) for e in expressions)
            if not a.is_number or not b.is_number:
                return []
            undefined = [value.has(sympy.nan, sympy.zoo) for value in (a, b)]
            if any(undefined) and not all(undefined):
                return []
            if not any(undefined):
                pairs.append((a, b))
        return pairs if 2 * len(pairs) >= len(points) else []
    except Exception:  # as in `parse`
        return []


def _point(symbols: list[Any], numbers: tuple[str, ...]) -> dict[Any, Any]:
    # The same letter has its value in every expression; i is the imaginary unit
    point = {}
    for k, symbol in enumerate(symbols):
        value = sympy.Rational(numbers[k % len(numbers)]) + k // len(numbers)
        point[symbol] = sympy.I if str(symbol) == "i" else value
    return point


def _is_close(a: Any, b: Any) -> bool:
    if a == b or not a.is_finite or not b.is_finite:
        return bool(a == b)
    size = max(abs(a), abs(b))
    return bool(size < _NOTHING or abs(a - b) <= _CLOSE * size)
