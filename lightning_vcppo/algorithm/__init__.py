"""VC-PPO as pure functions of tensors (arXiv 2503.01491).

| In the paper | Here |
|---|---|
| section 3.1, value pretraining: Monte-Carlo returns of the frozen policy | `advantages.py`: `monte_carlo_returns`; the phases: `value_pretraining.py` |
| section 3.2, decoupled GAE: lambda_critic = 1, lambda_actor < 1 | `advantages.py`: `decoupled_gae` |
| equations 2 to 4, PPO: clipped policy loss, value loss | `policy_losses.py`: `policy_loss`; `losses.py`: `value_loss` |
| policy losses of its successors: DIS, DPPO-TV, CISPO, GSPO | `policy_losses.py` |
| related methods: VAPO's length-adaptive lambda and NLL on correct responses | `advantages.py`, `losses.py` |
| without a critic: the group baselines of GRPO and RLOO | `critic_free.py` |
| value heads other than a scalar | `value_heads.py` |
| independent of batching: masked statistics, weights of tokens | `statistics.py`, `loss_weights.py` |
"""  # noqa: E501

from lightning_vcppo.algorithm.advantages import (
    decoupled_gae,
    explained_variance_gate,
    gae,
    length_adaptive_lambda,
    monte_carlo_returns,
)
from lightning_vcppo.algorithm.critic_free import (
    batch_advantages,
    group_advantages,
    leave_one_out_advantages,
)
from lightning_vcppo.algorithm.importance import (
    importance_corrected_returns,
    truncated_importance_weights,
)
from lightning_vcppo.algorithm.loss_weights import (
    aggregation_weights,
    prompt_noise_weights,
    weighted_sum,
)
from lightning_vcppo.algorithm.losses import (
    kl_estimate,
    kl_penalty,
    positive_example_nll,
    value_loss,
)
from lightning_vcppo.algorithm.policy_losses import (
    cispo_loss,
    dis_loss,
    dppo_tv_loss,
    gspo_loss,
    policy_loss,
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
    "cispo_loss",
    "decoupled_gae",
    "dis_loss",
    "dppo_tv_loss",
    "explained_variance",
    "explained_variance_gate",
    "gae",
    "group_advantages",
    "gspo_loss",
    "importance_corrected_returns",
    "kl_estimate",
    "kl_penalty",
    "leave_one_out_advantages",
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
