r"""Find the subsets of some numbers that have a given sum, by depth-first search with pruning.

"The subsets of 3 5 6 8 9 4 that sum to 17: what do their last numbers sum to?" is solved node by
node, one line each:

    exact
    1:3.0
    11:8.0
    111:14.0
    1111:22>0
    1110:14.0
    ...
    </think>
    \boxed{30}

A line has the choice so far (1 takes a number, 0 skips it, in the order of the question), the sum
of the taken numbers, a mark, and the tally: the sum of the last numbers of the subsets found so
far. The mark means:

    .   both choices for the next number, taking it first
    =   the sum is right: one more is found, and the search backtracks
    >   the sum is too large: backtrack
    <   the sum is too small even with all remaining numbers: backtrack

Every error is visible where it is made, but appears in the answer only at the end: the last number
of a wrongly pruned subset is missing in the tally. No answer is right in more than one of fourteen
problems, so that guesses do not pay; the number of subsets would be 1 or 2 in every other one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from lightning_vcppo.data.problem import THINK_CLOSE

MOST_NUMBERS = 9
"""Largest number of numbers: there are nine different digits."""
MOST_LINES = 80
"""Largest number of lines of a search: about 900 tokens of the tiny tokenizer."""


@dataclass(frozen=True)
class SubsetSearch:
    """Different digits, and the target sum."""

    numbers: tuple[int, ...]
    target: int

    @property
    def question(self) -> str:
        """The text of the problem."""
        numbers = " ".join(map(str, self.numbers))
        asked = f"The subsets of {numbers} that sum to {self.target}"
        return f"{asked}: what do their last numbers sum to?"

    @property
    def answer(self) -> int:
        """The sum of the subsets' last numbers, added up without a search."""
        ways = [1] + [0] * self.target
        answer = 0
        for number in self.numbers:
            if number <= self.target:
                answer += number * ways[self.target - number]
            for total in range(self.target, number - 1, -1):
                ways[total] += ways[total - number]
        return answer


def draw_subsets(rng: random.Random, steps: int) -> SubsetSearch:
    """Draw `steps` numbers and a sum of at least one subset, with a search of limited length.

    Raises:
        ValueError: If there are fewer digits than `steps`.
    """
    if steps > MOST_NUMBERS:
        raise ValueError(f"max_steps: subsets have at most {MOST_NUMBERS} numbers, got {steps}")
    while True:  # the search for a single number is short, so this ends
        numbers = rng.sample(range(1, MOST_NUMBERS + 1), steps)
        some = rng.sample(numbers, rng.randint(1, max(1, steps - 1)))
        drawn = SubsetSearch(tuple(numbers), sum(some))
        if sum(1 for _ in _nodes(drawn, rng=random.Random(0))) <= MOST_LINES:
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
        slip_rate: Probability that the last digit of a line's sum is drawn at random; the nodes
            below use that sum.
        prune_rate: Probability that a node with children is wrongly pruned.
        early_stop_rate: Probability, after each line, that the tally so far is the answer.
    """
    lines, answer = ["exact"], 0
    for line, tally in _nodes(problem, rng, slip_rate, prune_rate):
        lines.append(line)
        answer = tally
        if rng.random() < early_stop_rate:
            break
    return "\n".join([*lines, THINK_CLOSE, f"\\boxed{{{answer}}}"])


def _nodes(
    problem: SubsetSearch, rng: random.Random, slip_rate: float = 0.0, prune_rate: float = 0.0
) -> Iterator[tuple[str, int]]:
    """Yield the line of each node, and the tally after it."""
    numbers, target = problem.numbers, problem.target
    left = [*accumulate(reversed(numbers), initial=0)][::-1]  # sum of what follows, by depth
    tally = 0
    waiting = [("0", 0), ("1", numbers[0])]  # the last one is next
    while waiting:
        choice, total = waiting.pop()
        if rng.random() < slip_rate:
            total = total // 10 * 10 + rng.randrange(10)
        depth = len(choice)
        if total == target:
            last = numbers[choice.rindex("1")] if "1" in choice else 0  # 0: a slip, nothing taken
            mark, tally = "=", tally + last
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
        yield f"{choice}:{total}{mark}{tally}", tally
