"""Split problems into training and evaluation, without near-duplicates between them.

Near-duplicates have equal fingerprints: a copy of a problem in another data set differs in
spaces, figures and instructions.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable

from lightning_vcppo.common.errors import require
from lightning_vcppo.data.problem import Problem

_FIGURE = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.?!\n])")
_HOW_TO_ANSWER = re.compile(r"\\boxed|step by step|final answer|answer:", re.IGNORECASE)
_DIGIT = re.compile("[0-9]")
_IGNORED = re.compile(r"[^\w+\-*/^=<>]|_")


def fingerprint(text: str) -> str:
    """Return the text that near-duplicates share: letters, digits and operators of the question.

    Case, spaces, punctuation, LaTeX's brackets, figures and sentences on how to answer are removed
    (copies of a data set often add them); digits and + - * / ^ = < > are kept, because a change of
    them makes another problem.
    """
    sentences = _SENTENCE_END.split(_FIGURE.sub("", text))
    question = (s for s in sentences if _DIGIT.search(s) or not _HOW_TO_ANSWER.search(s))
    return _squash("".join(question)) or _squash(text)


def _squash(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    return _IGNORED.sub("", text)


def problem_fingerprint(problem: Problem) -> str:
    """Return the fingerprint of a question with the turns before it, without the system's."""
    turns = [text for role, text in problem.context if role != "system"]
    return fingerprint("\n".join([*turns, problem.problem]))


def without_duplicates_of(
    evaluated: Iterable[Problem], train: list[Problem]
) -> tuple[list[Problem], int]:
    """Return the training problems without near-duplicates among the evaluated ones.

    Args:
        evaluated: Problems of all evaluation sets.
        train: Training problems.

    Returns:
        The remaining problems, and how many of them are near-duplicates of an earlier one.
    """
    known = {problem_fingerprint(problem) for problem in evaluated}
    prints = [problem_fingerprint(problem) for problem in train]
    kept = [place for place, print_ in enumerate(prints) if print_ not in known]
    copies = len(kept) - len({prints[place] for place in kept})
    return [train[place] for place in kept], copies


def copies_among(problems: Iterable[Problem]) -> int:
    """Return the number of problems that are near-duplicates of an earlier one."""
    prints = [problem_fingerprint(problem) for problem in problems]
    return len(prints) - len(set(prints))


def set_aside(pool: list[Problem], size: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Return some problems of a pool to evaluate on, and the others.

    Args:
        pool: All problems.
        size: Number of problems to evaluate on.
        seed: Seed of the choice.

    Raises:
        ValueError: If none would remain for training.
    """
    require(
        len(pool) > size,
        f"val_size: {size} of {len(pool)} problems leaves none to train on; lower it, or give "
        "--data.val_path",
    )
    shuffled = list(pool)
    random.Random(f"{seed}/split").shuffle(shuffled)
    return shuffled[:size], shuffled[size:]
