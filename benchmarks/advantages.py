"""Time decoupled GAE against the loop over tokens: `python -m benchmarks.advantages`.

Both lambdas in one call, 64 responses of 1 to 16,384 tokens padded on the right, float32, two
threads of the CPU. The last line is JSON:

    loop_s    the usual loop over T with a mask, once for each lambda
    gae_s     lightning_vcppo.algorithm.advantages.decoupled_gae
    cumsum_s  one torch.cumsum over the same shape: the cost of moving the data
    speedup   loop_s / gae_s

Shape suffixes: B sequences, T response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure import THREADS, median_seconds, print_json, start
from lightning_vcppo.algorithm.advantages import decoupled_gae

BATCH, LENGTH = 64, 16_384
LAMBDA_ACTOR, LAMBDA_CRITIC = 0.95, 1.0


def loop_gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, lam: float) -> Tensor:
    """Compute GAE with gamma = 1 token by token, stepping over masked ones."""
    mask_BT = mask_BT.float()
    advantage_B = next_value_B = torch.zeros(len(rewards_BT))
    advantages = []
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + next_value_B - values_BT[:, t]
        mask_B = mask_BT[:, t]
        advantage_B = mask_B * (delta_B + lam * advantage_B) + (1 - mask_B) * advantage_B
        next_value_B = mask_B * values_BT[:, t] + (1 - mask_B) * next_value_B
        advantages.append(advantage_B)
    return torch.stack(advantages[::-1], dim=1) * mask_BT


def main() -> None:
    """Check that both ways agree, time them, print a table and a line of JSON."""
    start()
    lengths_B = torch.randint(1, LENGTH + 1, (BATCH,))
    mask_BT = torch.arange(LENGTH) < lengths_B[:, None]
    values_BT = torch.randn(BATCH, LENGTH)
    rewards_BT = torch.zeros(BATCH, LENGTH)
    rewards_BT[torch.arange(BATCH), lengths_B - 1] = torch.randint(0, 2, (BATCH,)) * 2.0 - 1.0

    def loop() -> tuple[Tensor, Tensor]:
        advantages_BT = loop_gae(rewards_BT, values_BT, mask_BT, LAMBDA_ACTOR)
        targets_BT = loop_gae(rewards_BT, values_BT, mask_BT, LAMBDA_CRITIC) + values_BT
        return advantages_BT, torch.where(mask_BT, targets_BT, 0.0)

    def scan() -> tuple[Tensor, Tensor]:
        return decoupled_gae(
            rewards_BT,
            values_BT,
            mask_BT,
            lambda_actor=LAMBDA_ACTOR,
            lambda_critic=LAMBDA_CRITIC,
        )

    for expected_BT, actual_BT in zip(loop(), scan(), strict=True):
        torch.testing.assert_close(actual_BT, expected_BT, rtol=1e-3, atol=1e-3)

    loop_s = median_seconds(loop, repeats=5)
    gae_s = median_seconds(scan, repeats=25)
    cumsum_s = median_seconds(lambda: torch.cumsum(rewards_BT, dim=-1), repeats=25)
    speedup = loop_s / gae_s

    print(f"decoupled GAE, {BATCH} x {LENGTH} float32, {THREADS} threads, medians")
    print(f"{'loop over T':<24}{loop_s * 1e3:>10.2f} ms")
    print(f"{'decoupled_gae':<24}{gae_s * 1e3:>10.2f} ms   {speedup:.0f} x faster")
    print(f"{'one cumsum':<24}{cumsum_s * 1e3:>10.2f} ms")
    print_json({"loop_s": loop_s, "gae_s": gae_s, "cumsum_s": cumsum_s, "speedup": speedup})


if __name__ == "__main__":
    main()
