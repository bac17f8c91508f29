r"""Find the subsets of some numbers that have a given sum, by depth-first search.

"The last numbers of the subsets of 3 5 6 8 9 with sum 17, in order?" is solved with one line for
each decision:

    exact
    .3.5.6.8.9:17,3+000
    +3.5.6.8.9:14,5+000
    +3+5.6.8.9:09,6+000
    +3+5+6.8.9:03,8-000
    +3+5+6-8.9:03,6<000
    +3+5-6.8.9:09,8+000
    ...
    </think>
    \boxed{898}

A line has all that the next one needs: each number with its state (`+` taken, `-` left out, `.` not
decided), the rest (the sum minus the taken numbers), a number and what happens to it, and the last
numbers of the subsets found so far, one digit each. What happens is

    +   the first undecided number fits into the rest, so it is taken
    -   it does not, so it is left out
    =   the rest is 0, so a subset is found; its last number is left out, those after it are open
    <   nothing is left to find below, so the same happens; if no number is taken, the search ends

Nothing is left if all numbers are decided, or if the only undecided one is not the rest.

Every error is visible where it is made, but appears in the answer only at the end: the last number
of a subset that was missed is not in it. There are at least two subsets, so that guesses do not
pay: no answer is right in more than one of 25 problems.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice

from lightning_vcppo.data.problem import THINK_CLOSE

MOST_NUMBERS = 9
"""Largest number of numbers: there are nine different digits."""
LINES_OF_A_NUMBER = 4
"""Largest number of lines of a search for each number; 20 lines of five have 410 tokens."""


@dataclass(frozen=True)
class SubsetSearch:
    """Different digits, and the target sum."""

    numbers: tuple[int, ...]
    target: int

    @property
    def question(self) -> str:
        """The text of the problem."""
        numbers = " ".join(map(str, self.numbers))
        return f"The last numbers of the subsets of {numbers} with sum {self.target}, in order?"

    @property
    def last_numbers(self) -> list[int]:
        """The last number of each subset, found by trying all of them."""
        places = range(len(self.numbers))
        subsets = (c for size in places for c in combinations(places, size + 1))
        right = [c for c in subsets if sum(self.numbers[i] for i in c) == self.target]
        return [self.numbers[c[-1]] for c in sorted(right)]

    @property
    def answer(self) -> int:
        """The last numbers, written as one number."""
        return int("".join(map(str, self.last_numbers)) or "0")


def draw_subsets(rng: random.Random, steps: int) -> SubsetSearch:
    """Draw `steps` numbers and a sum of two subsets or more, with a search of limited length.

    One or two numbers have one subset.

    Raises:
        ValueError: If there are fewer digits than `steps`.
    """
    if steps > MOST_NUMBERS:
        raise ValueError(f"max_steps: subsets have at most {MOST_NUMBERS} numbers, got {steps}")
    while True:
        numbers = rng.sample(range(1, MOST_NUMBERS + 1), steps)
        some = rng.sample(numbers, rng.randint(1, max(1, steps - 1)))
        drawn = SubsetSearch(tuple(numbers), sum(some))
        most = LINES_OF_A_NUMBER * steps
        lines = [*islice(_lines(drawn, random.Random(0)), most + 1)]
        _, found = lines[-1]
        if len(lines) <= most and (steps <= 2 or found > 9):  # a digit for each subset
            return drawn


def search(
    problem: SubsetSearch,
    rng: random.Random,
    *,
    slip_rate: float = 0.0,
    prune_rate: float = 0.0,
    early_stop_rate: float = 0.0,
) -> str:
    """Write the search, with imperfections at the given rates.

    Args:
        problem: Problem to solve.
        rng: Random stream of the imperfections.
        slip_rate: Probability that the last digit of a line's rest is drawn at random; the search
            goes on with that rest.
        prune_rate: Probability that a number that fits is wrongly left out at once, so that all
            subsets with it are missed.
        early_stop_rate: Probability, after each line, that what was found so far is the answer.
    """
    lines, answer = ["exact"], 0
    for line, found in _lines(problem, rng, slip_rate, prune_rate):
        lines.append(line)
        answer = found
        if rng.random() < early_stop_rate:
            break
    return "\n".join([*lines, THINK_CLOSE, f"\\boxed{{{answer}}}"])


def _lines(
    problem: SubsetSearch, rng: random.Random, slip_rate: float = 0.0, prune_rate: float = 0.0
) -> Iterator[tuple[str, int]]:
    """Yield each line, and the last numbers found until then as one number."""
    numbers, count = problem.numbers, len(problem.numbers)
    states, rest, found = ["."] * count, problem.target, 0
    while True:
        if rng.random() < slip_rate:
            rest = rest // 10 * 10 + rng.randrange(10)
        text = "".join(f"{state}{number}" for state, number in zip(states, numbers, strict=True))
        taken = [place for place in range(count) if states[place] == "+"]
        undecided = [place for place in range(count) if states[place] == "."]
        hopeless = not undecided or (len(undecided) == 1 and numbers[undecided[0]] != rest)
        back = rest == 0 or hopeless
        if back and not taken:
            yield f"{text}:{rest:02d},0<{found:03d}", found
            return
        place = taken[-1] if back else undecided[0]
        number = numbers[place]
        if rest == 0:
            happens, found = "=", 10 * found + number
        elif back:
            happens = "<"
        else:
            happens = "+" if number <= rest and rng.random() >= prune_rate else "-"
        yield f"{text}:{rest:02d},{number}{happens}{found:03d}", found
        states[place] = "+" if happens == "+" else "-"
        rest += {"+": -number, "-": 0}.get(happens, number)
        if back:
            states[place + 1 :] = ["."] * (count - place - 1)
