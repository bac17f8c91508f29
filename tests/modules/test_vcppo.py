"""VCPPOModule on a real Trainer, with real tiny models."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_vcppo import VCPPOModule
from lightning_vcppo.algorithm.advantages import gae
from lightning_vcppo.algorithm.statistics import explained_variance, identity
from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.settings import (
    AdvantageSettings,
    EngineSettings,
    OptimizerSettings,
    PolicySettings,
    SamplingSettings,
    UpdateSettings,
    ValueSettings,
)
from tests.support.rows import every
from tests.support.training import (
    EVERYTHING,
    SAMPLING,
    SUCCESSORS,
    SaveAfter,
    fit,
    make_module,
    weights,
)


def reward_of_even_starts(response: str, answer: int) -> float:
    """Reward a first character of even code, behind the thinking tag."""
    return 1.0 if ord((response + "!")[len("<think>\n")]) % 2 == 0 else -1.0


def test_both_networks_learn_and_every_number_is_finite(tiny_actor):
    seed_everything(0)
    record = fit(make_module(tiny_actor, **EVERYTHING), 2)
    assert not torch.equal(record.actors[0], record.actors[1])
    assert not torch.equal(record.critics[0], record.critics[1])
    assert all(math.isfinite(v) for metrics in record.metrics for v in metrics.values())
    # 2 rollouts x 2 epochs x 2 mini-batches of 4 of 8 responses
    assert record.trainer.lightning_module.updates_done == {"policy": 8, "critic": 8}
    assert record.metrics[1]["step"] == 2


def test_value_pretraining_moves_the_critic_alone_and_then_the_actor(tiny_actor, tmp_path):
    seed_everything(0)
    module = make_module(tiny_actor)
    record = fit(module, 4, ValuePretraining(max_rollouts=2, dirpath=str(tmp_path)))
    assert torch.equal(record.actors[0], record.actors[1])
    assert not torch.equal(record.actors[1], record.actors[2])
    assert not torch.equal(record.critics[0], record.critics[1])
    assert module.phase is Phase.POLICY_OPTIMIZATION
    assert (tmp_path / "critic" / "model.safetensors").exists()
    assert "policy/loss" not in record.metrics[1] and "policy/loss" in record.metrics[2]


def test_value_pretraining_fits_monte_carlo_returns_whatever_lambda_comes_later(tiny_actor):
    seed_everything(0)
    module = make_module(tiny_actor, advantage=AdvantageSettings(lambda_critic=0.5))
    record = fit(module, 2, ValuePretraining(max_rollouts=1))
    pretraining, policy = record.rollouts
    mask_BT = pretraining.response_mask_BT
    monte_carlo_BT = torch.where(mask_BT, pretraining.scores_B[:, None], 0.0)
    torch.testing.assert_close(pretraining.returns_BT, monte_carlo_BT)
    assert not torch.allclose(policy.returns_BT, policy.scores_B[:, None] * policy.response_mask_BT)


def test_advantages_and_targets_have_their_own_lambda(tiny_actor):
    seed_everything(0)
    advantage = AdvantageSettings(lambda_actor=0.9, lambda_critic=1.0, whiten=False)
    module = make_module(tiny_actor, advantage=advantage)
    second = fit(module, 2).rollouts[1]  # the first values are all 0
    expected_BT = gae(second.rewards_BT, second.values_BT, second.response_mask_BT, lam=0.9)
    torch.testing.assert_close(second.advantages_BT, expected_BT)
    assert second.values_BT.abs().max() > 0
    assert second.rewards_BT.sum(1).tolist() == second.scores_B.tolist()


def test_explained_variance_is_of_monte_carlo_returns_whatever_the_targets(tiny_actor):
    seed_everything(0)
    advantage = AdvantageSettings(lambda_actor=0.5, lambda_critic=0.5)
    record = fit(make_module(tiny_actor, advantage=advantage), 3)
    rollout, logged = record.rollouts[2], record.metrics[2]["critic/explained_variance"]
    mask_BT = rollout.response_mask_BT
    monte_carlo_BT = rollout.scores_B[:, None].expand_as(mask_BT)
    of_returns = explained_variance(rollout.values_BT, monte_carlo_BT, mask_BT)
    of_targets = explained_variance(rollout.values_BT, rollout.returns_BT, mask_BT)
    assert logged == pytest.approx(float(of_returns), abs=1e-5)
    assert logged != pytest.approx(float(of_targets), abs=1e-3)


def with_mode(mode, **policy):
    """Return all switches, with a loss and the way in which it becomes one number."""
    policy = vars(EVERYTHING["policy"]) | {"loss_agg_mode": mode} | policy
    value = ValueSettings(prompt_noise_weighting=True, loss_agg_mode=mode)
    return EVERYTHING | {"policy": PolicySettings(**policy), "value": value}


@pytest.mark.parametrize(
    ("changes", "order"),
    every(
        3,
        [
            (with_mode("token-mean"), "critic_first"),
            (with_mode("seq-mean-token-mean", loss="gspo", clip_ratio_c=None), "critic_first"),
            (SUCCESSORS, "actor_first"),
        ],
    ),
    ids=["ppo", "gspo", "dppo_tv"],
)
def test_weights_do_not_depend_on_micro_batches(tiny_actor, changes, order):
    results = []
    for max_tokens in (10_000, 60):
        seed_everything(0)
        update = UpdateSettings(
            order=order, ppo_mini_batch_size=4, ppo_max_token_len_per_gpu=max_tokens
        )
        module = make_module(tiny_actor, update=update, **changes)
        record = fit(module, 2, precision="64-true")
        results.append((record.actors[-1], record.critics[-1], record.metrics[-1]))
    (actor, critic, metrics), (actor_too, critic_too, metrics_too) = results
    assert actor.dtype == torch.float64
    torch.testing.assert_close(actor, actor_too, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(critic, critic_too, rtol=1e-6, atol=1e-9)
    for key, value in metrics.items():
        if not key.startswith(("time/", "rollout/tokens_per_second")):
            assert value == pytest.approx(metrics_too[key], rel=1e-4, abs=1e-6), key


ACTOR_FIRST = UpdateSettings(order="actor_first", ppo_mini_batch_size=4, critic_epochs=2)


@pytest.mark.parametrize(
    ("saved_after", "changes"),  # in value pretraining, and behind it
    every(3, [(2, EVERYTHING), (4, EVERYTHING), (4, SUCCESSORS | {"update": ACTOR_FIRST})]),
)
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_actor, tmp_path, saved_after, changes):
    seed_everything(0)
    path = tmp_path / "middle.ckpt"
    callbacks = [ValuePretraining(max_rollouts=3), SaveAfter(saved_after, path)]
    whole = fit(make_module(tiny_actor, **changes), 6, *callbacks)
    seed_everything(0)
    module = make_module(tiny_actor, **changes)
    rest = fit(module, 6, ValuePretraining(max_rollouts=3), ckpt_path=path)
    assert len(rest.rollouts) == 6 - saved_after
    assert torch.equal(whole.actors[-1], rest.actors[-1])
    assert torch.equal(whole.critics[-1], rest.critics[-1])
    assert whole.rollouts[-1].responses == rest.rollouts[-1].responses
    assert module.rollouts_done == 6


def test_dynamic_sampling_fills_the_rollout_with_groups_that_can_teach(tiny_actor, tmp_path):
    seed_everything(0)
    path = tmp_path / "middle.ckpt"
    sampling = SamplingSettings(max_response_length=8, num_generations=2, dynamic_sampling=True)
    record = fit(make_module(tiny_actor, sampling=sampling), 8, SaveAfter(4, path))
    rollouts = [rollout for rollout in record.rollouts if rollout is not None]
    assert 2 <= len(rollouts) == record.trainer.lightning_module.rollouts_done < 8
    for rollout in rollouts:
        assert len(rollout) == 8
        assert rollout.group_ids_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert rollout.correct_B.view(4, 2).sum(1).tolist() == [1, 1, 1, 1]
    seed_everything(0)
    rest = fit(make_module(tiny_actor, sampling=sampling), 8, ckpt_path=path)
    assert len(rest.rollouts) == 4
    assert torch.equal(rest.actors[-1], record.actors[-1])


def test_the_reference_is_loaded_only_for_a_kl_and_never_saved(tiny_actor, tmp_path):
    seed_everything(0)
    assert fit(make_module(tiny_actor), 1).trainer.lightning_module.reference is None
    module = make_module(tiny_actor, policy=PolicySettings(kl_coef=0.1))
    record = fit(module, 1)
    assert not any(p.requires_grad for p in module.reference.parameters())
    record.trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"actor", "critic"}


def test_kl_in_the_reward_is_subtracted_from_each_token(tiny_actor):
    seed_everything(0)
    policy = PolicySettings(kl_coef=0.5, kl_estimator="k1", kl_placement="reward")
    second = fit(make_module(tiny_actor, policy=policy), 2).rollouts[1]
    kl_BT = second.old_logprobs_BT - second.ref_logprobs_BT
    assert kl_BT.abs().max() > 0
    placed_BT = second.rewards_BT + 0.5 * torch.where(second.response_mask_BT, kl_BT, 0.0)
    torch.testing.assert_close(placed_BT.sum(1), second.scores_B, atol=1e-5, rtol=1e-5)


def read_tokens(module) -> list[int]:
    """Count what each reading of the actor reads, from now on."""
    counts: list[int] = []
    read = module.scorer.actor_logprobs

    def counting(rollout):
        counts.append(len(rollout))
        return read(rollout)

    module.scorer.actor_logprobs = counting
    return counts


@pytest.mark.parametrize(
    ("source", "precision", "reads"),
    [
        ("auto", "32-true", False),
        ("auto", "bf16-true", True),
        ("recomputed", "32-true", True),
        ("sampler", "bf16-true", False),
    ],
)
def test_old_logprobs_come_from_where_the_settings_say(tiny_actor, source, precision, reads):
    seed_everything(0)
    module = make_module(tiny_actor, policy=PolicySettings(old_logprobs=source))
    module.configure_model()
    counts = read_tokens(module)  # of `score` alone: the objectives have theirs already
    rollout = fit(module, 1, precision=precision).rollouts[0]
    assert bool(counts) is reads
    equal = torch.equal(rollout.old_logprobs_BT, rollout.sampler_logprobs_BT)
    assert equal is not reads


def test_the_former_name_of_old_logprobs_is_taken_with_a_warning():
    for reuse, instead in ((True, "auto"), (False, "recomputed")):
        with pytest.warns(FutureWarning, match=f"is now policy.old_logprobs={instead}"):
            settings = PolicySettings(reuse_sampler_logprobs=reuse)
        assert settings == PolicySettings(old_logprobs=instead)
    with pytest.raises(ValueError, match="reuse_sampler_logprobs: remove it, because"):
        PolicySettings(reuse_sampler_logprobs=False, old_logprobs="sampler")


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_the_samplers_logprobs_are_not_corrected_for_the_sampler(mode):
    with pytest.raises(ValueError, match="importance_correction: with old_logprobs=sampler"):
        PolicySettings(old_logprobs="sampler", importance_correction=mode)
    settings = PolicySettings(old_logprobs="sampler")
    assert settings.correction_with(EngineSettings(name="vllm")) == "off"


def test_the_order_of_the_networks_does_not_matter_to_uncorrected_targets(tiny_actor):
    results = []
    for order in ("critic_first", "actor_first"):
        seed_everything(0)
        update = UpdateSettings(order=order, ppo_mini_batch_size=4)
        record = fit(make_module(tiny_actor, update=update), 2)
        results.append((record.actors[-1], record.critics[-1]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


class WithTargets(VCPPOModule):
    """Keep what each network learned from, and what the actor says of it when it is asked."""

    def begin_run(self):
        super().begin_run()
        self.learned_from = {}

    def update_network(self, network, rollout, epochs=None, also=()):
        logprobs_BT, _ = self.read(self.scorer.actor_logprobs, rollout)
        self.learned_from[network] = (rollout, logprobs_BT)
        super().update_network(network, rollout, epochs, also)


def test_corrected_targets_are_those_of_the_updated_actor(tiny_actor):
    seed_everything(0)
    value = ValueSettings(target_correction="importance", target_max_ratio=1.05, value_min=-2.0)
    settings = {"value": value, "update": ACTOR_FIRST, "sampling": SAMPLING}
    settings["actor_optimizer"] = OptimizerSettings(lr=1e-3)
    reward = "tests.support.training.random_reward"
    module = WithTargets(str(tiny_actor), reward=reward, **settings)
    record = fit(module, 2, precision="64-true")
    assert [*module.learned_from] == ["policy", "critic"]
    rollout, logprobs_BT = module.learned_from["critic"]
    before = record.rollouts[-1]
    mask_BT = before.response_mask_BT
    ratio_BT = (logprobs_BT - before.old_logprobs_BT).exp()
    kept_BT = mask_BT & (ratio_BT <= 1.05)
    assert 0 < kept_BT.sum() < mask_BT.sum()
    assert torch.equal(rollout.fitted_BT, kept_BT)
    expected_BT = -2.0 + ratio_BT * (before.returns_BT + 2.0)
    torch.testing.assert_close(rollout.returns_BT[kept_BT], expected_BT[kept_BT])
    weights_BT = module.objectives["critic"].weigh(rollout, identity).value_weights_BT
    torch.testing.assert_close(weights_BT, kept_BT / kept_BT.sum())
    left_out = 1 - float(kept_BT.sum() / mask_BT.sum())
    assert record.metrics[-1]["critic/target_left_out"] == pytest.approx(left_out, abs=1e-6)


def test_leave_one_out_trains_without_a_critic(tiny_actor):
    seed_everything(0)
    module = make_module(tiny_actor, advantage=AdvantageSettings(estimator="rloo", whiten=False))
    record = fit(module, 2, ValuePretraining())
    assert module.critic is None and not torch.equal(record.actors[0], record.actors[1])
    rollout = record.rollouts[0]
    others_B = rollout.scores_B.view(-1, 2).flip(1).flatten()
    torch.testing.assert_close(rollout.advantages_BT[:, 0], rollout.scores_B - others_B)


@pytest.mark.parametrize("estimator", ["group", "batch"])
def test_training_without_a_critic(tiny_actor, estimator):
    seed_everything(0)
    module = make_module(tiny_actor, advantage=AdvantageSettings(estimator=estimator))
    record = fit(module, 2, ValuePretraining())
    assert module.critic is None and record.critics == []
    assert not torch.equal(record.actors[0], record.actors[1])
    advantages_B = record.rollouts[0].advantages_BT[:, 0]
    if estimator == "group":
        torch.testing.assert_close(advantages_B.view(-1, 2).sum(1), torch.zeros(4))
    else:
        scores_B = record.rollouts[0].scores_B
        torch.testing.assert_close(advantages_B, scores_B - scores_B.mean())
    assert "critic/explained_variance" not in record.metrics[1]


def test_truncated_responses_may_end_in_the_critics_value(tiny_actor):
    seed_everything(0)
    module = make_module(tiny_actor, advantage=AdvantageSettings(bootstrap_truncated=True))
    record = fit(module, 2)
    rollout = record.rollouts[1]
    assert not rollout.finished_B.any()  # a random model does not find <eos> within 8 tokens
    bootstrap_B = module.scorer.bootstrap(rollout, Ranks())
    assert bootstrap_B.abs().min() > 0
    torch.testing.assert_close(
        rollout.returns_BT[:, -1] - rollout.scores_B != 0, torch.ones(8, dtype=torch.bool)
    )
    finished = rollout.with_(finished_B=torch.ones(8, dtype=torch.bool))
    assert module.scorer.bootstrap(finished, Ranks()).eq(0).all()


def test_masked_truncated_responses_leave_the_policy_alone_but_not_the_critic(tiny_actor):
    seed_everything(0)
    policy = PolicySettings(mask_truncated=True)  # here every response is truncated
    record = fit(make_module(tiny_actor, policy=policy), 2)
    assert torch.equal(record.actors[0], record.actors[1])
    assert not torch.equal(record.critics[0], record.critics[1])


@pytest.mark.parametrize(
    ("head", "loss"),
    every(4, [("bounded", "mse"), ("hl_gauss", "mse"), ("sigmoid", "bce"), ("sigmoid", "mse")]),
)
def test_other_value_heads_learn(tiny_actor, head, loss):
    seed_everything(0)
    value = ValueSettings(head=head, loss=loss, num_bins=21, value_min=-1.5, value_max=1.5)
    module = make_module(tiny_actor, value=value, reward=f"{__name__}.always_wrong")
    record = fit(module, 8, ValuePretraining(max_rollouts=8))
    first, last = (r.values_BT[r.response_mask_BT].mean() for r in record.rollouts[::7])
    assert first == pytest.approx(0.0, abs=1e-5)
    assert last < -0.3  # on its way to -1


def always_wrong(response: str, answer: int) -> float:
    """Punish everything."""
    return -1.0


def test_the_policy_learns_what_is_rewarded(tiny_actor):
    seed_everything(0)
    module = make_module(
        tiny_actor,
        reward=f"{__name__}.reward_of_even_starts",
        sampling=SamplingSettings(max_response_length=2),
        update=UpdateSettings(ppo_mini_batch_size=8),
        actor_optimizer=OptimizerSettings(lr=1e-2),
    )
    record = fit(module, 20, prompts=32, epochs=20)
    rewards = [float(rollout.scores_B.mean()) for rollout in record.rollouts]
    assert sum(rewards[:3]) / 3 < 0.4
    assert sum(rewards[-3:]) / 3 > 0.8


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tiny_actor):
    seed_everything(0)
    module = make_module(tiny_actor, reward=f"{__name__}.poison")
    record = fit(module, 2)
    assert torch.equal(record.actors[0], record.actors[1])
    assert module.updates_done == {"policy": 0, "critic": 0}
    assert record.metrics[-1]["update/skipped_policy"] == 4  # 2 epochs x 2 mini-batches
    assert record.metrics[-1]["update/skipped_critic"] == 4


def poison(response: str, answer: int) -> float:
    """Return what no verifier should."""
    return math.nan


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_the_value_head_stays_in_float32(tiny_actor, precision):
    seed_everything(0)
    module = make_module(tiny_actor)
    record = fit(module, 2, precision=precision)
    assert module.critic.head.weight.dtype == torch.float32
    trunk = next(module.critic.model.base_model.parameters()).dtype
    assert trunk == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert record.rollouts[1].values_BT.dtype == torch.float32
    assert all(math.isfinite(value) for value in record.metrics[1].values())
    assert not torch.equal(record.critics[0], record.critics[1])


def test_learning_rates_warm_up(tiny_actor):
    seed_everything(0)
    record = fit(make_module(tiny_actor, update=UpdateSettings(ppo_mini_batch_size=8)), 4)
    rates = [metrics["policy/lr"] for metrics in record.metrics]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    assert record.metrics[0]["critic/lr"] == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "advantage": AdvantageSettings(estimator="group"),
                "sampling": SamplingSettings(num_generations=1),
            },
            "num_generations: .* at least 2",
        ),
        ({"value": ValueSettings(target_correction="importance")}, "update.order=actor_first"),
        ({"sampling": SamplingSettings(temperature=0.0)}, "temperature"),
        ({"sampling": SamplingSettings(dynamic_sampling=True)}, "it drops groups"),
        ({"reward": "no_such_package.fn"}, "no_such_package"),
    ],
)
def test_contradictions_are_refused(tiny_actor, changes, message):
    with pytest.raises(ValueError, match=message):
        make_module(tiny_actor, **changes)


def test_an_optimizer_that_does_not_exist_is_refused(tiny_actor):
    settings = OptimizerSettings(class_path="torch.optim.AdamZ")
    with pytest.raises(ValueError, match=r"^class_path: .*; got torch\.optim\.AdamZ$"):
        fit(make_module(tiny_actor, actor_optimizer=settings), 1)


def test_a_checkpoint_is_loaded_as_any_module_of_lightning(tiny_actor, tmp_path):
    seed_everything(0)
    path = tmp_path / "last.ckpt"
    record = fit(make_module(tiny_actor), 2, SaveAfter(2, path))
    module = VCPPOModule.load_from_checkpoint(path, actor=str(tiny_actor))
    assert torch.equal(weights(module.actor), record.actors[-1])
    assert torch.equal(weights(module.critic), record.critics[-1])
    assert module.rollouts_done == 2


def test_exported_directories_are_read_back(tiny_actor, tmp_path: Path):
    seed_everything(0)
    module = make_module(tiny_actor)
    fit(module, 1)
    module.export(tmp_path)
    again = make_module(tmp_path / "actor", critic=str(tmp_path / "critic"))
    assert again.loader.critic_is_pretrained
    record = fit(again, 1, ValuePretraining(max_rollouts=5))
    assert "policy/loss" in record.metrics[0]  # no value pretraining for a fitted critic
    assert not list(tmp_path.glob("*.partial"))
