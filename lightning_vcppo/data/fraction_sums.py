r"""Generate sums of fractions, whose answer is a fraction in lowest terms.

A line adds one fraction over the product of the denominators, and reduces the sum by the greatest
common divisor:

    exact
    1/2+1/6:(1*6+1*2)/(2*6)=(6+2)/12=8/12;gcd 4>2/3
    </think>
    \boxed{\frac{2}{3}}

The rough method adds numerators and denominators, which is always too little.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class FractionSum:
    """A question and the fractions, from `start`, whose sum answers it."""

    question: str
    start: Fraction
    operations: tuple[Fraction, ...]

    @property
    def answer(self) -> str:
        """The exact answer, in lowest terms."""
        return latex(sum(self.operations, self.start))


def latex(value: Fraction) -> str:
    """Format a fraction in LaTeX, or an integer as digits."""
    if value.denominator == 1:
        return str(value.numerator)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def draw_sum(rng: random.Random, steps: int) -> FractionSum:
    """Draw proper fractions with one-digit denominators, whose sum is not an integer."""
    while True:
        fractions = []
        for _ in range(steps + 1):
            denominator = rng.randrange(2, 10)
            fractions.append(Fraction(rng.randrange(1, denominator), denominator))
        if sum(fractions).denominator > 1:
            break
    listed = " + ".join(f"{f.numerator}/{f.denominator}" for f in fractions)
    question = f"Find {listed} as a fraction in lowest terms."
    return FractionSum(question, fractions[0], tuple(fractions[1:]))


def fraction_line(
    term: Fraction, value: Fraction, left: int, rough: bool, slip_rate: float, rng: random.Random
) -> tuple[str, Fraction]:
    """Add a fraction and return the line and its result; a slip is in the numerator's last digit.

    Args:
        term: Fraction to add.
        value: The sum so far.
        left: Number of remaining lines; not shown.
        rough: Whether numerators and denominators are added.
        slip_rate: Probability of a slip.
        rng: Random stream of slips.
    """
    a, b, c, d = value.numerator, value.denominator, term.numerator, term.denominator
    if rough:
        work, numerator, denominator = f"({a}+{c})/({b}+{d})", a + c, b + d
    else:
        numerator, denominator = a * d + c * b, b * d
        # One product at a time, for a model without mental arithmetic
        work = f"({a}*{d}+{c}*{b})/({b}*{d})=({a * d}+{c * b})/{denominator}"
    if rng.random() < slip_rate:
        numerator = numerator // 10 * 10 + rng.randrange(10)
    divisor = math.gcd(numerator, denominator)
    result = Fraction(numerator, denominator)
    reduced = f"gcd {divisor}>{result.numerator}/{result.denominator}"
    return f"{a}/{b}+{c}/{d}:{work}={numerator}/{denominator};{reduced}", result
