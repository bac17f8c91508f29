"""Finding subsets: the search is complete, each line is right, flaws come at their rates."""

import random
from collections import Counter
from itertools import combinations, product

import pytest

from lightning_vcppo.data.subset_sums import SubsetSearch, draw_subsets, search

EXAMPLE = SubsetSearch((3, 5, 6, 8, 9, 4), 17)


def draws(count=200, steps=range(5, 9)):
    rng = random.Random(0)
    return [draw_subsets(rng, rng.choice(steps)) for _ in range(count)]


def read(solution):
    """Return choice, sum, mark and tally of each line, and the answer."""
    _, *lines, _, box = solution.splitlines()
    nodes = []
    for line in lines:
        choice, rest = line.split(":")
        place = next(i for i, character in enumerate(rest) if character in ".=<>")
        nodes.append((choice, int(rest[:place]), rest[place], int(rest[place + 1 :])))
    return nodes, int(box.removeprefix("\\boxed{").removesuffix("}"))


def test_the_example_by_hand():
    assert EXAMPLE.question == (
        "The subsets of 3 5 6 8 9 4 that sum to 17: what do their last numbers sum to?"
    )
    # 3+6+8, 3+5+9, 5+8+4, 8+9
    assert EXAMPLE.answer == 8 + 9 + 4 + 9
    lines = search(EXAMPLE, random.Random(0)).splitlines()
    assert lines[:8] == [
        "exact",
        "1:3.0",
        "11:8.0",
        "111:14.0",
        "1111:22>0",
        "1110:14.0",
        "11101:23>0",
        "11100:14.0",
    ]
    found = [line for line in lines if "=" in line]
    assert found == ["11001:17=9", "1011:17=17", "010101:17=21", "00011:17=30"]
    assert lines[-2:] == ["</think>", "\\boxed{30}"]


@pytest.mark.parametrize("steps", range(1, 10))
def test_answers_are_those_of_brute_force(steps):
    for problem in draws(20, [steps]):
        subsets = (c for n in range(1, steps + 1) for c in combinations(problem.numbers, n))
        assert problem.answer == sum(c[-1] for c in subsets if sum(c) == problem.target) >= 1
        assert read(search(problem, random.Random(1)))[1] == problem.answer


def test_no_answer_is_a_good_guess():
    [(_, most)] = Counter(problem.answer for problem in draws(1000)).most_common(1)
    assert most < 100


def test_every_line_is_right_and_no_solution_is_pruned():
    for problem in draws(40):
        nodes, answer = read(search(problem, random.Random(0)))
        found, cut, last = 0, set(), (-1,)
        for choice, total, mark, tally in nodes:
            taken = [n for n, bit in zip(problem.numbers, choice, strict=False) if bit == "1"]
            left = sum(problem.numbers[len(choice) :])
            assert total == sum(taken)
            verdicts = {
                "=": total == problem.target,
                ">": total > problem.target,
                "<": total + left < problem.target,
            }
            assert verdicts.get(mark, not any(verdicts.values()))
            if mark == "=":
                found += taken[-1]
            assert tally == found
            order = tuple(1 - int(bit) for bit in choice)  # taking comes first, depth first
            assert order > last
            last = order
            if mark != ".":
                cut.add(choice)
        assert found == answer
        # The leaves cover the tree: each complete choice has exactly one of them as its beginning.
        for bits in product("01", repeat=len(problem.numbers)):
            whole = "".join(bits)
            assert sum(whole[:n] in cut for n in range(1, len(whole) + 1)) == 1


def test_a_search_fits_into_a_response():
    lengths = [search(problem, random.Random(0)).count("\n") - 2 for problem in draws()]
    assert max(lengths) <= 80 and min(lengths) < 20


def share_right(**rates):
    rng = random.Random(2)
    problems = draws()
    return sum(read(search(p, rng, **rates))[1] == p.answer for p in problems) / len(problems)


def test_flaws_spoil_answers():
    assert share_right() == 1.0
    for flaw in ("slip_rate", "prune_rate", "early_stop_rate"):
        assert 0.02 < share_right(**{flaw: 0.05}) < 0.8
    assert share_right(early_stop_rate=1.0) < 0.2


def test_flaws_come_at_the_rates_that_were_set():
    rng = random.Random(3)
    pruned = going_on = slips = lines = stopped = solutions = 0
    for problem in draws():
        for choice, total, mark, _ in read(search(problem, rng, prune_rate=0.1))[0]:
            left = sum(problem.numbers[len(choice) :])
            if total < problem.target <= total + left:
                going_on += 1
                pruned += mark in "<>"
        value = {"": 0}
        for choice, total, _, _ in read(search(problem, rng, slip_rate=0.1))[0]:
            number = problem.numbers[len(choice) - 1] if choice[-1] == "1" else 0
            slips += total != value[choice[:-1]] + number
            value[choice] = total
            lines += 1
        nodes, _ = read(search(problem, rng, early_stop_rate=0.1))
        stopped += len(nodes) == 1
        solutions += 1
    assert pruned / going_on == pytest.approx(0.1, abs=0.02)
    assert slips / lines == pytest.approx(0.09, abs=0.02)  # one in ten draws the right digit
    assert stopped / solutions == pytest.approx(0.1, abs=0.06)


def test_there_are_nine_digits():
    with pytest.raises(ValueError, match="at most 9 numbers, got 10"):
        draw_subsets(random.Random(0), 10)
