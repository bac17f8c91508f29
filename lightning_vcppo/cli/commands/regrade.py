"""Run `vcppo regrade`: grade the responses in a file again, to check a run's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning_vcppo.cli.parser import run_function
from lightning_vcppo.common.terminal import printable
from lightning_vcppo.metrics.evaluation import by_set, summarize
from lightning_vcppo.rewards.functions import Grader
from lightning_vcppo.rewards.verifier import extract_answer, has_formulas
from lightning_vcppo.rollouts.records import ResponseRecord, read_records


def main(arguments: Sequence[str]) -> None:
    """Run `vcppo regrade`.

    Args:
        arguments: Arguments after the command's name.
    """
    run_function(regrade, "regrade", arguments)


def regrade(file: str, reward: str = "lightning_vcppo.rewards.verify") -> list[ResponseRecord]:
    """Grade the responses in a file again, and print both accuracies and all differences.

    Args:
        file: Graded responses, `evaluation/*.jsonl` of a run or the output of `vcppo predict`.
        reward: A style of the verifier, or the import path of a reward function.

    Returns:
        The records with the new verdicts.

    Raises:
        ValueError: If the file has no responses, or rows of another form.
    """
    grader = Grader(reward)
    records = read_records(Path(file))
    if not records:
        raise ValueError(f"{file}: no responses")
    grades = grader.grade_all(
        [record.response for record in records],
        [record.gold for record in records],
        [record.answer_kind for record in records],
        [record.others for record in records],
    )
    again = [
        replace(record, prediction=_prediction(record), correct=grade.correct)
        for record, grade in zip(records, grades, strict=True)
    ]
    written = by_set(records)
    for name, of_set in by_set(again).items():
        before, now = summarize(written[name]), summarize(of_set)
        was, is_now = (100 * summary.rates["accuracy"].value for summary in (before, now))
        print(f"{printable(name or file)}: avg@{now.k} {is_now:.2f} % (written: {was:.2f} %)")
    for old, new in zip(records, again, strict=True):
        if old.correct != new.correct:
            verdict = "right" if new.correct else "wrong"
            print(
                f"{printable(new.source)}, sample {new.sample}: now {verdict} "
                f"({printable(str(new.prediction))}; the answer is {new.answer})"
            )
    return again


def _prediction(record: ResponseRecord) -> str | None:
    formulas = has_formulas(record.gold, record.answer_kind)
    return extract_answer(record.response, formulas=formulas)
