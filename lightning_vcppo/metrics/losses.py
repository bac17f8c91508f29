"""Which diagnostics a loss has: the settings alone decide it, so it is the same on all ranks.

Ranks sum them as one vector, whose layout must be fixed before data are seen.
"""

from __future__ import annotations

from typing import Literal

from lightning_vcppo.algorithm import losses, value_heads
from lightning_vcppo.settings import PolicySettings, ValueSettings


def loss_metrics(
    network: Literal["policy", "critic"], policy: PolicySettings, value: ValueSettings | None
) -> tuple[str, ...]:
    """Return the names of the diagnostics of a network's loss, in the order of their sums.

    Args:
        network: Whose loss.
        policy: Of the policy loss.
        value: Of the critic's; None without one.
    """
    if network == "critic":
        is_histogram = value is not None and value.head == "hl_gauss"
        names = value_heads.HL_GAUSS_DIAGNOSTICS if is_histogram else losses.VALUE_DIAGNOSTICS
        return tuple(sorted(names))
    terms = {*losses.POLICY_DIAGNOSTICS, "entropy"}
    if policy.kl_coef:
        terms.update(losses.KL_DIAGNOSTICS)
    if policy.positive_example_nll_weight:
        terms.update(losses.NLL_DIAGNOSTICS)
    return tuple(sorted(terms))
