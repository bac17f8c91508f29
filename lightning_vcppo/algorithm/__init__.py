"""VC-PPO as pure functions of tensors (arXiv 2503.01491).

| In the paper | Here |
|---|---|
| section 3.1, value pretraining: Monte-Carlo returns of the frozen policy | `advantages.py`: `monte_carlo_returns`; the phases: `value_pretraining.py` |
| section 3.2, decoupled GAE: lambda_critic = 1, lambda_actor < 1 | `advantages.py`: `decoupled_gae` |
| equations 2 to 4, PPO: clipped policy loss, value loss | `losses.py`: `policy_loss`, `value_loss` |
| relatives: VAPO's length-adaptive lambda and NLL on correct responses, GRPO's groups | `advantages.py`, `losses.py` |
| value heads other than a scalar | `value_heads.py` |
| what must not depend on batching: masked statistics, weights of tokens | `statistics.py`, `loss_weights.py` |
"""  # noqa: E501

from lightning_vcppo.algorithm.advantages import (
    batch_advantages,
    decoupled_gae,
    explained_variance_gate,
    gae,
    group_advantages,
    length_adaptive_lambda,
    monte_carlo_returns,
)
from lightning_vcppo.algorithm.importance import truncated_importance_weights
from lightning_vcppo.algorithm.loss_weights import (
    aggregation_weights,
    prompt_noise_weights,
    weighted_sum,
)
from lightning_vcppo.algorithm.losses import (
    kl_estimate,
    kl_penalty,
    policy_loss,
    positive_example_nll,
    value_loss,
)
from lightning_vcppo.algorithm.statistics import (
    explained_variance,
    masked_mean,
    masked_var,
    r_squared,
    whiten,
)

__all__ = [
    "aggregation_weights",
    "batch_advantages",
    "decoupled_gae",
    "explained_variance",
    "explained_variance_gate",
    "gae",
    "group_advantages",
    "kl_estimate",
    "kl_penalty",
    "length_adaptive_lambda",
    "masked_mean",
    "masked_var",
    "monte_carlo_returns",
    "policy_loss",
    "positive_example_nll",
    "prompt_noise_weights",
    "r_squared",
    "truncated_importance_weights",
    "value_loss",
    "weighted_sum",
    "whiten",
]
