r"""Time the grading of 8,192 responses like those to MATH, with one and with two workers.

Answers are fractions, roots, tuples, intervals, matrices, expressions, equations and integers, half
of them right and written differently from the gold answer, half wrong; each is compared once.
Workers are started and warmed up before the measurement: a run keeps its workers, and the first few
hundred comparisons of each take a third longer, because they fill tables. `worst_answer_s` is the
longest comparison in CPU seconds, in this process, of a sample and of hostile answers.

    python -m benchmarks.grading [--responses 8192]

The last line is JSON: `speedup_2_workers`, `worst_answer_s`, `answers_per_s` (with two workers).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable

from lightning_vcppo.rewards.equality import answers_equal
from lightning_vcppo.rewards.functions import Grader
from lightning_vcppo.settings import GradingSettings

RESPONSES = 8192
SAMPLE = 256
WARM_UP = 512
"""Number of responses for each worker before the measurement."""
THOUGHT = "We expand, collect the terms in $x$ and compare the coefficients on both sides. "

Family = Callable[[random.Random], tuple[str, str, str]]
"""Draws a gold answer, the same answer in another form, and a wrong one."""


def _integer(draw: random.Random) -> tuple[str, str, str]:
    n = draw.randrange(2, 10**6)
    return str(n), f"{n:,}", str(n + 1)


def _fraction(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(1, 10**4), draw.randrange(2, 10**4)
    return rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{2 * a}}}{{{2 * b}}}", rf"\frac{{{a + 1}}}{{{b}}}"


def _root(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 99), draw.randrange(2, 999)
    return rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"{a}\sqrt{{{b + 1}}}"


def _polynomial(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 999), draw.randrange(2, 999)
    return f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})", f"(x+{a})(x+{b + 1})"


def _point(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 999), draw.randrange(3, 999)
    return (
        rf"\left( {a}, \frac{{\pi}}{{{b}}} \right)",
        rf"({a},\pi/{b})",
        rf"({a},\pi/{b + 1})",
    )


def _interval(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 99), draw.randrange(2, 999)
    return (
        rf"(-\infty, {a}] \cup [{a}\sqrt{{{b}}}, \infty)",
        rf"[\sqrt{{{a * a * b}}},\infty)\cup(-\infty,{a}]",
        rf"[\sqrt{{{a * a * b}}},\infty)\cup(-\infty,{a})",
    )


def _matrix(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 999), draw.randrange(2, 999)
    return (
        rf"\begin{{pmatrix}} {a}/{b} \\ \sqrt{{{4 * a}}} \end{{pmatrix}}",
        rf"\begin{{bmatrix}} \frac{{{a}}}{{{b}}} \\ 2\sqrt{{{a}}} \end{{bmatrix}}",
        rf"\begin{{bmatrix}} \frac{{{a}}}{{{b}}} \\ 3\sqrt{{{a}}} \end{{bmatrix}}",
    )


def _equation(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 999), draw.randrange(2, 999)
    return f"y = {a}x + {b}", f"{a}x - y + {b} = 0", f"{a}x - y - {b} = 0"


FAMILIES: tuple[Family, ...] = (
    _integer,
    _fraction,
    _root,
    _polynomial,
    _point,
    _interval,
    _matrix,
    _equation,
)

HOSTILE = (
    r"((9^{99})^{50})^{1}",
    r"9^{4999}",
    "+".join(rf"\sqrt{{{n}}}" for n in range(2, 12)),
    r"(((x+1)(x+2))^{9}(x+3)^{9})^{5}",
    r"\sin(\cos(\tan(\sin(x^{9}))))",
    r"\frac{\frac{1}{x}}{\frac{1}{\sqrt{x}}}",
    "1" * 100,
    ",".join(r"\sqrt{2}x" for _ in range(30)),
)


def responses(count: int, seed: int = 0) -> tuple[list[str], list[str], list[bool]]:
    """Return responses, gold answers, and whether each response is right."""
    draw = random.Random(seed)
    texts, golds, right = [], [], []
    for n in range(count):
        gold, other_form, wrong = FAMILIES[n % len(FAMILIES)](draw)
        right.append(bool(draw.getrandbits(1)))
        answer = other_form if right[-1] else wrong
        texts.append(f"<think>{THOUGHT * 20}</think>{THOUGHT}So it is $\\boxed{{{answer}}}$.")
        golds.append(gold)
    return texts, golds, right


def seconds_with(workers: int, texts: list[str], golds: list[str], right: list[bool]) -> float:
    """Grade with that number of workers, check the verdicts, and return the seconds."""
    grader = Grader("boxed", GradingSettings(workers=workers))
    warm_up, warm_golds, _ = responses(WARM_UP * workers, seed=1)
    grader.grade_all(warm_up, warm_golds)
    start = time.perf_counter()
    grades = grader.grade_all(texts, golds)
    seconds = time.perf_counter() - start
    grader.pool.close()
    wrong = [n for n, grade in enumerate(grades) if grade.correct != right[n]]
    if wrong:
        n = wrong[0]
        raise AssertionError(f"{len(wrong)} wrong verdicts: {texts[n][-80:]!r} for {golds[n]!r}")
    return seconds


def worst_answer_s(texts: list[str], golds: list[str]) -> float:
    """Return the CPU seconds of the slowest comparison in a sample and of hostile answers."""
    answers_equal("x", "2x-x")
    pairs = [
        (text.rpartition(r"\boxed{")[2][:-3], gold) for text, gold in zip(texts, golds, strict=True)
    ]
    pairs = pairs[:SAMPLE] + [(a, b) for a in HOSTILE for b in HOSTILE]
    slowest = 0.0
    for candidate, gold in pairs:
        start = time.process_time()
        answers_equal(candidate, gold)
        slowest = max(slowest, time.process_time() - start)
    return slowest


def main() -> None:
    """Print the seconds and, as the last line, the numbers in JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=RESPONSES)
    count = parser.parse_args().responses
    texts, golds, right = responses(count)
    load = os.getloadavg()[0]
    print(f"{count:,} responses, {os.cpu_count()} cores, load {load:.1f} at the start")
    one, two = (seconds_with(workers, texts, golds, right) for workers in (1, 2))
    print(f"1 worker: {one:.1f} s; 2 workers: {two:.1f} s")
    numbers = {
        "speedup_2_workers": round(one / two, 2),
        "worst_answer_s": round(worst_answer_s(texts, golds), 3),
        "answers_per_s": round(count / two),
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
