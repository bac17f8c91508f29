"""What benchmarks time does run: they use the package's insides, and nobody runs them every day."""

import sys

import pytest
import torch

from benchmarks import (
    critics,
    grading,
    iteration,
    measure,
    overlap,
    plan,
    rollout_sizes,
    update,
)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["W", "W-tail"])
def test_the_iteration_that_is_timed(name, tmp_path):
    work = measure.workload(name, prompts=2, prompt_length=4, max_response_length=16)
    iterate, measured = iteration.our_iteration(work, tmp_path / "actor", reference=name == "W")
    assert iterate() > 0 and iterate() > 0
    assert name == "W-tail" or measured.tokens == [32, 32]  # on W no response ends by itself
    assert all(part > 0 for parts in measured.parts for part in parts.values())


@pytest.mark.thorough
def test_both_updates_that_are_compared_end_alike():
    work = measure.workload("W-tail")
    rollout = update.random_rollout(4, 8, 16, work.config.vocab_size, stop=1 / 8)
    results = update.run("small", work.model(), rollout, max_tokens=64, repeats=1)
    assert results["speedup"] > 0


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_phases_whose_memory_is_planned(tmp_path, monkeypatch):
    monkeypatch.setitem(plan.WORKLOADS, "small", plan.Sizes(2, 8, 8, 64))
    torch.manual_seed(0)
    measure.write_actor(tmp_path / "actor", measure.actor_fields("model/tiny_qwen2"))
    bench = plan.fit(str(tmp_path / "actor"), "small", rollouts=1)
    assert (
        bench.peaks.keys()
        == plan.plan_memory(plan.planned(str(tmp_path / "actor"), "small")).keys()
    )
    assert min(bench.took.values()) > 0


def test_the_responses_that_are_graded_get_their_verdicts() -> None:
    texts, golds, right = grading.responses(2 * len(grading.FAMILIES))
    assert any(right) and not all(right)
    assert grading.seconds_with(0, texts, golds, right) > 0
    with pytest.raises(AssertionError, match="wrong verdicts"):
        grading.seconds_with(0, texts, golds, [not r for r in right])


@pytest.mark.thorough
def test_the_critics_whose_updates_are_timed():
    work = measure.workload("W-tail")
    rollout = update.random_rollout(4, 8, 16, work.config.vocab_size, stop=1 / 8)
    found = {kind: critics.measure(kind, work.model(), rollout, 1) for kind in critics.KINDS}
    assert all(result["update"] > 0 for result in found.values())
    weights = {kind: result["weights"] for kind, result in found.items()}
    assert 0 == weights["none"] < weights["side"] == weights["together"]


@pytest.mark.thorough
def test_rollouts_of_set_times_overlap(tmp_path):
    measure.write_actor(tmp_path / "actor", measure.actor_fields("model/tiny_qwen2"))
    times = {"sample_s": (0.2,), "train_s": 0.2, "rollouts": 2}
    seconds, share = overlap.run(str(tmp_path / "actor"), 0, **times)
    assert seconds > 0.4 and share < 0.01
    seconds, share = overlap.run(str(tmp_path / "actor"), 1, **times)
    assert seconds > 0.2 and share > 0.1


def test_the_stored_responses_that_are_read(tmp_path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(rollout_sizes.lines(40)))
    measured = rollout_sizes.measure(file)
    assert (measured["responses"], measured["prompts"]) == (40, 5)
    assert min(measured["rate"], measured["store_rate"], measured["json_rate"]) > 0
