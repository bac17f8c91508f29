"""Find reward functions by name, interpret their results, and grade batches."""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast, get_args

from lightning.pytorch.utilities import rank_zero_warn

from lightning_vcppo.common import places
from lightning_vcppo.rewards.answers import Answer, AnswerKind, accepted_answers
from lightning_vcppo.rewards.equality import quick_verdict
from lightning_vcppo.rewards.pool import Comparison, GradingPool
from lightning_vcppo.rewards.signatures import Reads, Signature
from lightning_vcppo.rewards.verifier import Style, extract_answer, has_formulas, verify
from lightning_vcppo.settings import GradingSettings

RewardFunction = Callable[..., Any]
"""Function of a response, the gold answer (an int, or a text if it is not an integer) and further
values by name, see `signatures.py`. It returns a reward, which is positive if the response is
correct; or a reward and whether it is. A function of many responses returns a list of these."""


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
        reward: A style ("boxed", ...) for `verify` with it, the import path of a function such as
            "my_package.my_function", or a function. A class is called without arguments, and must
            return a function.

    Raises:
        ValueError: If it cannot be imported, or is not a function that `signatures.py` describes.
    """
    if not isinstance(reward, str):
        return _checked(reward, name_of(reward))
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
    return _checked(function, reward)


def _checked(function: Any, name: str) -> RewardFunction:
    if isinstance(function, type):
        try:
            function = function()
        except TypeError as error:
            raise ValueError(f"reward: {error}; got {name}") from error
    Signature(function, name)
    return cast(RewardFunction, function)


def name_of(reward: str | RewardFunction) -> str:
    """Return the name of a reward function, for messages."""
    if isinstance(reward, str):
        return reward
    return str(getattr(reward, "__qualname__", type(reward).__qualname__))


class Grader:
    """Grades responses with a reward function.

    A style of the verifier compares answers in worker processes; a user's own function is called in
    this process.

    Attributes:
        function: The reward function.
        style: Style of the verifier, if that is the reward function.
        reads: Columns of the data that a user's own function reads.
        pool: The worker processes.
    """

    def __init__(
        self, reward: str | RewardFunction, settings: GradingSettings = GradingSettings()
    ) -> None:
        """Find the reward function, see `load_reward`; workers are started when needed."""
        self.function = load_reward(reward)
        self.style = _style_of(self.function)
        self._signature = Signature(self.function, name_of(reward))
        self.reads = self._signature.reads if self.style is None else Reads()
        self.pool = GradingPool(settings)
        self._seconds: dict[int, float] = {}  # by thread
        self._has_warned = False

    @property
    def seconds(self) -> float:
        """Seconds that the calling thread has spent in `grade_all`, so far."""
        return self._seconds.get(threading.get_ident(), 0.0)

    @property
    def limit_hits(self) -> int:
        """Number of comparisons so far that have reached a worker's limit."""
        return self.pool.limit_hits

    def grade(
        self,
        response: str,
        answer: Answer,
        kind: AnswerKind | None = None,
        others: Mapping[str, Any] = {},
    ) -> Grade:
        """Return the grade of a response, computed in this process.

        Args:
            response: Thinking and answer part.
            answer: The gold answer, or several; a user's own function gets the first.
            kind: Kind of comparison of the verifier, see `is_correct`.
            others: What a user's own function may read besides, by name, see `signatures.py`.

        Raises:
            ValueError: If the function does not return a number, or a number and a truth value, or
                reads what is not there.
        """
        if self.style is None:
            return self._own_grades([(response, answer)], [others])[0]
        places.move_on()
        return self._as_grade(verify(response, answer, style=self.style, kind=kind))

    def grade_all(
        self,
        responses: Sequence[str],
        answers: Sequence[Answer],
        kinds: Sequence[AnswerKind | None] | None = None,
        others: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Grade]:
        """Grade responses, and warn once if they seem to get partial credit that counts as correct.

        Args:
            responses: Thinking and answer parts.
            answers: The gold answer of each response, or several.
            kinds: Kind of comparison of each; None decides by the type of the answer.
            others: What a user's own function may read besides, of each.

        Raises:
            ValueError: As in `grade`, or if a function of many responses does not return a finite
                reward for each.
            RuntimeError: If the workers cannot be started.
        """
        start = time.perf_counter()
        kinds = [None] * len(answers) if kinds is None else kinds
        if self.style is not None:
            golds = list(zip(responses, answers, kinds, strict=True))
            grades = [Grade(1.0 if c else -1.0, c, True) for c in self._verdicts(golds, self.style)]
        else:
            pairs = list(zip(responses, answers, strict=True))
            grades = self._own_grades(pairs, others or [{}] * len(pairs)) if pairs else []
        self._seconds[threading.get_ident()] = self.seconds + time.perf_counter() - start
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

    def _own_grades(
        self, pairs: Sequence[tuple[str, Answer]], others: Sequence[Mapping[str, Any]]
    ) -> list[Grade]:
        """Grade with a user's own function."""
        rows = [
            {**more, "response": response, "answer": accepted_answers(answer)[0]}
            for (response, answer), more in zip(pairs, others, strict=True)
        ]
        grades = [self._as_grade(given) for given in self._signature.call(rows)]
        if self._signature.is_batch:  # from others a rare NaN only makes the update be skipped
            for number, grade in enumerate(grades):
                if not math.isfinite(grade.reward):
                    raise ValueError(
                        f"reward: expected finite numbers from {self._signature.name}; got "
                        f"{grade.reward} for response {number} of {len(grades)}"
                    )
        return grades

    def _as_grade(self, given: Any) -> Grade:
        """Interpret what a function has returned for a response."""
        try:
            reward, correct = given if isinstance(given, tuple) else (given, None)
            reward = float(reward)
            by_sign = correct is None
            return Grade(reward, reward > 0 if by_sign else bool(correct), by_sign)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "reward: expected a number, or (number, whether the response is correct), from "
                f"{self._signature.name}; got {given!r}"
            ) from error

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
