r"""Normalize answers: drop what does not change their value before they are compared.

All that is dropped is checked first: a unit must neither change the number nor revoke it
(`33\text{ cm}` is 33, `33\text{ or 34}` and `33\text{ thousand}` are not), and the left side of an
equality is dropped only if it is the only one and not a number itself.
"""

from __future__ import annotations

import re

MAX_ANSWER_CHARS = 300
"""Largest number of characters of an answer."""

_TEXT_COMMAND = r"\\(?:text|textrm|textnormal|mathrm|mbox)"
OPENING, CLOSING = "([{", ")]}"

_WRAPPING = re.compile(
    r"\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\]|\*\*(.+)\*\*"
    r"|\\(?:text|textrm|textnormal|textbf|textit|textsf|mathrm|mathbf|mathit|mathsf|mbox|boxed"
    r"|fbox|operatorname)\s*(\{.*\})",
    re.DOTALL,
)
_TIDY = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle|textstyle)(?![A-Za-z])", ""),
        # A marked separator is not a comma of a list
        (r"(?<=[0-9])(?:(?<!\\),\\!\s*|\s*\{,\s*\}\s*)(?=[0-9]{3}(?![0-9]))", ""),
        # A thin space separates thousands; any other space is not a part of a number
        (r"(?<!\\),\\!\s*|\s*\{,\s*\}\s*", ","),
        (r"(?<!\\)\\[,!]", ""),
        (r"\u2212", "-"),
        (r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9]+|[A-Za-z]))", r"\\sqrt{\1\2\3}"),
        (r"π", r"\\pi "),
        (r"∞", r"\\infty "),
        (r"[·⋅]", r"\\cdot "),
        (r"\u00d7", r"\\times "),
        (r"\\varnothing(?![A-Za-z])|∅|\\\{\s*\\\}", r"\\emptyset "),
        (r"(?<=\\pi) (?![A-Za-z])|(?<=\\infty) (?![A-Za-z])|(?<=\\emptyset) (?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    )
)
_ESCAPED = re.compile(r"\\\\(?=[A-Za-z({\[])")
_WIDE_SPACE = re.compile(r"\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])|(?<!\\)\\[;: ]|~")
_DEGREES = re.compile(r"(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])|°)\s*$")
FULL_STOP = re.compile(r"(?<!\.)\.$")
"""The stop at the end of a sentence, but not of an ellipsis: 33... goes on."""
# Space that separates: 20 4 is not 204, the list 1, 234 is not 1234
_SPACE = re.compile(r"((?<=[0-9])\s+(?=[0-9])|(?<=[A-Za-z])\s+(?=[A-Za-z])|(?<=,)\s+(?=[0-9]))|\s+")

THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
DECIMAL = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?")

# Units -------------------------------------------------------------------------------------------

_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion trillion dozen score gross grand k m mil mio bn lakh crore "
    "half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh "
    "sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths "
    "first second percent pct permille permil ppm ppb basis infinity pi negative point base ten "
    "tens binary octal decimal hex hexadecimal twice thrice double doubled triple tripled halved"
)
_OPERATIONS = (
    "plus minus times over by divided multiplied squared cubed root square cube power factorial "
    "mod modulo choose less more fewer greater than most least per reciprocal inverse inverted "
    "negated reversed rounded"
)
_TAKING_BACK = (
    "or and not no nor neither never none is isnt are was were be wrong false incorrect untrue "
    "invalid but if unless except without to from until through between above below under "
    "about around approximately approx roughly nearly almost maybe perhaps possibly probably "
    "likely either other else instead rather actually wait hmm correct answer guess"
)
_REFUTING = (
    "ish too cannot cant doesnt fail fails failed reject rejected exclude excluded excluding "
    "impossible contradiction contradicts unknown undefined unsure uncertain refuted extraneous"
)
_UNIT_BLOCKED = frozenset(f"{_NUMBER_WORDS} {_OPERATIONS} {_TAKING_BACK} {_REFUTING}".split())
_LARGE_NUMBERS = re.compile(
    r"\b(?:hundreds|thousands|dozens|lakhs|crores|[a-z]+illion(?:s|ths?)?)\b"
)
_ALLOWED_PAIRS = re.compile(
    r"\bm(?= per [a-z])|\b(?:square|cubic) (?=[a-z])|(?<=[a-z]) per (?=[a-z])|^seconds?$|^m$"
)
_ONE_LETTER_UNITS = frozenset("smghlLNJWVAFC")
_MAX_UNIT_WORDS = 4
_UNIT_BEHIND = re.compile(
    rf"(?:\^\s*(?:\{{\s*{_TEXT_COMMAND}\s*\{{\s*(?:st|nd|rd|th)?\s*\}}\s*\}}"
    rf"|{_TEXT_COMMAND}\s*\{{\s*(?:st|nd|rd|th)?\s*\}})"
    rf"|{_TEXT_COMMAND}\s*\{{(?P<unit>[A-Za-z ./]*)\}}(?P<power>\^(?:[23]|\{{[23]\}}))?)$"
)
UNITS_IN_LETTERS = (
    r"km/h|m/s|mm|cm|dm|km|inch(?:es)?|feet|foot|ft|yards?|miles?|met(?:er|re)s?|centimet(?:er|re)s?"
    r"|kilomet(?:er|re)s?|grams?|kg|kilograms?|lit(?:er|re)s?|ml|seconds|minutes|hours|days|weeks"
    r"|months|years|degrees?|radians?|dollars?|cents?|euros?|units?|mph|percent|pct"
)
"""Bare words that are units after a number; other letters may be variables."""


def is_unit(text: str) -> bool:
    """Return whether the text after a number is a unit, which does not change the number."""
    if ".." in text:
        return False
    words = text.replace(".", " ").replace("/", " per ").split()
    if not words:
        return True
    if len(words) == 1 and len(words[0]) == 1:
        return words[0] in _ONE_LETTER_UNITS
    plain = _ALLOWED_PAIRS.sub(" ", " ".join(words).lower())
    return (
        len(words) <= _MAX_UNIT_WORDS
        and _UNIT_BLOCKED.isdisjoint(plain.split())
        and not _LARGE_NUMBERS.search(plain)
    )


def drop_unit(text: str, behind: str = "[0-9]") -> str:
    r"""Drop the unit or the ordinal suffix after a number: `12\text{ cm}^2`, `12^{\text{th}}`.

    Args:
        text: A tidy answer.
        behind: Characters, as a regular expression, that a unit may follow.
    """
    found = _UNIT_BEHIND.search(text)
    if found is None or not re.search(f"{behind}$", text[: found.start()]):
        return text
    unit = found["unit"]
    if unit is not None and (not is_unit(unit) or (found["power"] and not unit.strip())):
        return text
    return text[: found.start()]


# Left sides --------------------------------------------------------------------------------------

_GROUP = re.compile(r"_\{[^{}]*\}|\([^()]*\)")
_EQUALITY = re.compile(r"(?<![<>!:=])=(?!=)|\\equiv(?![A-Za-z])|≡")
_OTHER_RELATION = re.compile(
    r"[<>≠≤≥≈]|\\(?:n?eq|ne|not|[lg]eq?|[lg]t|approx|sim|cong)(?![A-Za-z])"
)
_MODULUS = re.compile(r"\s*(?:\\pmod\s*\{?\w+\}?|\\bmod\s*\{?\w+\}?|\(\\b?mod\s*\{?\w+\}?\))$")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_OPERATOR_COMMAND = re.compile(r"\\(?:frac|sqrt|cdot|times|div|pm|mp|text|mathrm|mbox)(?![A-Za-z])")


def drop_left_side(text: str) -> str:
    r"""Drop the name of an answer: `m + n = 27`, `|S| = 27`, `N \equiv 27 \pmod{50}`.

    The text is unchanged with more than one equality, with another relation, in a list, and if the
    left side is a number itself or negates the equality.
    """
    bare = _GROUP.sub(lambda group: "." * len(group[0]), text)
    found = list(_EQUALITY.finditer(bare))
    if len(found) != 1 or _OTHER_RELATION.search(bare) or re.search("[,;]", bare):
        return text
    left, right = text[: found[0].start()], text[found[0].end() :]
    right = right if found[0][0] == "=" else _MODULUS.sub("", right)
    return right if right.strip() and says_what(left) else text


def says_what(left: str) -> bool:
    """Return whether the left side of an equality is a name and not a number."""
    if _DENIAL.search(left):
        return False
    symbols = _OPERATOR_COMMAND.sub(" ", left)
    return re.search(r"[A-Za-z#]|\|", symbols) is not None


_DENYING = "|".join(word for word in _TAKING_BACK.split() if word != "answer")
_DENIAL = re.compile(rf"(?<![A-Za-z\\])(?:{_DENYING})(?![A-Za-z])", re.IGNORECASE)

# Whole answers -----------------------------------------------------------------------------------


def enclosed(text: str, opening: str, closing: str) -> str | None:
    """Return the text between two brackets if they match and enclose the complete text."""
    if not (text.startswith(opening) and text.endswith(closing)) or len(text) < len(opening) + 1:
        return None
    inside = text[len(opening) : len(text) - len(closing)]
    depth = 0
    for character in inside:
        depth += (character in OPENING) - (character in CLOSING)
        if depth < 0:
            return None
    return inside if depth == 0 else None


def tidy(text: str) -> str:
    """Drop wrapping, layout, signs of degrees and dollars, and space without meaning."""
    if r"\begin" not in text:  # at the end of a row, `\\` is not an escaped backslash
        text = _ESCAPED.sub(r"\\", text)
    before = None
    while before != text:
        before = text
        for pattern, replacement in _TIDY:
            text = pattern.sub(replacement, text)
        text = FULL_STOP.sub("", _WIDE_SPACE.sub(" ", text).strip())
        text = _SPACE.sub(lambda space: " " if space[1] else "", text)
        if wrapped := _WRAPPING.fullmatch(text):
            text = _inside(wrapped[wrapped.lastindex or 0]) or text
        text = _DEGREES.sub("", text.removeprefix(r"\$"))
    return text


def _inside(wrapped: str) -> str | None:
    """Return a wrapped text without the braces of a command; None for several groups."""
    return enclosed(wrapped, "{", "}") if wrapped.startswith("{") else wrapped


def normalize_answer(text: str) -> str:
    r"""Return the canonical form of an answer, for comparison and for reading data sets.

    Numbers lose their padding ("070" and "70.0" become "70"), thousands separators, units and signs
    of dollars and degrees; "m + n = 5" becomes "5"; any other answer loses wrapping, and space
    without meaning.

    Returns:
        The canonical text; a text of more than `MAX_ANSWER_CHARS` characters is unchanged.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return text
    before = None
    while before != text:
        before = text
        text = drop_unit(drop_left_side(tidy(text)))
    return canonical_number(text)


def canonical_number(text: str) -> str:
    """Return a number without padding and thousands separators, or a list with spaces."""
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    decimal = DECIMAL.fullmatch(text)
    if decimal and (decimal[2] or decimal[3]):
        sign, whole, fraction = decimal[1], decimal[2].lstrip("0"), (decimal[3] or "").rstrip("0")
        number = (whole or "0") + (f".{fraction}" if fraction else "")
        return f"-{number}" if sign == "-" and number != "0" else number
    return re.sub(",(?=[0-9])", ", ", text)  # a list like any other
