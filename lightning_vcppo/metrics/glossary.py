"""Define each metric and its healthy values; this is their only definition.

A test checks that the tables of docs/metrics.md have these texts. They are Markdown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """The definition of a metric.

    Attributes:
        key: `group/name`; braces stand for letters, digits and underscores, as in `decile_{0..9}`.
        meaning: Definition of the number.
        healthy: Healthy values; may be empty.
    """

    key: str
    meaning: str
    healthy: str

    def covers(self, key: str) -> bool:
        """Return whether a logged key matches this definition."""
        parts = re.split(r"\{.*?\}", self.key)
        return re.fullmatch(r"\w+".join(map(re.escape, parts)), key) is not None


GLOSSARY: dict[str, tuple[Definition, ...]] = {
    "Rollout": (
        Definition("step", "rollouts done", "rises by 1"),
        Definition("rollout/reward_mean", "mean score, shaping included", "rises"),
        Definition(
            "rollout/accuracy",
            "share of correct responses: as the reward function states, else positive reward",
            "rises; at 0 or 1 there is nothing to learn",
        ),
        Definition(
            "rollout/response_length",
            "mean number of tokens of a response, its `<eos>` included",
            "steady or rising",
        ),
        Definition(
            "rollout/truncation_rate",
            "share of responses truncated at `max_response_length`",
            "below 0.1",
        ),
        Definition(
            "rollout/tokens_per_second",
            "response tokens divided by the seconds of the complete rollout with its updates",
            "steady",
        ),
        Definition("rollout/age", "policy updates since the sampling weights, mean", "0 to 16"),
        Definition("rollout/unfinished", "responses that the next steps continue", "steady"),
        Definition("time/generate_s", "seconds of sampling or of waiting for it", "the largest"),
        Definition("time/grade_s", "seconds of grading, this rank's", "a small part of sampling"),
        Definition(
            "grading/limit_hits",
            "comparisons of answers, since this process began, that reached a worker's limit and "
            "count as wrong, on this rank",
            "0",
        ),
        Definition("time/score_s", "seconds of log-probabilities, values and advantages", ""),
        Definition("time/update_s", "seconds of the updates", ""),
        Definition("time/trainer_idle", "share of the time in which training waits", "near 0"),
        Definition("time/sampler_idle", "share in which no rollout is being sampled", "near 0"),
        Definition("time/overlap", "share in which both work", "near 1"),
    ),
    "Policy": (
        Definition(
            "policy/loss",
            "the policy loss that is set, without the entropy, KL and NLL terms",
            "near 0, no trend",
        ),
        Definition("policy/approx_kl", "mean of r - 1 - log r (k3), r = pi / pi_old", "0 to 0.05"),
        Definition("policy/ratio_mean", "mean of r; with `gspo` of the response's", "0.95 to 1.05"),
        Definition("policy/ratio_min", "smallest of 1 and r, of all updates", "above 0.1"),
        Definition("policy/ratio_max", "largest of 1 and r, of all updates", "below 10"),
        Definition(
            "policy/clipfrac",
            "share of tokens whose gradient a bound removes or, with `cispo`, limits",
            "0 to 0.2",
        ),
        Definition("policy/clipfrac_low", "the part of it at `clip_ratio_low`", ""),
        Definition("policy/clipfrac_high", "the part of it at `clip_ratio_high`", ""),
        Definition("policy/clipfrac_c", "the part of it at `clip_ratio_c`", "0 to 0.01"),
        Definition(
            "policy/entropy",
            "mean entropy of the next token, nats",
            "falls slowly; not to 0",
        ),
        Definition(
            "policy/kl",
            "KL from the reference, by `kl_estimator`; if there is a reference",
            "rises slowly",
        ),
        Definition(
            "policy/positive_tokens",
            "tokens of correct responses in a mini-batch; with `positive_example_nll_weight`",
            "above 0",
        ),
        Definition("policy/grad_norm", "norm of the gradient before clipping", "steady"),
        Definition("policy/lr", "learning rate, after warm-up", ""),
    ),
    "Critic": (
        Definition("critic/loss", "the value loss; 1/2 (V - R)^2 by default", "falls, below 0.5"),
        Definition(
            "critic/r2",
            (
                "1 - mean((R - V)^2) / Var(R), V before the update, R the Monte-Carlo return "
                "whatever the targets; explained variance minus what a constant bias costs"
            ),
            "above 0 when the policy phase begins, at most 1",
        ),
        Definition(
            "critic/explained_variance",
            "1 - Var(R - V) / Var(R), for the same; a constant bias does not change it",
            "above 0.3 when the policy phase begins, at most 1",
        ),
        Definition(
            "critic/bias", "mean R - V, for the same", "near 0 when the policy phase begins"
        ),
        Definition("critic/value_mean", "mean V", "close to `critic/return_mean`"),
        Definition("critic/return_mean", "mean value target", "between -1 and 1"),
        Definition("critic/value_error", r"mean \|V - R\|", "falls"),
        Definition(
            "critic/value_clipfrac",
            "share of tokens whose gradient `cliprange_value` removes; not with cross-entropy",
            "0",
        ),
        Definition(
            "critic/target_ratio_mean",
            "mean of rho = pi_new / pi_old after the actor's update; with `target_correction`",
            "0.95 to 1.05",
        ),
        Definition(
            "critic/target_left_out",
            "share of tokens with rho above `target_max_ratio`, dropped from the critic's loss",
            "below 0.01",
        ),
        Definition("critic/grad_norm", "norm of the gradient before clipping", "steady"),
        Definition("critic/lr", "learning rate, after warm-up", ""),
    ),
    "Skipped updates": (
        Definition(
            "update/skipped_policy",
            "updates of the rollout that were skipped; absent while the actor is frozen",
            "0",
        ),
        Definition(
            "update/skipped_critic",
            "the same for the critic; absent without a critic",
            "0",
        ),
        Definition(
            "update/skipped",
            "in cold start and reward model: 1 if the update was skipped",
            "0",
        ),
    ),
    "Value pretraining": (
        Definition(
            "value_pretraining/r2",
            (
                "1 - mean((R - V)^2) / Var(R) on held-out responses; NaN if all their returns are "
                "equal"
            ),
            "rises, then levels off: the phase ends",
        ),
        Definition(
            "value_pretraining/explained_variance",
            "1 - Var(R - V) / Var(R) on them; a constant bias does not change it",
            "as `value_pretraining/r2`, once the bias is gone",
        ),
        Definition(
            "value_pretraining/loss",
            "1/2 (V - R)^2 on them",
            "falls fast, then slowly (*paper*: the slow part matters)",
        ),
        Definition("value_pretraining/bias", "mean R - V on them", "goes to 0 first"),
        Definition(
            "value_pretraining/train_r2",
            "R^2 on the train part",
            "above the held-out one; far above, and rising alone: fewer `replays`",
        ),
        Definition(
            "value_pretraining/train_explained_variance",
            "explained variance on it",
            "above the held-out one",
        ),
        Definition(
            "value_pretraining/train_loss",
            "1/2 (V - R)^2 on it",
            "as `value_pretraining/loss`, lower",
        ),
        Definition("value_pretraining/train_bias", "mean R - V on it", "goes to 0"),
        Definition(
            "value_pretraining/rollouts",
            "rollouts (training steps) of the phase",
            "up to `max_rollouts`",
        ),
        Definition(
            "value_pretraining/generated_tokens",
            "response tokens generated in the phase; 0 with `rollouts_path`",
            "",
        ),
    ),
    "Reward decay and bias by position": (
        Definition(
            "decay/actor_reward_share_first",
            "weight at the first token with the actor's lambda, mean over responses",
            "not 0: 0.95 over 100 tokens leaves 0.006 (*paper*)",
        ),
        Definition("decay/actor_reward_share_mean", "the same, mean over all tokens", "above 0.1"),
        Definition(
            "decay/critic_reward_share_first",
            (
                "weight at the first token in the value targets: `lambda_critic`, or 1 while "
                "value pretraining lasts"
            ),
            "1 (*paper*)",
        ),
        Definition("decay/critic_reward_share_mean", "the same, mean over all tokens", "1"),
        Definition(
            "decay/actor_horizon",
            "1 / (1 - gamma lambda) tokens, mean over responses; infinite at 1",
            "a large part of `rollout/response_length`",
        ),
        Definition("decay/critic_horizon", "the same for the value targets", "infinite"),
        Definition(
            "decay/value_decile_{0..9}",
            "mean V",
            "nearly level; a steep rise is the initialisation bias (*paper*: -1.5 to -0.6)",
        ),
        Definition(
            "decay/advantage_decile_{0..9}",
            "mean advantage, before whitening",
            "near 0 in every decile (*paper*, biased: +0.7 to -0.5)",
        ),
        Definition("decay/bias_first", "mean V - R in the first decile", "near 0"),
        Definition("decay/bias_last", "mean V - R in the last decile", "near 0"),
        Definition("decay/entropy_first", "mean entropy in the first decile, nats", ""),
        Definition(
            "decay/entropy_last",
            "mean entropy in the last decile, nats",
            "below `decay/entropy_first`",
        ),
    ),
    "Critic calibration": (
        Definition(
            "calibration/prompts",
            "number of forecasts",
            "at least 512 after some rollouts",
        ),
        Definition(
            "calibration/ece",
            (
                r"expected calibration error: mean \|forecast - pass rate\| of ten bins of the "
                "forecast"
            ),
            ("below 0.1; with 512 prompts of one sample a perfect critic shows about 0.03 to 0.05"),
        ),
        Definition(
            "calibration/brier",
            "mean (forecast - outcome)^2; 0.25 for a constant forecast of 1/2",
            "falls",
        ),
        Definition(
            "calibration/brier_skill",
            "1 - `brier` / (that of always forecasting the mean); absent if all outcomes agree",
            "above 0",
        ),
        Definition(
            "calibration/rank_correlation",
            "Spearman's, of forecast and pass rate; absent if one is constant",
            "above 0.2: the critic tells hard prompts from easy ones",
        ),
        Definition(
            "calibration/audit_bias",
            (
                "mean of V - mean reward of `audit_continuations` from a random place in a "
                "response; with `audit_every`"
            ),
            "near 0",
        ),
        Definition(
            "calibration/audit_rmse",
            "root mean squared difference of the two",
            "near `calibration/audit_standard_error`",
        ),
        Definition(
            "calibration/audit_correlation",
            "Pearson's, of the two; absent if one is constant",
            "rises towards 1",
        ),
        Definition(
            "calibration/audit_standard_error",
            (
                "root mean squared standard error of those mean rewards: the rmse of a perfect "
                "critic"
            ),
            "below 0.3; otherwise use more continuations",
        ),
    ),
    "Guard rails": (Definition("guard_rails/violations", "rules that the rollout breaks", "0"),),
    "Evaluation": (
        Definition(
            "eval/accuracy",
            "avg@k: share of correct responses; the metric for selecting checkpoints",
            "rises",
        ),
        Definition(
            "eval/pass_at_k",
            "share of problems that one of k responses solves, 1 - C(n - c, k) / C(n, k)",
            "rises or holds; if it falls, answers only became less diverse",
        ),
        Definition(
            "eval/pass_at_{m}",
            "the same for m = 2, 4, 8, ... responses, below k",
            "between `eval/accuracy` and `eval/pass_at_k`",
        ),
        Definition(
            "eval/maj_at_k",
            "share of problems that the most frequent answer solves; a tie counts proportionally",
            "above `eval/accuracy`",
        ),
        Definition("eval/{rate}_low", "lower end of the 95 % interval of each of these rates", ""),
        Definition("eval/{rate}_high", "its upper end", "rises above that of the start"),
        Definition("eval/problems", "problems evaluated", "the size of the set"),
        Definition("eval/k", "responses per problem", ""),
        Definition(
            "eval/response_length",
            "mean number of tokens of a response",
            "as `rollout/response_length`",
        ),
        Definition("eval/truncation_rate", "share of truncated responses", "below 0.1"),
        Definition("eval/by_level/{level}", "`eval/accuracy` of the problems of a level", "rises"),
        Definition("eval/by_subject/{subject}", "the same for a subject", "rises"),
        Definition("eval/by_year/{year}", "the same for a competition's year", "rises"),
    ),
    "Sampler mismatch": (
        Definition("mismatch/kl_k1", r"KL(mu \|\| pi_old), mean log(mu / pi_old)", "below 0.01"),
        Definition("mismatch/kl_k3", "the same by k3, never negative", "below 0.01"),
        Definition("mismatch/weight_mean", "mean weight", "0.95 to 1.05"),
        Definition("mismatch/weight_max", "largest pi_old / mu", "below 10"),
        Definition("mismatch/ess", "effective sample size as a share of the tokens", "above 0.9"),
        Definition(
            "mismatch/weight_clipped",
            "share of tokens that the cap truncates or drops",
            "below 0.01",
        ),
    ),
    "Cold start and reward model": (
        Definition("cold_start/loss", "mean cross-entropy of the solutions' tokens, nats", "falls"),
        Definition("cold_start/perplexity", "its exponential", "falls towards 1"),
        Definition("cold_start/lr", "learning rate", ""),
        Definition(
            "reward_model/loss",
            (
                "1/2 (score at the last token - reward)^2, and with `unfinished_score` the same "
                "of cut-off responses"
            ),
            "falls",
        ),
        Definition(
            "reward_model/explained_variance",
            "explained variance of the reward by that score",
            "rises above 0",
        ),
    ),
}
"""Definitions by heading of the page, in its order."""


def definitions() -> tuple[Definition, ...]:
    """Return all definitions, in the order of the page."""
    return tuple(definition for group in GLOSSARY.values() for definition in group)


def define(key: str) -> Definition:
    """Return the definition of a key, in its logged form or in that of the page.

    Raises:
        KeyError: If there is none.
    """
    exact = [definition for definition in definitions() if definition.key == key]
    found = exact or [definition for definition in definitions() if definition.covers(key)]
    if not found:
        raise KeyError(f"metrics/glossary.py does not define {key}")
    return found[0]
