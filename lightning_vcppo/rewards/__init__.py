"""From a response to its reward: the one scorer of training and of evaluation."""

from lightning_vcppo.rewards.functions import Grader
from lightning_vcppo.rewards.shaping import overlong_penalty
from lightning_vcppo.rewards.verifier import answers_equal, extract_answer, is_correct, verify

__all__ = [
    "Grader",
    "answers_equal",
    "extract_answer",
    "is_correct",
    "overlong_penalty",
    "verify",
]
