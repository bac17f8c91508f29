"""Helpers of tests."""

import torch
from hypothesis import strategies as st

from lightning_vcppo.data.problem import Problem
from lightning_vcppo.rollouts.rollout import Rollout, join_prompts


def rows(rollout):
    """Return prompt and response of each row, as they are read."""
    ends = zip(rollout.prompt_lengths_B.tolist(), rollout.lengths_B.tolist(), strict=True)
    ids = rollout.input_ids_BL.tolist()
    return [(row[:a], row[a:b]) for row, (a, b) in zip(ids, ends, strict=True)]


def make_rollout(prompts: list[list[int]], responses: list[list[int]]) -> Rollout:
    """Put tokens into a rollout, the token's number standing for its log-probability."""
    size, width = len(prompts), max(map(len, responses))
    lengths_B = torch.tensor([len(r) for r in responses])
    mask_BT = torch.arange(width) < lengths_B[:, None]
    ids_BT = torch.tensor([r + [0] * (width - len(r)) for r in responses])
    return Rollout(
        problems=tuple(Problem(f"p{i}", i) for i in range(size)),
        responses=tuple(f"r{i}" for i in range(size)),
        input_ids_BL=join_prompts(prompts, ids_BT, mask_BT, pad=0),
        prompt_lengths_B=torch.tensor([len(p) for p in prompts]),
        response_mask_BT=mask_BT,
        sampler_logprobs_BT=ids_BT.float(),
        finished_B=torch.ones(size, dtype=torch.bool),
        positions_B=torch.arange(size),
        group_ids_B=torch.arange(size),
        scores_B=torch.arange(size).float(),
        correct_B=torch.arange(size) > 0,
    )


TOKENS = st.lists(st.integers(1, 99), min_size=1, max_size=6)
