"""Check the responses of runs that sample in parts, whatever samples them."""

from __future__ import annotations

import torch

from tests.support.training import Recorder, fit, make_module, weights

UPDATES = 2 * 2
"""Of a rollout of `make_module`: passes, mini-batches."""


def assert_each_token_is_of_its_weights(actor, run: Recorder) -> list:
    """Compare log-probabilities with those of the weights that each token names.

    Args:
        actor: Directory of the actor from which the run started.
        run: A run of `make_module` without value pretraining, whose first rollout has not filled.

    Returns:
        The rollouts that were learned from.
    """
    module = run.trainer.lightning_module
    fresh = make_module(actor)
    fit(fresh, 0)
    of_version = {0: weights(fresh.actor)}
    done = 0
    for rollout, after in zip(run.rollouts, run.actors, strict=True):
        if rollout is not None:
            done += UPDATES
            of_version[done] = after
    learned = [rollout for rollout in run.rollouts if rollout is not None]
    assert run.rollouts[0] is None and len(learned) >= 4
    seen = set()
    for rollout in learned:
        for version in rollout.versions_BT[rollout.response_mask_BT].unique().tolist():
            seen.add(version)
            torch.nn.utils.vector_to_parameters(of_version[version], module.actor.parameters())
            logprobs_BT, _ = module.scorer.actor_logprobs(rollout)
            mine_BT = rollout.response_mask_BT & (rollout.versions_BT == version)
            assert torch.allclose(
                logprobs_BT[mine_BT], rollout.sampler_logprobs_BT[mine_BT], atol=1e-5
            )
    assert len(seen) >= 4
    assert any(len(r.versions_BT[0, :8].unique()) > 2 for r in learned)
    return learned


def assert_complete(learned, length: int, stops: set[int]) -> None:
    """Check that responses end with a stop token, or at their full length, and nowhere else."""
    for rollout in learned:
        lengths_B = rollout.response_mask_BT.sum(1)
        for row, (count, finished) in enumerate(
            zip(lengths_B.tolist(), rollout.finished_B.tolist(), strict=True)
        ):
            first = int(rollout.prompt_lengths_B[row])
            tokens = rollout.input_ids_BL[row, first : first + count].tolist()
            ends = [at for at, token in enumerate(tokens) if token in stops]
            assert ends == ([count - 1] if finished else [])
            assert finished or count == length
