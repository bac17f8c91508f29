r"""Write chain sums with worked solutions: `python -m experiments.smollm2_problems DIRECTORY`.

The text of a problem is from reasoning-gym ("State the final answer to the following arithmetic
problem: 7 + 3 - 2 ... ="); a solution has a line for each operation:

    7+3=10
    10-2=8
    </think>
    \boxed{8}

A problem is kept if no running total is negative, no total before the last equals the answer (so
stopping early is wrong), and no operation occurs twice (so the next one can be found by searching
for the one before it). Solutions for the cold start stop early after each line but the last with a
probability of `EARLY_STOP_RATE`.

It writes `cold_start.jsonl`, `train.jsonl` and `held_out.jsonl`, which have no problem in common.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lightning_vcppo.data.problem import THINK_CLOSE, Problem

SIZES = {"cold_start": 4000, "train": 4000, "held_out": 128}
TERMS = (7, 9)
EARLY_STOP_RATE = 0.2
POOL = 2_000_000
"""Number of problems of reasoning-gym, more than enough; they are generated when needed."""

_OPERATION = re.compile(r"([+-]) (\d+)")


def totals_of(question: str) -> list[tuple[str, int]]:
    """Return the lines that solve a chain sum, such as "7+3=10", and their totals."""
    expression = question.partition(":")[2].removesuffix("=").strip()
    total = int(expression.partition(" ")[0])
    lines = []
    for sign, number in _OPERATION.findall(expression):
        after = total + int(sign + number)
        lines.append((f"{total}{sign}{number}={after}", after))
        total = after
    return lines


def work_out(question: str, early_stop_rate: float, rng: random.Random) -> str:
    """Return a solution, which stops after each line but the last with the given probability."""
    lines = totals_of(question)
    written = next(
        (done for done in range(1, len(lines)) if rng.random() < early_stop_rate), len(lines)
    )
    text = "\n".join(line for line, _ in lines[:written])
    return f"{text}\n{THINK_CLOSE}\n\\boxed{{{lines[written - 1][1]}}}"


def is_kept(question: str) -> bool:
    """Return whether no total is negative, only the last is the answer, and operations differ."""
    totals = [total for _, total in totals_of(question)]
    operations = _OPERATION.findall(question)
    return (
        min(totals) >= 0
        and totals.index(totals[-1]) == len(totals) - 1
        and len(set(operations)) == len(operations)
    )


def problems(seed: int) -> Iterator[Problem]:
    """Yield different problems with worked solutions."""
    import reasoning_gym

    shortest, longest = TERMS
    rows = reasoning_gym.create_dataset(
        "chain_sum", size=POOL, seed=seed, min_terms=shortest, max_terms=longest, max_digits=1
    )
    rng, seen = random.Random(seed), set()
    for row in rows:
        question = row["question"]
        if is_kept(question) and question not in seen:
            seen.add(question)
            solution = work_out(question, EARLY_STOP_RATE, rng)
            yield Problem(question, int(row["answer"]), solution)


def write(directory: Path, seed: int = 0) -> None:
    """Write the three files."""
    directory.mkdir(parents=True, exist_ok=True)
    found = problems(seed)
    for name, size in SIZES.items():
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for p in islice(found, size):
                row = {"problem": p.problem, "answer": p.answer, "solution": p.solution}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.smollm2_problems DIRECTORY")
    write(Path(sys.argv[1]))
