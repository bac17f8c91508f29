r"""Count the subsets of some numbers that have a given sum, by depth-first search with pruning.

"How many subsets of 3 5 6 8 9 4 sum to 17?" is worked out node by node, a line each:

    exact
    1:3.0
    11:8.0
    111:14.0
    1111:22>0
    1110:14.0
    ...
    </think>
    \boxed{3}

A line has the choice so far (1 takes a number, 0 leaves it, in the order of the question), the sum
of what has been taken, a mark, and the number of subsets found so far. The mark says what follows:

    .   both choices for the next number, taking it first
    =   the sum is right: one more is found, and the search goes back
    >   the sum is too large: back
    <   even all numbers that are left are too few: back

Every error is visible where it is made, and shows in the answer only at the end: what is wrongly
pruned is missing in the count. An answer before the tree is exhausted may be right by luck.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from lightning_vcppo.data.problem import THINK_CLOSE

MOST_NUMBERS = 9
"""There are nine different digits."""
MOST_LINES = 80
"""Of a search: about 900 tokens of the tiny tokenizer."""


@dataclass(frozen=True)
class SubsetCount:
    """Different digits, and the sum that is asked for."""

    numbers: tuple[int, ...]
    target: int

    @property
    def question(self) -> str:
        """The text of the problem."""
        return f"How many subsets of {' '.join(map(str, self.numbers))} sum to {self.target}?"

    @property
    def answer(self) -> int:
        """The number of subsets, counted without a search."""
        ways = [1] + [0] * self.target
        for number in self.numbers:
            for total in range(self.target, number - 1, -1):
                ways[total] += ways[total - number]
        return ways[self.target]


def draw_subset_count(rng: random.Random, steps: int) -> SubsetCount:
    """Draw `steps` numbers, and a sum that at least one subset has and that is found in time.

    Raises:
        ValueError: If there are not so many digits.
    """
    if steps > MOST_NUMBERS:
        raise ValueError(f"max_steps: subsets have at most {MOST_NUMBERS} numbers, got {steps}")
    while True:  # a sum of one number is found in time, so this ends
        numbers = rng.sample(range(1, MOST_NUMBERS + 1), steps)
        some = rng.sample(numbers, rng.randint(1, max(1, steps - 1)))
        drawn = SubsetCount(tuple(numbers), sum(some))
        if sum(1 for _ in _nodes(drawn, rng=random.Random(0))) <= MOST_LINES:
            return drawn


def search(
    problem: SubsetCount,
    rng: random.Random,
    *,
    slip_rate: float = 0.0,
    prune_rate: float = 0.0,
    early_stop_rate: float = 0.0,
) -> str:
    """Write the search down, with imperfections at the given rates.

    Args:
        problem: What to count.
        rng: Draws the imperfections.
        slip_rate: Probability that the last digit of a line's sum is drawn at random; what follows
            from that node is built on it.
        prune_rate: Probability that a node from which the search should go on is given up.
        early_stop_rate: Probability, after each line, that the count so far is the answer.
    """
    lines, answer = ["exact"], 0
    for line, found in _nodes(problem, rng, slip_rate, prune_rate):
        lines.append(line)
        answer = found
        if rng.random() < early_stop_rate:
            break
    return "\n".join([*lines, THINK_CLOSE, f"\\boxed{{{answer}}}"])


def _nodes(
    problem: SubsetCount, rng: random.Random, slip_rate: float = 0.0, prune_rate: float = 0.0
) -> Iterator[tuple[str, int]]:
    """Yield the line of each node, and how many subsets have been found after it."""
    numbers, target = problem.numbers, problem.target
    left = [*accumulate(reversed(numbers), initial=0)][::-1]  # sum of what follows, by depth
    found = 0
    waiting = [("0", 0), ("1", numbers[0])]  # the last one is next
    while waiting:
        choice, total = waiting.pop()
        if rng.random() < slip_rate:
            total = total // 10 * 10 + rng.randrange(10)
        depth = len(choice)
        if total == target:
            mark, found = "=", found + 1
        elif total > target:
            mark = ">"
        elif total + left[depth] < target:
            mark = "<"
        elif rng.random() < prune_rate:
            mark = rng.choice("<>")
        else:
            mark = "."
            waiting.append((f"{choice}0", total))
            waiting.append((f"{choice}1", total + numbers[depth]))
        yield f"{choice}:{total}{mark}{found}", found
