"""Generated problems: right answers, and imperfections at the rates that were asked for."""

import re
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.data.generator import FAMILIES, Operation, ProblemSettings, generate_problems
from lightning_vcppo.rewards.verifier import is_correct


def evaluate(question: str) -> int | str:
    """Answer a question of any family by ordinary arithmetic: the digit-wise working's oracle."""
    if match := re.fullmatch(r"Find ([0-9+/ ]+) as a fraction in lowest terms\.", question):
        total = sum(Fraction(term) for term in match[1].split(" + "))
        return rf"\frac{{{total.numerator}}}{{{total.denominator}}}"
    if match := re.fullmatch(
        r"A sequence has a_1 = (\d+) and a_\(n\+1\) = (\d+) \* a_n \+ (\d+)\. "
        r"Find the remainder when a_(\d+) is divided by 1000\.",
        question,
    ):
        term, factor, shift, last = map(int, match.groups())
        for _ in range(last - 1):
            term = factor * term + shift
        return term % 1000
    if match := re.fullmatch(
        r"Start at (\d+) and count (\d+) up\. Which number is reached, modulo 1000\?", question
    ):
        return (int(match[1]) + int(match[2])) % 1000
    if match := re.fullmatch(r"What do the digits (\d+) sum to\?", question):
        return sum(map(int, match[1]))
    if match := re.fullmatch(
        r"The last numbers of the subsets of ([0-9 ]+) with sum (\d+), in order\?", question
    ):
        numbers = [int(number) for number in match[1].split()]
        places = range(len(numbers))
        subsets = (c for n in range(1, len(numbers) + 1) for c in combinations(places, n))
        right = [c for c in subsets if sum(numbers[i] for i in c) == int(match[2])]
        return int("".join(str(numbers[c[-1]]) for c in sorted(right)))
    match = re.fullmatch(r"Find the remainder when ([0-9+*^ ]+) is divided by 1000\.", question)
    assert match, question
    return int(eval(match[1].replace("^", "**"))) % 1000


@given(seed=st.integers(0, 10_000), family=st.sampled_from(list(FAMILIES)), steps=st.integers(1, 8))
def test_answers_are_right_and_flawless_solutions_reach_them(seed, family, steps):
    settings = ProblemSettings((family,), min_steps=steps, max_steps=steps)
    (problem,) = generate_problems(1, settings, seed=seed)
    assert problem.answer == evaluate(problem.problem)
    assert problem.source == family
    assert is_correct(f"<think>\n{problem.solution}", problem.answer)


def test_a_longer_list_starts_with_the_shorter_one():
    settings = ProblemSettings(tuple(FAMILIES), max_steps=5)
    assert generate_problems(20, settings, seed=3)[:7] == generate_problems(7, settings, seed=3)
    assert generate_problems(7, settings, seed=3) != generate_problems(7, settings, seed=4)


def test_questions_do_not_depend_on_the_quality_of_solutions():
    flawless = generate_problems(50, ProblemSettings(), seed=0)
    sloppy = generate_problems(50, ProblemSettings(slip_rate=0.3, rough_rate=0.5), seed=0)
    assert [p.problem for p in flawless] == [p.problem for p in sloppy]
    assert [p.solution for p in flawless] != [p.solution for p in sloppy]


def accuracy(**rates: float) -> float:
    problems = generate_problems(1000, ProblemSettings(min_steps=3, max_steps=3, **rates), seed=0)
    return sum(is_correct(p.solution, p.answer) for p in problems) / len(problems)


def test_slips_spoil_answers_at_the_expected_rate():
    # A slip draws a digit at random, so one in ten is no slip; a carry may hide a few more.
    assert accuracy(slip_rate=0.05) == pytest.approx((1 - 0.05 * 0.9) ** 9, abs=0.04)


def test_the_rough_method_shows_in_the_first_token_and_spoils_the_end():
    problems = generate_problems(1000, ProblemSettings(rough_rate=0.3), seed=0)
    rough = [p for p in problems if p.solution.startswith("rough\n")]
    exact = [p for p in problems if p.solution.startswith("exact\n")]
    assert len(rough) + len(exact) == 1000
    assert len(rough) == pytest.approx(300, abs=45)
    assert all(is_correct(p.solution, p.answer) for p in exact)
    assert sum(is_correct(p.solution, p.answer) for p in rough) / len(rough) < 0.05


def test_checking_mends_slips():
    assert accuracy(slip_rate=0.1, check_rate=1.0) == 1.0
    assert accuracy(slip_rate=0.1, check_rate=0.5) > accuracy(slip_rate=0.1) + 0.1


def test_early_stops_shorten_solutions():
    stopped = generate_problems(500, ProblemSettings(early_stop_rate=0.5), seed=0)
    lines = [p.solution.count("\n+") for p in stopped]
    assert min(lines) == 1 and max(lines) == 3
    assert sum(n == 1 for n in lines) == pytest.approx(250, abs=40)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": ["sums"]}, "families: 'sums' is not one of sum, product"),
        ({"families": []}, "families: name at least one"),
        ({"min_steps": 4, "max_steps": 3}, "expected 1 <= min_steps <= max_steps, got 4 and 3"),
        ({"families": ["subsets"], "max_steps": 10}, "at most 9 numbers, got 10"),
        ({"families": ["sum", "addition"], "max_steps": 101}, "at most 100 digits, got 101"),
        ({"slip_rate": 1.5}, r"slip_rate: expected a probability in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ProblemSettings(**settings)


def test_a_line_is_worked_digit_by_digit():
    assert Operation("+", 82).micro_step(47, place=0, carry=0) == ("7+2+0", 9)
    assert Operation("*", 7).micro_step(129, place=1, carry=6) == ("2*7+6", 20)
    assert Operation("*", 7).apply(129) == 903


def workings(**settings):
    """Return the lines of worked sums and short recurrences, with the value before each."""
    families = ("sum", "short_recurrence")
    problems = generate_problems(
        300, ProblemSettings(families, min_steps=6, max_steps=14, **settings), seed=0
    )
    for problem in problems:
        value = int(re.search(r"(?:when|a_1 =) (\d+)", problem.problem)[1])
        lines = problem.solution.splitlines()[1:-2]
        yield list(_follow(value, lines))


def _follow(value, lines):
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        symbol, operand, result = re.fullmatch(r"\??([+*])(\d+):.*>(\d{3})", line).groups()
        exact = value + int(operand) if symbol == "+" else value * int(operand)
        yield line, int(result) == exact % 1000
        if not following.startswith("?"):
            value = int(result)


def test_every_line_of_a_flawless_working_is_right_and_as_many_as_asked_for():
    for lines in workings():
        assert 6 <= len(lines) <= 14
        assert all(right for _, right in lines)


def test_second_workings_slips_and_stops_come_at_their_rates():
    checked = [lines for lines in workings(check_rate=0.25, slip_rate=0.02)]
    first = [right for lines in checked for line, right in lines if line[0] != "?"]
    second = [right for lines in checked for line, right in lines if line[0] == "?"]
    assert len(second) / len(first) == pytest.approx(0.25, abs=0.03)
    assert all(second)
    # Three digits a line, and a slip draws the right digit one time in ten.
    assert 1 - sum(first) / len(first) == pytest.approx(1 - (1 - 0.018) ** 3, abs=0.015)
    stopped = [len(lines) for lines in workings(early_stop_rate=0.1)]
    at_first = sum(n == 1 for n in stopped) / len(stopped)
    assert at_first == pytest.approx(0.1, abs=0.05)


def test_a_count_shows_what_is_left_and_its_rough_method_only_at_the_end():
    def solutions(rough_rate):
        settings = ProblemSettings(("count",), 20, 20, rough_rate=rough_rate)
        return generate_problems(30, settings, seed=0)

    for exact, rough in zip(solutions(0.0), solutions(1.0), strict=True):
        first, *lines, _, box = exact.solution.splitlines()
        assert [int(line[:3]) for line in lines] == list(range(19, -1, -1))
        assert first == "exact" and box == f"\\boxed{{{exact.answer}}}"
        assert rough.solution.splitlines()[:-1] == ["rough", *lines, "</think>"]
        assert not is_correct(rough.solution, rough.answer)


def test_a_fraction_is_in_lowest_terms_and_worked_line_by_line():
    settings = ProblemSettings(("fraction",), 2, 2)
    for problem in generate_problems(50, settings, seed=0):
        numerator, denominator = map(int, re.findall("[0-9]+", str(problem.answer)))
        assert Fraction(numerator, denominator).denominator == denominator > 1
        assert (problem.answer_kind, problem.source) == ("math", "fraction")
        assert not is_correct(f"\\boxed{{{numerator}}}", problem.answer)
        assert is_correct(rf"\boxed{{{2 * numerator}/{2 * denominator}}}", problem.answer)
        for line in problem.solution.splitlines()[1:-2]:
            parts = line.partition(":")[2].partition(";")[0].split("=")
            values = {Fraction(*map(eval, part.split("/", 1))) for part in parts}
            assert len(parts) == 3 and values == {Fraction(line.rpartition(">")[2])}


def test_the_rough_sum_of_fractions_is_wrong():
    settings = ProblemSettings(("fraction",), 1, 4, rough_rate=1.0)
    for problem in generate_problems(50, settings, seed=0):
        assert problem.solution.startswith("rough\n")
        assert not is_correct(problem.solution, problem.answer)


def test_early_answers_come_at_the_rate_that_was_asked_for():
    settings = ProblemSettings(("count",), 30, 30, early_stop_rate=0.06)
    problems = generate_problems(2000, settings, seed=0)
    complete = sum("\n000:" in p.solution for p in problems) / len(problems)
    assert complete == pytest.approx((1 - 0.06) ** 29, abs=0.03)
    assert all(is_correct(p.solution, p.answer) == ("\n000:" in p.solution) for p in problems)
