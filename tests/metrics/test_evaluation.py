"""Evaluations against brute force, cases worked out by hand, and scores that others published."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from lightning_vcppo.callbacks import AIMEEvaluation
from lightning_vcppo.metrics.evaluation import (
    GROUP_COLUMNS,
    PROBLEM_COLUMNS,
    bootstrap_intervals,
    by_set,
    group_metrics,
    group_table,
    majority_vote,
    pass_at_k,
    problem_table,
    summarize,
)
from lightning_vcppo.rewards.verifier import extract_answer, verify
from lightning_vcppo.rollouts.records import ResponseRecord, read_records
from tests.support.inventing import InventingModule, make_trainer, problems


def record(
    index: int,
    sample: int = 0,
    *,
    prediction: str | None = "7",
    correct: bool = True,
    length: int = 10,
    source: str = "test",
    year: int | None = None,
    level: str | None = None,
    subject: str | None = None,
    evaluation_set: str = "held_out",
) -> ResponseRecord:
    """Make a graded response; one without an answer was truncated."""
    return ResponseRecord(
        index=index,
        sample=sample,
        source=source,
        year=year,
        level=level,
        subject=subject,
        evaluation_set=evaluation_set,
        problem=f"problem {index}",
        answer=7,
        response=f"\\boxed{{{prediction}}}",
        prediction=prediction,
        correct=correct,
        length=length,
        finished=prediction is not None,
    )


@given(st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(data: st.DataObject) -> None:
    outcomes = data.draw(st.lists(st.booleans(), min_size=1, max_size=8))
    k = data.draw(st.integers(1, len(outcomes)))
    subsets = list(combinations(outcomes, k))
    expected = sum(map(any, subsets)) / len(subsets)
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_limits() -> None:
    assert pass_at_k(4, 1, 1) == 0.25  # pass@1 is the accuracy
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
    # Factorials of this size overflow a float; a product of ratios is an independent oracle.
    misses = math.prod((990 - i) / (1000 - i) for i in range(32))
    assert pass_at_k(1000, 10, 32) == pytest.approx(1 - misses, rel=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        (["7", "7", "8"], 1.0),
        (["7", "8", "8"], 0.0),
        (["7", "8"], 0.5),
        (["7", "8", "9"], 1 / 3),
        (["7", "8", "9", "9"], 0.0),
        (["7", "007"], 1.0),  # right however written
        (["7", "08", "8"], 0.0),  # wrong ones are normalised too
        ([None, None, "7"], 1.0),  # no answer, no vote
        ([None, "8"], 0.0),
        ([None], 0.0),
    ],
)
def test_majority_vote_by_hand(predictions: list[str | None], expected: float) -> None:
    correct = [p is not None and int(p) == 7 for p in predictions]
    assert majority_vote(predictions, correct) == pytest.approx(expected)


def test_wrong_answers_that_are_equal_vote_together() -> None:
    right = [False, False, False, True, True]
    assert majority_vote(["1/2", "0.5", r"\frac{2}{4}", "7", "7"], right) == 0
    assert majority_vote(["1/2", "0.4", "(1, 2)", "7", "7"], right) == 1
    assert majority_vote(["1, 2", "2, 1", "(1, 2)", "7", "7"], right) == 0.5


# Summaries


def test_a_summary_by_hand() -> None:
    records = [
        record(0, 0),
        record(0, 1, prediction="8", correct=False, length=30),
        record(1, 0, prediction=None, correct=False, length=50),
        record(1, 1, prediction="9", correct=False),
    ]
    summary = summarize(records)
    assert (summary.problems, summary.k) == (2, 2)
    rates = {name: rate.value for name, rate in summary.rates.items()}
    assert rates == {"accuracy": 0.25, "pass_at_k": 0.5, "maj_at_k": 0.25}  # problem 0 is a tie
    assert summary.response_length == 25
    assert summary.truncation_rate == 0.25


def test_pass_at_is_of_the_powers_of_two() -> None:
    # One right response of 8 on one problem, none on the other: pass@m is m / 8 and 0.
    records = [record(i, n, correct=i == n == 0) for i in range(2) for n in range(8)]
    rates = {name: rate.value for name, rate in summarize(records).rates.items()}
    assert rates.pop("maj_at_k") == 0  # seven wrong ones agree
    assert rates == {"accuracy": 1 / 16, "pass_at_2": 1 / 8, "pass_at_4": 1 / 4, "pass_at_k": 1 / 2}


def test_a_summary_needs_records() -> None:
    with pytest.raises(ValueError, match="at least one response"):
        summarize([])


# Intervals


def test_an_interval_by_hand() -> None:
    # Of two problems, one solved: half the draws of two have one right, a quarter none or both.
    low_M, high_M = bootstrap_intervals(torch.tensor([[1.0], [0.0]]), level=0.6)
    assert (low_M.item(), high_M.item()) == (0.0, 1.0)
    low_M, high_M = bootstrap_intervals(torch.tensor([[1.0], [0.0]]), level=0.4)
    assert (low_M.item(), high_M.item()) == (0.5, 0.5)


def test_an_interval_of_a_mean_is_two_standard_errors_wide() -> None:
    scores_PM = torch.arange(400.0, dtype=torch.float64)[:, None] / 400
    low_M, high_M = bootstrap_intervals(scores_PM, resamples=20_000)
    standard_error = scores_PM.std() / 20
    assert (high_M - low_M).item() / 2 == pytest.approx(1.96 * standard_error.item(), rel=0.03)
    assert (high_M + low_M).item() / 2 == pytest.approx(scores_PM.mean().item(), abs=0.002)


def test_intervals_of_a_binomial_hold_the_truth_as_often_as_they_say() -> None:
    # 60 problems that a policy solves with probability 0.3, 2000 evaluations at once.
    generator = torch.Generator().manual_seed(1)
    solved_PM = (torch.rand(60, 2000, generator=generator) < 0.3).double()
    low_M, high_M = bootstrap_intervals(solved_PM)
    coverage = ((low_M <= 0.3) & (high_M >= 0.3)).double().mean().item()
    assert 0.92 < coverage < 0.97


def test_an_interval_over_problems_covers_the_sampling_of_responses_as_well() -> None:
    # Problems of very different difficulty, four responses each.
    generator = torch.Generator().manual_seed(2)
    chances_PM = torch.rand(60, 1000, generator=generator)
    right_SPM = torch.rand(4, 60, 1000, generator=generator) < chances_PM
    low_M, high_M = bootstrap_intervals(right_SPM.double().mean(0))
    assert ((low_M <= 0.5) & (high_M >= 0.5)).double().mean().item() > 0.92


def test_the_same_scores_have_the_same_interval() -> None:
    scores_PM = torch.rand(30, 2)
    first, again = bootstrap_intervals(scores_PM), bootstrap_intervals(scores_PM)
    assert torch.equal(torch.stack(first), torch.stack(again))
    other = bootstrap_intervals(scores_PM, seed=1)
    assert not torch.equal(torch.stack(first), torch.stack(other))


def test_equal_scores_have_the_exact_interval_of_their_share() -> None:
    low_M, high_M = bootstrap_intervals(torch.tensor([[0.0, 1.0, 0.5, 0.0]] * 3 + [[0, 1, 0.5, 1]]))
    top = 1 - 0.025**0.25  # of 0 of 4
    assert low_M[:2].tolist() == pytest.approx([0, 1 - top])
    assert high_M[:2].tolist() == pytest.approx([top, 1])
    assert 0 < low_M[2] < 0.1 and 0.9 < high_M[2] < 1  # as wide as 2 of 4
    assert (low_M[3], high_M[3]) == (0, 0.75)  # one of four differs: drawn


def test_an_interval_needs_problems() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap_intervals(torch.zeros(0, 1))


# Tables


def test_the_table_by_problem() -> None:
    records = [
        record(3, 0, source="aime24.jsonl:4", year=2024),
        record(3, 1, source="aime24.jsonl:4", year=2024, prediction=None, correct=False, length=30),
    ]
    (row,) = problem_table(records)
    assert dict(zip(PROBLEM_COLUMNS, row, strict=True)) == {
        "set": "held_out",
        "index": 3,
        "source": "aime24.jsonl:4",
        "year": 2024,
        "answer": 7,
        "k": 2,
        "accuracy": 0.5,
        "maj_at_k": 1.0,
        "response_length": 20,
        "truncation_rate": 0.5,
    }


def test_the_table_by_year_and_else_by_source() -> None:
    records = [
        record(0, year=1999),
        record(1, year=1983, correct=False),
        record(2, year=1999, correct=False),
        record(3, source="b.jsonl:3"),
        record(4, source="b.jsonl:4"),
        record(5, source="sum"),
    ]
    rows = [dict(zip(GROUP_COLUMNS, row, strict=True)) for row in group_table(records)]
    shown = [(row["group"], row["problems"], row["accuracy"]) for row in rows]
    assert shown == [("1983", 1, 0), ("1999", 2, 0.5), ("b.jsonl", 2, 1), ("sum", 1, 1)]
    assert (rows[1]["accuracy_low"], rows[1]["accuracy_high"]) == (0, 1)


def test_the_table_by_level_and_subject_and_the_accuracies_that_are_logged() -> None:
    records = [
        record(0, level="5", subject="Algebra", correct=False),
        record(1, level="5", subject="Counting & Probability"),
        record(2, level="10", subject="Algebra"),
        record(3, source="b.jsonl:3"),
    ]
    rows = group_table(records)
    shown = [(by, name, problems) for _, by, name, problems, *_ in rows]
    assert shown == [
        *(("level", "5", 2), ("level", "10", 1)),
        *(("subject", "Algebra", 2), ("subject", "Counting & Probability", 1)),
        ("source", "b.jsonl", 1),
    ]
    assert group_metrics(rows) == {
        **{"by_level/5": 0.5, "by_level/10": 1},
        **{"by_subject/algebra": 0.5, "by_subject/counting_probability": 1},
    }
    assert group_metrics(group_table([record(0, year=2024), record(1, year=2024)])) == {}
    assert group_table([record(i, level=f"{i}.5") for i in range(51)]) == []  # a number of its own


def test_sets_stay_in_order() -> None:
    records = [record(i, evaluation_set=name) for name in "ba" for i in range(2)]
    assert {name: len(of_set) for name, of_set in by_set(records).items()} == {"b": 2, "a": 2}
    assert list(by_set(records)) == ["b", "a"]


# Published outputs


class PublishedModule(InventingModule):
    """Grades responses of other people's models instead of sampling."""

    def __init__(self, outputs: list[dict[str, str]]) -> None:
        super().__init__(k=1)
        self.outputs = outputs

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> list[ResponseRecord]:
        return [self.graded(i) for i in batch.tolist()]

    def graded(self, i: int) -> ResponseRecord:
        output = self.outputs[i]
        return ResponseRecord(
            index=i,
            sample=0,
            source="published",
            problem=output["prompt"],
            answer=int(float(output["gold"])),
            response=output["response"],
            prediction=extract_answer(output["response"]),
            correct=verify(output["response"], output["gold"]) > 0,
            length=len(output["response"]),
            finished=True,
        )


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("aime24_qwen2.5-math-7b", 20.0),
        ("aime24_sky-t1-32b-ckpt133", 40.0),
        ("amc23_qwen2.5-14b-instruct", 65.0),
    ],
)
def test_published_outputs_have_their_published_score(
    name: str, score: float, shared_data: Path, tmp_path: Path
) -> None:
    lines = (shared_data / f"outputs_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    outputs = [json.loads(line) for line in lines]
    trainer: Trainer = make_trainer(tmp_path, AIMEEvaluation())
    trainer.validate(PublishedModule(outputs), problems(len(outputs)), verbose=False)
    metrics = trainer.callback_metrics
    for rate in ("accuracy", "pass_at_k", "maj_at_k"):  # one sample a problem
        assert 100 * float(metrics[f"eval/{rate}"]) == pytest.approx(score)
    assert 100 * metrics["eval/accuracy_low"] < score < 100 * metrics["eval/accuracy_high"]
    written = read_records(tmp_path / "evaluation" / "rollouts_000000.jsonl")
    again = [verify(record.response, record.answer) > 0 for record in written]
    assert again == [record.correct for record in written]
    assert 100 * sum(again) / len(again) == pytest.approx(score)


def copies(rows: list[tuple[int, int]], texts: list[str]) -> list[ResponseRecord]:
    """Return a record for each (row, sample) of a file whose row i holds texts[i]."""
    return [
        ResponseRecord(
            index=row,
            sample=sample,
            source="",
            problem=texts[row],
            answer=1,
            response="",
            prediction=str(row % 4),
            correct=int(texts[row].split()[-1]) < 3,
            length=5 + row % 4,
            finished=True,
        )
        for row, sample in rows
    ]


@pytest.mark.parametrize("repeats", [2, 32])
def test_rows_with_the_same_text_are_samples_of_one_problem(repeats: int) -> None:
    once = [f"Problem {i}" for i in range(6)]
    samples = copies([(i, s) for i in range(6) for s in range(repeats)], once)
    texts = [
        f" Problem  {i}" if n % 2 else f"Problem {i}" for n in range(repeats) for i in range(6)
    ]
    rows = copies([(row, 0) for row in range(6 * repeats)], texts)

    of_samples, of_rows = summarize(samples), summarize(rows)
    assert (of_rows.problems, of_rows.k) == (6, repeats)
    assert of_rows.rates.keys() == of_samples.rates.keys()
    for name in ("accuracy", f"pass_at_{2}" if repeats > 2 else "pass_at_k"):
        assert of_rows.rates[name] == of_samples.rates[name]
    assert len(problem_table(rows)) == 6
    ((_, _, _, problems, k, *_),) = group_table(rows)
    assert (problems, k) == (6, repeats)


def test_problems_without_a_text_are_told_apart_by_their_row() -> None:
    records = [replace(record, problem="") for record in copies([(0, 0), (1, 0)], ["P 1", "P 5"])]
    assert summarize(records).problems == 2
