"""Define rules against common faults of PPO runs on language models.

Each rule is a function of `Facts`. It returns None, or one line with the number that breaks the
rule and the flag to change. docs/metrics.md has a table of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from lightning_vcppo.common.errors import require
from lightning_vcppo.settings import AdvantageSettings


@dataclass(frozen=True)
class Limits:
    """Numbers beyond which a rule is broken; all are ours, except those marked.

    Attributes:
        window: Number of rollouts over which "now" and "at the start" are averaged.
        r2: R^2 above which the actor may be trained. At 0 the critic is as good as the mean return.
        bias_share: Largest distance of mean V from mean R, as a share of the range of the rewards.
        reward_share: Smallest weight of the reward at a mean-length response's first token, in
            the critic's targets.
        length_ratio: Smallest mean length as a share of the initial one (VC-PPO's baseline: a
            fifth).
        truncation_rise: Largest rise of the truncation rate above that at the start.
        clipfrac: Largest share of tokens at which the policy's clip removes the gradient.
        approx_kl: Largest KL divergence of the updates of a rollout, in nats per token.
        mismatch_kl: Largest KL divergence of the trainer's policy from the sampler's, per token.
        cured_after: Number of rollouts without a violation after which a rule warns again.
    """

    window: int = 5
    r2: float = 0.0
    bias_share: float = 0.25
    reward_share: float = 0.01
    length_ratio: float = 0.5
    truncation_rise: float = 0.1
    clipfrac: float = 0.3
    approx_kl: float = 0.1
    mismatch_kl: float = 0.01
    cured_after: int = 10

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in (f.name for f in fields(self) if f.name != "r2"):
            least = 1 if name in ("window", "cured_after") else 0
            value = getattr(self, name)
            require(value >= least, f"{name}: expected >= {least}, got {value}")


@dataclass(frozen=True)
class Facts:
    """The inputs of the rules after a rollout.

    Attributes:
        advantage: Settings of advantages and value targets.
        actor_lr: Peak learning rate of the actor.
        critic_lr: Peak learning rate of the critic; None if there is none.
        cliprange_value: The critic's clip; None means off.
        fresh_critic: Whether the run started from an untrained critic.
        fits_critic: Whether there is or was value pretraining, in this run or before it.
        pretraining: Whether this was a rollout of value pretraining.
        actor_moves: Whether the next rollout updates the actor.
        last: Metrics of this rollout, those that are finite.
        now: Their means over the last rollouts, as many as `Limits.window`.
        seen: Number of measured rollouts, up to `Limits.window`.
        start: Their means over the first ones.
        reward_range: Lowest and highest reward of the run so far; None before the first.
    """

    advantage: AdvantageSettings
    actor_lr: float
    critic_lr: float | None
    cliprange_value: float | None
    fresh_critic: bool
    fits_critic: bool
    pretraining: bool
    actor_moves: bool
    last: Mapping[str, float]
    now: Mapping[str, float]
    seen: int
    start: Mapping[str, float]
    reward_range: tuple[float, float] | None = None


Rule = Callable[[Facts, Limits], str | None]

MISMATCH_KL = "mismatch/kl_k3"
REWARD_VARIANCE = "rollout/reward_variance"
"""Variance of the rewards of a rollout, over all ranks; not logged."""
WATCHED = (
    "rollout/response_length",
    "rollout/accuracy",
    "rollout/truncation_rate",
    "critic/r2",
    "critic/bias",
    "critic/value_mean",
    "value_pretraining/r2",
    "value_pretraining/bias",
    "policy/clipfrac",
    "policy/approx_kl",
    "update/skipped_policy",
    "update/skipped_critic",
    MISMATCH_KL,
)
"""Metrics that the rules read."""


def bootstrapped_targets(facts: Facts, limits: Limits) -> str | None:
    """Value pretraining, which always uses lambda 1, is followed by lambda_critic < 1."""
    lam = facts.advantage.lambda_critic
    if facts.critic_lr is None or not facts.fits_critic or lam == 1:
        return None
    return (
        f"the critic is fitted on Monte-Carlo returns, but while the actor is trained its targets "
        f"have lambda_critic {lam:g} and contain its own values again; "
        "set --model.advantage.lambda_critic=1"
    )


def unready_critic(facts: Facts, limits: Limits) -> str | None:
    """The actor is trained, or about to be, with a critic that does not predict the returns."""
    if facts.critic_lr is None or not facts.actor_moves or facts.advantage.explained_variance_gate:
        return None
    r2 = _of_critic(facts, "r2")
    if r2 is None or r2 > limits.r2:
        return None
    cure = "raise --value_pretraining.max_rollouts or --model.critic_optimizer.lr"
    return (
        f"the actor is trained with a critic whose R^2 is {r2:.2f}, not above {limits.r2:g}; "
        f"{cure if facts.fits_critic else ENABLE}"
    )


def biased_critic(facts: Facts, limits: Limits) -> str | None:
    """All values are too low, which rewards any ending, or too high, which punishes it."""
    bias = _of_critic(facts, "bias")
    if facts.critic_lr is None or not facts.actor_moves or facts.reward_range is None:
        return None
    low, high = facts.reward_range
    if bias is None or low == high:  # equal rewards have their own rule
        return None
    value = None if facts.pretraining else facts.now.get("critic/value_mean")
    cure = "raise --value_pretraining.max_rollouts or --model.critic_optimizer.lr"
    cure = cure if facts.fits_critic else ENABLE
    if value is not None and not low <= value <= high:
        return f"mean V is {value:.2f}, outside the rewards, {low:g} to {high:g}; {cure}"
    if abs(bias) <= limits.bias_share * (high - low):
        return None
    return (
        f"mean V is {abs(bias):.2f} {'below' if bias > 0 else 'above'} the mean return, more than "
        f"{limits.bias_share:g} of the rewards' range of {high - low:g}; {cure}"
    )


def unheard_reward(facts: Facts, limits: Limits) -> str | None:
    """With a lambda below 1 the terminal reward hardly reaches the targets of early tokens."""
    settings, length = facts.advantage, facts.now.get("rollout/response_length")
    lam = settings.lambda_critic
    if facts.critic_lr is None or facts.pretraining or length is None or lam == 1:
        return None
    share = (settings.gamma * lam) ** max(0.0, length - 1)
    if share >= limits.reward_share:
        return None
    shared = settings.length_adaptive_alpha is None and settings.lambda_actor == lam
    whose = "lambda, shared by actor and critic," if shared else "lambda_critic"
    return (
        f"over {length:.0f} tokens a {whose} of {lam:g} leaves {share:.2g} of the reward in the "
        f"first token's value target, less than {limits.reward_share:g}; "
        "set --model.advantage.lambda_critic=1"
    )


def zero_lambda(facts: Facts, limits: Limits) -> str | None:
    """The length-adaptive lambda of a response of mean length is clamped to 0."""
    alpha, length = facts.advantage.length_adaptive_alpha, facts.now.get("rollout/response_length")
    if facts.critic_lr is None or alpha is None or length is None or alpha * length > 1:
        return None
    return (
        f"length_adaptive_alpha {alpha:g} x mean length {length:.0f} is {alpha * length:.2g}, so "
        "lambda_actor is 0 and advantages see one token ahead; raise "
        f"--model.advantage.length_adaptive_alpha well above {1 / length:.2g}"
    )


def slow_critic(facts: Facts, limits: Limits) -> str | None:
    """The critic does not learn faster than the actor, which it must follow."""
    if facts.critic_lr is None or facts.critic_lr > facts.actor_lr:
        return None
    return (
        f"the critic's lr {facts.critic_lr:g} is not above the actor's {facts.actor_lr:g}; raise "
        "--model.critic_optimizer.lr to 2 to 10 times the actor's"
    )


def clipped_values(facts: Facts, limits: Limits) -> str | None:
    """Value clipping slows down a critic that starts untrained."""
    clip = facts.cliprange_value
    if facts.critic_lr is None or clip is None or not facts.fresh_critic:
        return None
    return (
        f"cliprange_value limits a value's change to {clip:g} per rollout, and this critic starts "
        "untrained; set --model.value.cliprange_value=null"
    )


def shrinking_responses(facts: Facts, limits: Limits) -> str | None:
    """Responses become much shorter, the sign of a collapse (VC-PPO, section 3)."""
    start, now = (seen.get("rollout/response_length") for seen in (facts.start, facts.now))
    if start is None or now is None or now >= limits.length_ratio * start:
        return None
    before, after = (seen.get("rollout/accuracy", math.nan) for seen in (facts.start, facts.now))
    if facts.critic_lr is None:
        cure = "lower --model.actor_optimizer.lr"
    elif facts.fits_critic:
        cure = "look at decay/*, then raise --value_pretraining.max_rollouts"
    else:
        cure = ENABLE
    return (
        f"mean length fell from {start:.0f} tokens at the start to {now:.0f}, and accuracy went "
        f"from {before:.0%} to {after:.0%}; {cure}"
    )


def equal_rewards(facts: Facts, limits: Limits) -> str | None:
    """All responses of some rollouts got the same reward, so no advantage is informative."""
    variance = facts.now.get(REWARD_VARIANCE)
    if facts.seen < limits.window or variance is None or variance > 1e-9:
        return None
    accuracy = facts.now.get("rollout/accuracy", math.nan)
    cure = "use harder problems (--data.path)"
    if not accuracy > 0.5:
        cure = (
            "use easier problems (--data.path) or fine-tune first (--model=ColdStartModule), and "
            "check in evaluation/*.jsonl that correct answers are graded correct (--model.reward)"
        )
    return (
        f"all rewards of the last {limits.window} rollouts are the same, at an accuracy of "
        f"{accuracy:.0%}, so there is nothing to learn from; {cure}"
    )


def rising_truncation(facts: Facts, limits: Limits) -> str | None:
    """More and more responses are truncated, so that the limit decides the reward."""
    start, now = (seen.get("rollout/truncation_rate") for seen in (facts.start, facts.now))
    if start is None or now is None or now - start <= limits.truncation_rise:
        return None
    return (
        f"the truncation rate rose from {start:.0%} at the start to {now:.0%}; raise "
        "--model.sampling.max_response_length or set --model.reward_shaping.overlong_buffer_len"
    )


def large_clip_fraction(facts: Facts, limits: Limits) -> str | None:
    """The clip removes too much of the gradient."""
    return _too_large(facts, "policy/clipfrac", limits.clipfrac)


def large_policy_kl(facts: Facts, limits: Limits) -> str | None:
    """The updates of one rollout change the policy too much."""
    return _too_large(facts, "policy/approx_kl", limits.approx_kl)


def sampler_mismatch(facts: Facts, limits: Limits) -> str | None:
    """The probabilities of sampler and trainer differ at the same weights."""
    kl = facts.now.get(MISMATCH_KL)
    if kl is None or kl <= limits.mismatch_kl:
        return None
    return (
        f"the KL of the trainer's policy from the sampler's is {kl:.3g} nats per token, above "
        f"{limits.mismatch_kl:g}; set --model.policy.importance_correction=truncate, or sample and "
        "train in the same precision"
    )


def skipped_updates(facts: Facts, limits: Limits) -> str | None:
    """The loss or gradient of an update was not finite, so that it was skipped."""
    skipped = {name: facts.last.get(f"update/skipped_{name}", 0) for name in ("policy", "critic")}
    if not any(skipped.values()):
        return None
    counts = " and ".join(f"{count:.0f} of the {name}" for name, count in skipped.items() if count)
    optimizer = "actor" if skipped["policy"] else "critic"
    return (
        f"loss or gradient was not finite in updates of this rollout, {counts}, which were "
        "skipped; look for rewards that are not finite (--model.reward), or lower "
        f"--model.{optimizer}_optimizer.lr"
    )


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        bootstrapped_targets,
        unready_critic,
        biased_critic,
        unheard_reward,
        zero_lambda,
        slow_critic,
        clipped_values,
        shrinking_responses,
        equal_rewards,
        rising_truncation,
        large_clip_fraction,
        large_policy_kl,
        sampler_mismatch,
        skipped_updates,
    )
}

ENABLE = "set --value_pretraining.enabled=true"


def broken_rules(facts: Facts, limits: Limits) -> dict[str, str]:
    """Return the message of each broken rule, by its name."""
    messages = {name: rule(facts, limits) for name, rule in RULES.items()}
    return {name: message for name, message in messages.items() if message is not None}


def _of_critic(facts: Facts, name: str) -> float | None:
    """Return R^2 or bias of the critic with which the actor will be trained."""
    if not facts.pretraining:
        return facts.now.get(f"critic/{name}")
    # The phase ends: its last value counts, on held-out responses if there are any.
    before_fit = facts.last.get(f"critic/{name}", facts.now.get(f"critic/{name}"))
    return facts.last.get(f"value_pretraining/{name}", before_fit)


def _too_large(facts: Facts, key: str, limit: float) -> str | None:
    seen = facts.now.get(key)
    if seen is None or seen <= limit:
        return None
    return (
        f"{key} is {seen:.3g}, above {limit:g}; lower --model.actor_optimizer.lr or "
        "--model.update.ppo_epochs"
    )
