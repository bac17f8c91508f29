r"""Generate AIME-style problems with worked long chain-of-thought solutions.

Most problems are chains of three-digit operations, so that the answer is an integer in 0..999, the
reasoning can have any length, and one wrong digit anywhere makes the answer wrong. Sums, products,
powers and recurrences are worked digit by digit:

    exact
    +082:7+2+0=09,4+8+0=12,0+0+1=01>129
    *7:9*7+0=63,2*7+6=20,1*7+2=09>903
    </think>
    \boxed{903}

Counting needs hardly any arithmetic: a line is the number of remaining lines and the next number.
It tests decisions (continue or answer, which method), not knowledge:

    exact
    002:131
    001:132
    000:133
    </think>
    \boxed{133}

In additions of digits a line has the digits that are left, the sum so far, the digit and the new
sum ("4781:009+3=012"), so that it depends on the line before it alone.

Sums of fractions (`fraction_sums.py`) have answers that are not integers. Finding subsets
(`subset_sums.py`) is a search, in which an error appears in the answer only at the end.

Solutions can be imperfect in the same ways as a language model's: wrong digits, a rough method
chosen in the first token that makes the final answer wrong, reasoning that stops too early. A
policy cold-started on such solutions has the skill but is unreliable, which reinforcement learning
then corrects.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_vcppo.data.fraction_sums import FractionSum, draw_sum, fraction_line, latex
from lightning_vcppo.data.problem import THINK_CLOSE, Problem
from lightning_vcppo.data.subset_sums import (
    MOST_NUMBERS,
    SubsetSearch,
    draw_subsets,
    search,
)

if TYPE_CHECKING:
    from lightning_vcppo.rewards.answers import AnswerKind

MOST_DIGITS = 100
"""Digits of an addition, whose sum must stay below 1000: answers are taken modulo 1000."""


@dataclass(frozen=True)
class ProblemSettings:
    """Settings of generated problems and of the imperfections of their worked solutions.

    Attributes:
        families: Kinds of problems to draw from, see `FAMILIES`.
        min_steps: Smallest number of operations (lines of reasoning) of a problem.
        max_steps: Largest number of operations; in `recurrence` a step is two operations, in
            `short_recurrence` an odd number of operations is rounded up, in `subsets` it is a
            number to choose from. A line takes about 36 tokens of the tiny tokenizer, 8 in
            counting, 10 and the remaining digits in `addition`.
        slip_rate: Probability that a digit of a worked solution is wrong (and carried on).
        rough_rate: Share of solutions that choose, in their first token, the rough method: it never
            computes the last digit, so the answer is nearly always wrong, which nothing later
            corrects. In `count` and `addition` it rounds the answer up, without earlier sign of it.
        check_rate: Probability that a line is worked twice; the second, careful working is kept.
        early_stop_rate: Probability, after each line, that a solution skips the rest and answers.
        prune_rate: In `subsets`: probability that a branch of the search is wrongly pruned.
    """

    families: Sequence[str] = ("sum",)
    min_steps: int = 3
    max_steps: int = 3
    slip_rate: float = 0.0
    rough_rate: float = 0.0
    check_rate: float = 0.0
    early_stop_rate: float = 0.0
    prune_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        if unknown := [name for name in self.families if name not in FAMILIES]:
            raise ValueError(f"families: {unknown[0]!r} is not one of {', '.join(FAMILIES)}")
        if not self.families:
            raise ValueError(f"families: name at least one of {', '.join(FAMILIES)}")
        if not 1 <= self.min_steps <= self.max_steps:
            raise ValueError(
                f"min_steps and max_steps: expected 1 <= min_steps <= max_steps, "
                f"got {self.min_steps} and {self.max_steps}"
            )
        for name in ("slip_rate", "rough_rate", "check_rate", "early_stop_rate", "prune_rate"):
            if not 0.0 <= (rate := getattr(self, name)) <= 1.0:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {rate}")
        if "subsets" in self.families and self.max_steps > MOST_NUMBERS:
            raise ValueError(
                f"max_steps: subsets have at most {MOST_NUMBERS} numbers, got {self.max_steps}"
            )
        if "addition" in self.families and self.max_steps > MOST_DIGITS:
            raise ValueError(
                f"max_steps: addition has at most {MOST_DIGITS} digits, got {self.max_steps}"
            )


@dataclass(frozen=True)
class Operation:
    """One step of a chain: `symbol` is "+" (operand 0..999) or "*" (operand 0..9)."""

    symbol: str
    operand: int

    def apply(self, value: int) -> int:
        """Return the exact result modulo 1000."""
        return (value + self.operand if self.symbol == "+" else value * self.operand) % 1000

    def micro_step(self, value: int, place: int, carry: int) -> tuple[str, int]:
        """Return the text and the exact result of the operation on one decimal place."""
        digit = value // 10**place % 10
        if self.symbol == "+":
            other = self.operand // 10**place % 10
            return f"{digit}+{other}+{carry}", digit + other + carry
        return f"{digit}*{self.operand}+{carry}", digit * self.operand + carry

    def __str__(self) -> str:
        """Return the beginning of the operation's line."""
        return f"+{self.operand:03d}" if self.symbol == "+" else f"*{self.operand}"


@dataclass(frozen=True)
class Term(Operation):
    """An addition that knows which digits are left after it."""

    rest: str = ""


@dataclass(frozen=True)
class Chain:
    """A question and the operations, from `start`, that answer it; short lines are only results."""

    question: str
    start: int
    operations: tuple[Operation, ...]
    short_lines: bool = False

    @property
    def answer(self) -> int:
        """The exact answer modulo 1000."""
        value = self.start
        for operation in self.operations:
            value = operation.apply(value)
        return value


def _sum(rng: random.Random, steps: int) -> Chain:
    numbers = [rng.randrange(10, 100) for _ in range(steps + 1)]
    question = f"Find the remainder when {' + '.join(map(str, numbers))} is divided by 1000."
    return Chain(question, numbers[0], tuple(Operation("+", number) for number in numbers[1:]))


def _product(rng: random.Random, steps: int) -> Chain:
    start = rng.randrange(10, 100)
    digits = [rng.randrange(2, 10) for _ in range(steps)]
    factors = " * ".join(map(str, [start, *digits]))
    question = f"Find the remainder when {factors} is divided by 1000."
    return Chain(question, start, tuple(Operation("*", digit) for digit in digits))


def _power(rng: random.Random, steps: int) -> Chain:
    base = rng.randrange(2, 10)
    question = f"Find the remainder when {base}^{steps + 1} is divided by 1000."
    return Chain(question, base, (Operation("*", base),) * steps)


def _recurrence(rng: random.Random, steps: int) -> Chain:
    start, factor, shift = rng.randrange(1, 100), rng.randrange(2, 10), rng.randrange(10, 100)
    one_term = (Operation("*", factor), Operation("+", shift))
    question = (
        f"A sequence has a_1 = {start} and a_(n+1) = {factor} * a_n + {shift}. "
        f"Find the remainder when a_{steps + 1} is divided by 1000."
    )
    return Chain(question, start, one_term * steps)


def _short_recurrence(rng: random.Random, steps: int) -> Chain:
    """Make a recurrence with `steps` operations, not terms."""
    return _recurrence(rng, (steps + 1) // 2)


def _count(rng: random.Random, steps: int) -> Chain:
    start = rng.randrange(1000)
    question = (
        f"Start at {start:03d} and count {steps:03d} up. Which number is reached, modulo 1000?"
    )
    return Chain(question, start, (Operation("+", 1),) * steps, short_lines=True)


def _addition(rng: random.Random, steps: int) -> Chain:
    digits = "".join(str(rng.randint(1, 9)) for _ in range(steps))
    terms = tuple(Term("+", int(digit), digits[i:]) for i, digit in enumerate(digits, start=1))
    return Chain(f"What do the digits {digits} sum to?", 0, terms, short_lines=True)


FAMILIES: dict[str, Callable[[random.Random, int], Chain | FractionSum | SubsetSearch]] = {
    "sum": _sum,
    "product": _product,
    "power": _power,
    "recurrence": _recurrence,
    "short_recurrence": _short_recurrence,
    "count": _count,
    "addition": _addition,
    "fraction": draw_sum,
    "subsets": draw_subsets,
}


def generate_problems(count: int, settings: ProblemSettings, *, seed: int) -> list[Problem]:
    """Generate problems with worked solutions.

    Args:
        count: Number of problems.
        settings: Families, lengths and imperfections.
        seed: The same seed gives the same problems; a longer list starts with the shorter one.

    Returns:
        `count` problems. Questions may repeat if a family has few of them.
    """
    rng = random.Random(seed)
    problems = []
    for _ in range(count):
        family = rng.choice(list(settings.families))
        steps = rng.randint(settings.min_steps, settings.max_steps)
        chain = FAMILIES[family](rng, steps)
        # A separate stream: the questions of a seed do not depend on how well they are solved.
        solution = work_out(chain, settings, random.Random(rng.getrandbits(64)))
        kind: AnswerKind = "math" if isinstance(chain, FractionSum) else "integer"
        problems.append(
            Problem(chain.question, chain.answer, solution, source=family, answer_kind=kind)
        )
    return problems


def work_out(
    chain: Chain | FractionSum | SubsetSearch, settings: ProblemSettings, rng: random.Random
) -> str:
    """Write a solution of a chain, with the imperfections of the settings."""
    if isinstance(chain, SubsetSearch):
        return search(
            chain,
            rng,
            slip_rate=settings.slip_rate,
            prune_rate=settings.prune_rate,
            early_stop_rate=settings.early_stop_rate,
        )
    rough = rng.random() < settings.rough_rate
    lines = ["rough" if rough else "exact"]
    value: Any = chain.start
    short = isinstance(chain, Chain) and chain.short_lines
    work_line: Callable[..., tuple[str, Any]] = _short_line if short else _work_line
    if isinstance(chain, FractionSum):
        work_line = fraction_line
    for done, operation in enumerate(chain.operations, start=1):
        left = len(chain.operations) - done
        line, result = work_line(operation, value, left, rough, settings.slip_rate, rng)
        lines.append(line)
        if rng.random() < settings.check_rate:
            line, result = work_line(operation, value, left, rough, 0.0, rng)
            lines.append(f"?{line}")
        value = result
        if left and rng.random() < settings.early_stop_rate:
            break
    if rough and short:
        value = (value // 10 + 1) * 10 % 1000
    answer = latex(value) if isinstance(chain, FractionSum) else value
    return "\n".join([*lines, THINK_CLOSE, f"\\boxed{{{answer}}}"])


def _short_line(
    operation: Operation, value: int, left: int, rough: bool, slip_rate: float, rng: random.Random
) -> tuple[str, int]:
    """Return a line with what is left and its result; a slip is in the last digit."""
    result = operation.apply(value)
    if rng.random() < slip_rate:
        result = result // 10 * 10 + rng.randrange(10)
    if isinstance(operation, Term):
        return f"{operation.rest}:{value:03d}+{operation.operand}={result:03d}", result
    return f"{left:03d}:{result:03d}", result


def _work_line(
    operation: Operation, value: int, left: int, rough: bool, slip_rate: float, rng: random.Random
) -> tuple[str, int]:
    """Compute an operation digit by digit, from the units up; return the line and its result."""
    micro_steps: list[str] = []
    result = carry = 0
    for place in range(1 if rough else 0, 3):
        text, exact = operation.micro_step(value, place, carry)
        if rng.random() < slip_rate:
            exact = exact // 10 * 10 + rng.randrange(10)
        carry = exact // 10
        result += exact % 10 * 10**place
        micro_steps.append(f"{text}={exact:02d}")
    return f"{operation}:{','.join(micro_steps)}>{result:03d}", result
