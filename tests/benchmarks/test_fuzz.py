"""A small share of `python -m benchmarks.stress.fuzz`: hostile responses for the verifier."""

import signal

import pytest

from benchmarks.stress import fuzz
from lightning_vcppo.rewards import verifier


@pytest.mark.parametrize("inputs", [500, pytest.param(2000, marks=pytest.mark.thorough)])
def test_no_hostile_response_crashes_the_verifier_or_is_paid_for_a_guess(inputs):
    found = fuzz.examine(1, range(inputs))
    assert found.messages == []
    assert found.inputs == inputs
    assert found.slowest_s < 2.0


def test_an_input_is_the_same_text_whatever_ran_before():
    assert fuzz.invent(3, 41) == fuzz.invent(3, 41)
    assert len({fuzz.invent(3, i) for i in range(300)}) > 290
    assert fuzz.invent(3, 41) != fuzz.invent(4, 41)


def test_a_crash_a_violation_and_a_hang_are_found_and_the_rest_is_tried(monkeypatch):
    def verify(text, gold, style):
        if text == fuzz.invent(0, 2):
            raise MemoryError("too much")
        if text == fuzz.invent(0, 4):
            signal.raise_signal(signal.SIGVTALRM)  # as when its time is over
        return real(text, gold, style=style) if text != fuzz.invent(0, 6) else 0.5

    real = verifier.verify
    monkeypatch.setattr(verifier, "verify", verify)
    found = fuzz.guarded(0, 0, 8)
    assert (found.inputs, found.crashes, found.hangs, found.violations) == (8, 1, 1, 1)
    assert [message.split(":")[0] for message in found.messages] == ["2", "4", "6"]
