"""Find reward functions by name, interpret their results, and grade batches."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast, get_args

from lightning.pytorch.utilities import rank_zero_warn

from lightning_vcppo.common import places
from lightning_vcppo.rewards.answers import Answer, AnswerKind, accepted_answers
from lightning_vcppo.rewards.equality import quick_verdict
from lightning_vcppo.rewards.pool import Comparison, GradingPool
from lightning_vcppo.rewards.verifier import Style, extract_answer, has_formulas, verify
from lightning_vcppo.settings import GradingSettings

RewardFunction = Callable[[str, Any], float | tuple[float, bool]]
"""Function of a response and the gold answer (an int, or a text if it is not an integer). It
returns a reward, which is positive if the response is correct; or a reward and whether it is."""


class Grade(NamedTuple):
    """The grade of a response.

    Attributes:
        reward: Reward for training.
        correct: Correctness for accuracy, evaluation and the loss on correct responses.
        by_sign: Whether correctness is the sign of the reward.
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
        ValueError: If it cannot be imported, or cannot be called with two arguments.
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
    """Grades responses with a reward function.

    A style of the verifier compares answers in worker processes; a user's own function is called in
    this process.

    Attributes:
        function: The reward function.
        style: Style of the verifier, if that is the reward function.
        pool: The worker processes.
        seconds: Seconds spent in `grade_all` so far.
    """

    def __init__(
        self, reward: str | RewardFunction, settings: GradingSettings = GradingSettings()
    ) -> None:
        """Find the reward function, see `load_reward`; workers are started when needed."""
        self.function = load_reward(reward)
        self.style = _style_of(self.function)
        self.pool = GradingPool(settings)
        self.seconds = 0.0
        self._has_warned = False

    @property
    def limit_hits(self) -> int:
        """Number of comparisons so far that have reached a worker's limit."""
        return self.pool.limit_hits

    def grade(self, response: str, answer: Answer, kind: AnswerKind | None = None) -> Grade:
        """Return the grade of a response, computed in this process.

        Args:
            response: Thinking and answer part.
            answer: The gold answer, or several; a user's own function gets the first.
            kind: Kind of comparison of the verifier, see `is_correct`.

        Raises:
            ValueError: If the function does not return a number, or a number and a truth value.
        """
        places.move_on()
        given: Any
        if self.style is not None:
            given = verify(response, answer, style=self.style, kind=kind)
        else:
            given = self.function(response, accepted_answers(answer)[0])
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

    def grade_all(
        self,
        responses: Sequence[str],
        answers: Sequence[Answer],
        kinds: Sequence[AnswerKind | None] | None = None,
    ) -> list[Grade]:
        """Grade responses, and warn once if they seem to get partial credit that counts as correct.

        Args:
            responses: Thinking and answer parts.
            answers: The gold answer of each response, or several.
            kinds: Kind of comparison of each; None decides by the type of the answer.

        Raises:
            ValueError: As in `grade`.
            RuntimeError: If the workers cannot be started.
        """
        start = time.perf_counter()
        kinds = [None] * len(answers) if kinds is None else kinds
        golds = list(zip(responses, answers, kinds, strict=True))
        if self.style is not None:
            grades = [Grade(1.0 if c else -1.0, c, True) for c in self._verdicts(golds, self.style)]
        else:
            grades = [self.grade(*gold) for gold in golds]
        self.seconds += time.perf_counter() - start
        self._look_for_partial_credit(grades)
        return grades

    def _verdicts(
        self, golds: Sequence[tuple[str, Answer, AnswerKind | None]], style: Style
    ) -> list[bool]:
        """Decide from the texts if they suffice, and let the workers compare the rest."""
        verdicts: list[bool | None] = []
        comparisons: list[Comparison] = []
        for response, answer, kind in golds:
            formulas = has_formulas(answer, kind)
            candidate = extract_answer(response, style=style, formulas=formulas)
            verdict = candidate is not None and quick_verdict(candidate, answer, kind)
            verdicts.append(verdict)
            if candidate is not None and verdict is None:
                comparisons.append(Comparison(candidate, accepted_answers(answer), kind))
        compared = iter(self.pool.compare(comparisons))
        return [next(compared) if verdict is None else verdict for verdict in verdicts]

    def _look_for_partial_credit(self, grades: Sequence[Grade]) -> None:
        paid = [grade.reward for grade in grades if grade.correct and grade.by_sign]
        if paid and not self._has_warned and max(paid) >= 2 * min(paid):
            self._has_warned = True
            rank_zero_warn(
                f"Rewards of {min(paid):g} and {max(paid):g} both count as correct, for accuracy "
                "and evaluation take a positive reward for that. If the smaller one is partial "
                "credit, have the reward function return (reward, whether it is correct)."
            )


def _style_of(function: RewardFunction) -> Style | None:
    if function is verify:
        return "boxed"
    if isinstance(function, partial) and function.func is verify and not function.args:
        return cast(Style, function.keywords.get("style", "boxed"))
    return None
