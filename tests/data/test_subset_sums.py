"""Finding subsets: searches are complete, lines follow from the one before, flaws have rates."""

import random
import re
from collections import Counter
from itertools import combinations, pairwise

import pytest

from lightning_vcppo.data.subset_sums import SubsetSearch, draw_subsets, search

EXAMPLE = SubsetSearch((3, 5, 6, 8, 9), 17)


def draws(count=200, steps=range(4, 7)):
    rng = random.Random(0)
    return [draw_subsets(rng, rng.choice(steps)) for _ in range(count)]


def read(solution):
    """Return states, numbers, rest, number, what happens and found of each line, and the answer."""
    _, *lines, _, box = solution.splitlines()
    nodes = []
    for line in lines:
        state, rest, number, happens, found = re.fullmatch(
            r"((?:[-+.]\d)+):(\d\d),(\d)([-+<=])(\d{3,})", line
        ).groups()
        numbers = tuple(map(int, state[1::2]))
        nodes.append((state[::2], numbers, int(rest), int(number), happens, int(found)))
    return nodes, int(box.removeprefix("\\boxed{").removesuffix("}"))


def subsets(problem):
    """Return the subsets in the order of the search: their places, in alphabetical order."""
    places = range(len(problem.numbers))
    chosen = (c for size in range(1, len(places) + 1) for c in combinations(places, size))
    return sorted(c for c in chosen if sum(problem.numbers[i] for i in c) == problem.target)


def test_the_example_by_hand():
    assert EXAMPLE.question == "The last numbers of the subsets of 3 5 6 8 9 with sum 17, in order?"
    # 3+5+9, 3+6+8, 8+9
    assert EXAMPLE.answer == 989
    lines = search(EXAMPLE, random.Random(0)).splitlines()
    assert lines[:7] == [
        "exact",
        ".3.5.6.8.9:17,3+000",
        "+3.5.6.8.9:14,5+000",
        "+3+5.6.8.9:09,6+000",
        "+3+5+6.8.9:03,8-000",
        "+3+5+6-8.9:03,6<000",
        "+3+5-6.8.9:09,8+000",
    ]
    assert [line for line in lines if "=" in line] == [
        "+3+5-6-8+9:00,9=009",
        "+3-5+6+8.9:00,8=098",
        "-3-5-6+8+9:00,9=989",
    ]
    assert lines[-3:] == ["-3-5-6-8.9:17,0<989", "</think>", "\\boxed{989}"]


@pytest.mark.parametrize("steps", range(1, 10))
def test_answers_are_those_of_brute_force(steps):
    for problem in draws(10, [steps]):
        found = [problem.numbers[c[-1]] for c in subsets(problem)]
        assert len(found) >= (2 if steps > 2 else 1)
        assert problem.answer == int("".join(map(str, found)))
        assert read(search(problem, random.Random(1)))[1] == problem.answer


def test_no_answer_is_a_good_guess():
    [(_, most)] = Counter(problem.answer for problem in draws(1000, [5])).most_common(1)
    assert most < 40


def test_each_line_follows_from_the_one_before_alone():
    for problem in draws(40):
        nodes, answer = read(search(problem, random.Random(0)))
        first, *_, last = nodes
        assert first[:3] == ("." * len(problem.numbers), problem.numbers, problem.target)
        assert last[3:] == (0, "<", answer) and "+" not in last[0]
        for before, (states, numbers, rest, *_) in pairwise(nodes):
            old, same, old_rest, number, happens, _ = before
            assert numbers == same == problem.numbers
            place = numbers.index(number)
            if happens in "+-":
                assert old.index(".") == place
                assert (happens == "+") == (number <= old_rest)
                assert states == old[:place] + happens + old[place + 1 :]
                assert rest == old_rest - (number if happens == "+" else 0)
            else:
                assert old.rindex("+") == place
                assert (happens == "=") == (old_rest == 0)
                assert states == old[:place] + "-" + "." * (len(old) - place - 1)
                assert rest == old_rest + number
        tallies = [node[5] for node in nodes]
        for (*_, number, happens, found), before in zip(nodes, [0, *tallies], strict=False):
            assert found == (10 * before + number if happens == "=" else before)


def test_no_subset_is_missed_and_the_rest_is_that_of_the_sum():
    for problem in draws(40):
        nodes, _ = read(search(problem, random.Random(0)))
        found = []
        for states, numbers, rest, _, happens, _ in nodes:
            taken = tuple(place for place, state in enumerate(states) if state == "+")
            assert rest == problem.target - sum(numbers[place] for place in taken)
            found += [taken] if happens == "=" else []
        assert found == subsets(problem)


def test_a_search_fits_into_a_response():
    lengths = [search(problem, random.Random(0)).count("\n") - 2 for problem in draws(steps=[5])]
    assert max(lengths) <= 20 and min(lengths) < 12


def share_right(**rates):
    rng = random.Random(2)
    problems = draws()
    return sum(read(search(p, rng, **rates))[1] == p.answer for p in problems) / len(problems)


def test_flaws_spoil_answers():
    assert share_right() == 1.0
    for flaw in ("slip_rate", "prune_rate", "early_stop_rate"):
        assert 0.02 < share_right(**{flaw: 0.1}) < 0.8
    assert share_right(early_stop_rate=1.0) < 0.2


def test_flaws_come_at_the_rates_that_were_set():
    rng = random.Random(3)
    pruned = fitting = slips = lines = stopped = solutions = 0
    for problem in draws():
        for _, _, rest, number, happens, _ in read(search(problem, rng, prune_rate=0.1))[0]:
            if happens in "+-" and number <= rest:
                fitting += 1
                pruned += happens == "-"
        nodes, _ = read(search(problem, rng, slip_rate=0.1))
        for (*_, before, number, happens, _), (_, _, rest, *_) in pairwise(nodes):
            slips += rest != before + {"+": -number, "-": 0}.get(happens, number)
            lines += 1
        nodes, _ = read(search(problem, rng, early_stop_rate=0.1))
        stopped += len(nodes) == 1
        solutions += 1
    assert pruned / fitting == pytest.approx(0.1, abs=0.02)
    assert slips / lines == pytest.approx(0.09, abs=0.02)  # one in ten draws the right digit
    assert stopped / solutions == pytest.approx(0.1, abs=0.06)


def test_a_slip_never_keeps_the_search_from_ending():
    rng = random.Random(4)
    for problem in draws(100):
        nodes, _ = read(search(problem, rng, slip_rate=0.5))
        assert nodes[-1][3:5] == (0, "<")


def test_there_are_nine_digits():
    with pytest.raises(ValueError, match="at most 9 numbers, got 10"):
        draw_subsets(random.Random(0), 10)
