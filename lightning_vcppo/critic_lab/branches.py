"""Compute the values and advantages of a critic along continuations, for `truth` to judge.

Shapes: B rows, T tokens after a state, N states, M continuations, L lambdas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lightning_vcppo.algorithm.advantages import gae
from lightning_vcppo.critic_lab.continuations import Continued
from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.critic_lab.truth import Branches
from lightning_vcppo.critic_lab.values import ROWS, ValueReader


def read_branches(
    continued: Sequence[Continued],
    store: TokenStore,
    reader: ValueReader,
    lambdas: Sequence[float],
) -> Branches:
    """Return the values and advantages of a critic along continuations.

    Args:
        continued: States and their continuations, the same number for each state.
        store: Store of the rollouts.
        reader: The critic.
        lambdas: Lambdas of the advantages.
    """
    unique: dict[tuple[int, tuple[int, ...]], int] = {}  # shared continuations are read once
    rewards: list[float] = []
    read_N2M = []
    for n, each in enumerate(continued):
        both = ((each.from_state, each.rewards0), (each.from_token, each.rewards))
        for ids, reward in (pair for lists in both for pair in zip(*lists, strict=True)):
            key = n, tuple(ids)
            if key not in unique:
                unique[key] = len(unique)
                rewards.append(reward)
            read_N2M.append(unique[key])
    states = [continued[n].state for n, _ in unique]
    rows, places = [s.row for s in states], [s.place for s in states]
    endings = [ids for _, ids in unique]
    firsts: list[float] = []
    parts = []
    for begin in range(0, len(rows), ROWS):
        part = slice(begin, begin + ROWS)
        rollout = store.continued(rows[part], places[part], endings[part])
        values = reader.values(rollout, rows[part])
        firsts += [float(v[0]) for v in values]
        parts.append(first_advantages(values, rewards[part], lambdas))
    shape = (len(continued), 2, len(continued[0].from_state))
    advantages_LN2M = np.concatenate(parts, axis=1)[:, read_N2M].reshape(len(lambdas), *shape)
    return Branches(
        values_N=np.array(firsts)[read_N2M].reshape(shape)[:, 0, 0],
        rewards0_NM=np.array([each.rewards0 for each in continued]),
        rewards_NM=np.array([each.rewards for each in continued]),
        advantages0_LNM=advantages_LN2M[:, :, 0],
        advantages_LNM=advantages_LN2M[:, :, 1],
        eighths_N=np.array([each.state.eighth for each in continued]),
        groups_N=np.array([store.groups[each.state.row] for each in continued]),
    )


def first_advantages(
    values: Sequence[np.ndarray], rewards: Sequence[float], lambdas: Sequence[float]
) -> np.ndarray:
    """Return the advantage of the first token of each row, (L, B), in float64.

    Args:
        values: V before each token, one array for each row.
        rewards: Reward at the end of each row.
        lambdas: Lambdas of GAE.
    """
    lengths_B = torch.tensor([len(v) for v in values])
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    values_BT = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(v.astype(np.float64)) for v in values], batch_first=True
    )
    rewards_BT = torch.zeros_like(values_BT)
    rewards_BT[torch.arange(len(values)), lengths_B - 1] = torch.tensor(
        rewards, dtype=torch.float64
    )
    found = [gae(rewards_BT, values_BT, mask_BT, gamma=1.0, lam=lam)[:, 0] for lam in lambdas]
    return torch.stack(found).numpy()
