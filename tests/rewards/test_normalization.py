"""Ways of writing that are read as one before answers are compared."""

import pytest

from lightning_vcppo.rewards.equality import answers_equal


@pytest.mark.parametrize(
    ("ours", "gold"),
    [
        (r"0.\overline{3}", "1/3"),
        (r"-0.1\overline{6}", r"-\frac16"),
        ("1 1/2", "3/2"),
        (r"1.5 \cdot 10^{-3}", "0.0015"),
        ("0.5x", r"\frac{x}{2}"),
        ("(1{,}234, 5)", "(1234, 5)"),
        (r"10\text{ m/s}", "10"),
        ("5 km/h", "5"),
        ("\u221a12", r"2\sqrt3"),
        ("2\u221a(3)", r"2\sqrt3"),
        ("2\u03c0", r"2\pi"),
        ("\u03c0/2", r"\frac{\pi}{2}"),
        ("(\u2212\u221e, 5]", r"(-\infty, 5]"),
        ("3 \u00d7 10^2", "300"),
        (r"\varnothing", r"\{\}"),
        ("\u2205", r"\emptyset"),
        (r"x \in \mathbb{R}", r"(-\infty, \infty)"),
        ("5, 5", "5"),
        ("1/2 or 0.5", "1/2"),
    ],
)
def test_further_ways_of_writing_are_equal_in_both_directions(ours, gold):
    assert answers_equal(ours, gold)
    assert answers_equal(gold, ours)


@pytest.mark.parametrize(
    ("ours", "gold"),
    [
        (r"0.\overline{3}", "0.3"),
        (r"0.\overline{}", "0"),
        ("1 1/0", "1"),
        ("1 1", "11"),
        ("5, 6", "5"),
        (r"5\text{ k/s}", "5"),
        (r"5\text{/x}", "5"),
        ("0.3333x", r"\frac{x}{3}"),
        ("(1,234, 5)", "(1234, 5)"),
        (r"\mathbb{R}", r"[-\infty, \infty)"),
    ],
)
def test_what_looks_like_them_is_different(ours, gold):
    assert not answers_equal(ours, gold)
    assert not answers_equal(gold, ours)
