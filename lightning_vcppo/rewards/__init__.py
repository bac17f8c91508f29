"""Compute the reward of a response: the only scorer of training and evaluation."""

from typing import TYPE_CHECKING

from lightning_vcppo.common.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_vcppo.rewards.answers import AnswerKind
    from lightning_vcppo.rewards.equality import answers_equal, group_equal
    from lightning_vcppo.rewards.functions import Grader
    from lightning_vcppo.rewards.shaping import overlong_penalty
    from lightning_vcppo.rewards.verifier import extract_answer, is_correct, verify

__all__ = [
    "AnswerKind",
    "Grader",
    "answers_equal",
    "extract_answer",
    "group_equal",
    "is_correct",
    "overlong_penalty",
    "verify",
]

_HOME = {
    "AnswerKind": "answers",
    "Grader": "functions",
    "answers_equal": "equality",
    "extract_answer": "verifier",
    "group_equal": "equality",
    "is_correct": "verifier",
    "overlong_penalty": "shaping",
    "verify": "verifier",
}

__getattr__ = lazy_exports(__name__, _HOME)  # a worker compares answers without importing torch
