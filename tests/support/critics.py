"""Helpers of tests."""

import torch

from lightning_vcppo.models.critic import Critic

IDS_BL = torch.tensor([[5, 6, 7, 8, 9], [4, 3, 2, 0, 0]])
PROMPT_LENGTHS_B = torch.tensor([2, 1])
MASK_BT = torch.tensor([[True, True, True], [True, True, False]])


def values_of(critic: Critic) -> torch.Tensor:
    with torch.no_grad():
        return critic.values(critic(IDS_BL, PROMPT_LENGTHS_B, MASK_BT))
