"""What docs/verifier.md says of equality is so."""

import re
from itertools import permutations
from pathlib import Path

from lightning_vcppo.rewards.equality import answers_equal

PAGE = Path(__file__).parents[2] / "docs" / "verifier.md"
READ_WHOLE = {
    *("numbers", "roots, constants, functions", "expressions", "several answers", "intervals"),
    *("equations, inequalities", "words", "bases"),
}
"""Rows whose cell of equal forms has nothing but groups, between semicolons, of equal forms."""


def rows_of_the_page() -> list[list[str]]:
    """Return the cells of the page's table on mathematics."""
    table = PAGE.read_text().partition("| form | equal | different |")[2].partition("\n\n")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert {form for form, *_ in cells} >= READ_WHOLE
    return cells


def test_the_page_tells_what_is_equal() -> None:
    compared = 0
    for form, equal, _ in rows_of_the_page():
        for group in equal.split(";") if form in READ_WHOLE else ():
            for ours, gold in permutations(re.findall("`(.+?)`", group), 2):
                if form != "roots, constants, functions" or "`i`" not in group:
                    assert answers_equal(ours, gold), (ours, gold)
                    compared += 1
    assert compared > 50


def test_the_page_tells_what_is_different() -> None:
    pairs = [
        pair
        for _, _, different in rows_of_the_page()
        for pair in re.findall("`([^`]+)` (?:is not|and|not) `([^`]+)`", different)
    ]
    assert len(pairs) > 8
    for ours, gold in pairs:
        assert not answers_equal(ours, gold) and not answers_equal(gold, ours), (ours, gold)
