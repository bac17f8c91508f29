"""Rewards that read columns of the data: the same in one process, in two, and after a resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_vcppo.callbacks import CriticCalibration
from lightning_vcppo.rollouts.rollout import Rollout, join
from lightning_vcppo.settings import EngineSettings, PolicySettings
from tests.support.forks import run_ranks
from tests.support.tiny_runs import ROLLOUTS, TINY, run_program
from tests.support.training import SAMPLING, SaveAfter, fit, make_module

TRUNCATE = PolicySettings(importance_correction="truncate")


def single(
    response: str, answer: int, *, problem: str, key: int, finished: bool, response_ids: list[int]
) -> float:
    """Depend on everything, and check that the column belongs to the problem."""
    assert problem == f"What is {key} + 30?" and answer == key + 30 and response_ids
    return 1.0 if (sum(response_ids) + key + finished) % 2 else -1.0


def many(
    responses: list[str],
    answers: list[int],
    *,
    problems: list[str],
    key: list[int],
    finished: list[bool],
    response_ids: list[list[int]],
) -> list[float]:
    """Do the same for many responses."""
    rows = zip(responses, answers, problems, key, finished, response_ids, strict=True)
    names = ("problem", "key", "finished", "response_ids")
    return [single(r, a, **dict(zip(names, row, strict=True))) for r, a, *row in rows]


async def waiting(response: str, answer: int, **columns: int) -> float:
    """Wait for nothing."""
    return float(columns["key"] == answer - 30)


@pytest.fixture
def problems(tmp_path: Path) -> str:
    path = tmp_path / "problems.jsonl"
    rows = [{"problem": f"What is {i} + 30?", "answer": i + 30, "key": i} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def module_of(actor, name="many", **changes):
    """Return a module that keeps groups and unfinished responses from step to step."""
    sampling = replace(SAMPLING, dynamic_sampling=True)
    engine = EngineSettings(partial_length=4)
    settings = {"sampling": sampling, "engine": engine, "policy": TRUNCATE}
    return make_module(actor, reward=f"{__name__}.{name}", **settings | changes)


def same(ours, theirs) -> None:
    assert [rollout is None for rollout in ours] == [rollout is None for rollout in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None:
            assert mine.problems == other.problems
            assert torch.equal(mine.scores_B, other.scores_B)


def test_a_run_resumes_bit_for_bit_and_batches_are_as_single_responses(
    tiny_actor, problems, tmp_path
):
    saved = tmp_path / "saved.ckpt"
    whole = fit(module_of(tiny_actor), 8, SaveAfter(4, saved), path=problems)
    state = torch.load(saved, weights_only=True)
    assert state["unfinished"]["waiting"][0][0]["problem"][-1].keys() == {"key"}
    assert sum(rollout is not None for rollout in whole.rollouts) >= 3
    resumed = fit(module_of(tiny_actor), 8, path=problems, ckpt_path=saved)
    same(resumed.rollouts, whole.rollouts[4:])
    assert torch.equal(resumed.actors[-1], whole.actors[-1])
    assert torch.equal(resumed.critics[-1], whole.critics[-1])
    alone = fit(module_of(tiny_actor, "single"), 8, path=problems)
    assert torch.equal(alone.actors[-1], whole.actors[-1])


def as_rank(actor, problems, directory):
    """Train on each of two processes."""
    recorder = fit(module_of(actor), 8, path=problems, devices=2, strategy="ddp")
    rollouts = [None if r is None else r.to_plain() for r in recorder.rollouts]
    torch.save(rollouts, directory / f"{recorder.trainer.global_rank}.pt")


@pytest.mark.thorough
def test_two_processes_grade_what_one_does(tiny_actor, problems, tmp_path):
    ranks = (as_rank, tiny_actor, problems, tmp_path)
    assert run_ranks(*ranks, ranks=2, logs=tmp_path / "logs")
    parts = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    together = [
        None if both[0] is None else join([Rollout.from_plain(part) for part in both])
        for both in parts
    ]
    same(together, fit(module_of(tiny_actor), 8, path=problems).rollouts)


@pytest.mark.parametrize("ahead", [0, 1])
def test_audits_and_rollouts_ahead_have_the_columns(tiny_actor, problems, ahead):
    name = "transformers_copy" if ahead else "transformers"
    engine = EngineSettings(name=name, rollouts_ahead=ahead)
    module = module_of(tiny_actor, sampling=SAMPLING, engine=engine)
    audit = CriticCalibration(audit_every=1, audit_prefixes=2, audit_continuations=2)
    record = fit(module, 2, audit, path=problems)
    assert {*record.rollouts[1].problems[0].columns} == {"key"}


def test_evaluation_files_have_the_columns_and_can_be_graded_again(
    tiny_actor, problems, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = [*TINY, f"--model.actor={tiny_actor}", f"--data.val_path={problems}"]
    run_program("validate", *arguments, f"--model.reward={__name__}.waiting", "--loggers=[]")
    (file,) = Path("runs/default/evaluation").glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["columns"] for record in records] == [{"key": i} for i in range(40)]
    run_program("regrade", file, f"--reward={__name__}.waiting")
    assert "avg@1 100.00 % (written: 100.00 %)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_program("regrade", file, f"--reward={__name__}.single")
    assert "reads 'response_ids', which these responses do not have" in capsys.readouterr().err


@pytest.mark.parametrize("path", [None, "problems"])
def test_a_missing_column_ends_the_run_before_a_model_is_loaded(
    path, tiny_actor, problems, monkeypatch, capsys
):
    def load(*arguments):
        raise AssertionError

    monkeypatch.setattr("lightning_vcppo.models.loading.load_actor", load)
    arguments = [*ROLLOUTS, f"--model.actor={tiny_actor}", f"--model.reward={__name__}.rare"]
    arguments += [f"--data.path={problems}"] if path else []
    with pytest.raises(SystemExit) as end:
        run_program("fit", *arguments)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    there = "problems.jsonl (it has problem, answer, key)" if path else "generated problems (it h"
    assert end.value.code == 2
    assert f"reward: {__name__}.rare reads 'rarity', which is no column of {there}" in said


def rare(response: str, answer: int, rarity: int) -> float:
    """Read what there is not."""
    return rarity
