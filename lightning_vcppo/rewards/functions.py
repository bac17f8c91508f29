"""Reward functions: found by their names, and what they may answer."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast, get_args

from lightning.pytorch.utilities import rank_zero_warn

from lightning_vcppo.common import places
from lightning_vcppo.rewards.verifier import Style, verify

RewardFunction = Callable[[str, int], float | tuple[float, bool]]
"""From a response and the gold answer to a reward, which is positive if the response is correct; or
to a reward and whether it is."""


class Grade(NamedTuple):
    """What a response is worth.

    Attributes:
        reward: To learn from.
        correct: What accuracy, evaluation and the loss on correct responses count.
        by_sign: Whether correctness was read off the reward.
    """

    reward: float
    correct: bool
    by_sign: bool


def load_reward(reward: str | RewardFunction) -> RewardFunction:
    """Return the reward function of the given name.

    Args:
        reward: A style ("boxed", ...) for `verify` with it, the import path of a function of
            (response, answer), such as "my_package.my_function", or such a function.

    Raises:
        ValueError: It cannot be imported, or cannot be called with two arguments.
    """
    if not isinstance(reward, str):
        return _of_two_arguments(reward, repr(reward))
    if reward in get_args(Style):
        return partial(verify, style=cast(Style, reward))
    expected = f"expected one of {', '.join(get_args(Style))} or an import path (module.function)"
    module_name, _, attribute = reward.rpartition(".")
    if not module_name:
        raise ValueError(f"reward: {expected}, got {reward}")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward: {error}; {expected}, got {reward}") from error
    return _of_two_arguments(function, reward)


def _of_two_arguments(function: Any, name: str) -> RewardFunction:
    try:
        inspect.signature(function).bind("response", 0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward: not an f(response, answer): {error}; got {name}") from error
    return cast(RewardFunction, function)


class Grader:
    """A reward function, and the grades that its rewards are."""

    def __init__(self, reward: str | RewardFunction) -> None:
        """Find the reward function, see `load_reward`."""
        self.function = load_reward(reward)
        self._has_warned = False

    def grade(self, response: str, answer: int) -> Grade:
        """Return what the reward function makes of a response.

        Raises:
            ValueError: If it answers with anything but a number, or a number and a truth value.
        """
        places.move_on()
        given: Any = self.function(response, answer)
        try:
            reward, correct = given if isinstance(given, tuple) else (given, None)
            reward = float(reward)
            by_sign = correct is None
            return Grade(reward, reward > 0 if by_sign else bool(correct), by_sign)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "reward: expected a number, or (number, whether the response is correct), from "
                f"the function; got {given!r}"
            ) from error

    def grade_all(self, responses: Sequence[str], answers: Sequence[int]) -> list[Grade]:
        """Grade responses, and say once if they seem to get partial credit that counts as correct.

        Raises:
            ValueError: As in `grade`.
        """
        grades = [self.grade(r, a) for r, a in zip(responses, answers, strict=True)]
        paid = [grade.reward for grade in grades if grade.correct and grade.by_sign]
        if paid and not self._has_warned and max(paid) >= 2 * min(paid):
            self._has_warned = True
            rank_zero_warn(
                f"Rewards of {min(paid):g} and {max(paid):g} both count as correct, for accuracy "
                "and evaluation take a positive reward for that. If the smaller one is partial "
                "credit, have the reward function return (reward, whether it is correct)."
            )
        return grades
