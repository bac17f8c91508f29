"""Value pretraining: when it ends, what it keeps, what it never fits on; from a file, too."""

import json
import math
import warnings
from copy import deepcopy
from dataclasses import asdict

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning_vcppo.callbacks.value_pretraining import Progress, StopRule

from lightning_vcppo import VCPPOModule
from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.common.seeding import stream
from lightning_vcppo.metrics.rollout import describe_fit, range_alignment_end
from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.rollouts.records import SavedResponse
from lightning_vcppo.settings import UpdateSettings, ValueSettings
from tests.support.rollouts import rows
from tests.support.tiny_runs import ROLLOUTS, vcppo
from tests.support.training import Recorder, fit, make_module, weights

NAN = math.nan


@pytest.mark.parametrize(
    ("rule", "explained", "rollouts", "best"),
    [
        (StopRule(5, 0, 2), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 5, 5),  # rises to the end
        (StopRule(9, 0, 2), [0.1, 0.3, 0.2, 0.25], 4, 2),  # has not risen for two
        (StopRule(9, 6, 2), [0.1, 0.3, 0.2, 0.2, 0.2, 0.4], 8, 6),  # not before six; rises there
        (StopRule(9, 0, 2), [0.1, 0.105, 0.108], 3, 3),  # rises by less than 0.01; yet the best
        (StopRule(9, 0, 2), [0.1, 0.108, 0.116, 0.124, 0.1], 5, 4),  # small rises add up
        (StopRule(9, 0, 9, target=0.3), [0.1, 0.31, 0.2], 2, 2),
        (StopRule(9, 3, 9, target=0.3), [0.1, 0.31, 0.2], 3, 2),  # not before three
        (StopRule(9, 0, 2), [-0.5, -0.2, -0.4, -0.3], 4, 2),  # below zero, too
        (StopRule(9, 0, 3), [NAN, NAN, NAN, 0.1], 3, 0),  # nothing to explain
        (StopRule(2, 5, 1), [0.1, 0.2, 0.3], 2, 2),  # the maximum wins
    ],
)
def test_the_stop_rule(rule, explained, rollouts, best):
    progress = Progress()
    for value in [*explained, 0.0, 0.0]:
        rule.advance(progress, value)
        if rule.is_over(progress):
            break
    assert (progress.rollouts, progress.best_rollout) == (rollouts, best)


def test_describe_fit_by_hand():
    mask_BT = torch.tensor([[True, True], [True, False]])
    values_BT = torch.tensor([[0.0, 0.5], [0.0, NAN]])
    returns_BT = torch.tensor([[1.0, 1.0], [-1.0, NAN]])
    fit_of = describe_fit(values_BT, returns_BT, mask_BT)
    # errors 1, 0.5, -1: mean 1/6, mean square 0.75; returns: mean 1/3, variance 8/9
    assert fit_of["bias"] == pytest.approx(1 / 6)
    assert fit_of["loss"] == pytest.approx(0.375)
    assert fit_of["explained_variance"] == pytest.approx(1 - (0.75 - 1 / 36) / (8 / 9))
    assert fit_of["r2"] == pytest.approx(1 - 0.75 / (8 / 9))


def test_range_alignment_ends_when_the_bias_is_a_twentieth_of_the_squared_error():
    assert range_alignment_end([2.0, 1.0, 0.5, 0.4], [1.8, 0.9, 0.23, 0.1]) == 3
    assert range_alignment_end([2.0, 1.0, 0.5], [1.8, 0.9, 0.22]) == 2
    assert range_alignment_end([2.0, 1.0], [1.8, 0.9]) is None


class After(Callback):
    """Keep what each rollout left behind when value pretraining has judged it."""

    def __init__(self):
        self.explained, self.states, self.weights, self.metrics = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.weights.append(weights(pl_module.critic))
        # Of what makes the steps: Lightning's wrapper may say something else.
        state = trainer.optimizers[1].state_dict()
        self.states.append({"optimizer": deepcopy(state)})


def test_a_best_critic_that_was_chosen_by_another_measure_is_forgotten():
    schedule = ValuePretraining()
    old = asdict(Progress(3, 900, best=0.4, best_rollout=2, risen_to=0.4, risen_at=2))
    state = {"finished": False, "progress": old, "stored_by_rank": [{}], "best_critic": {"a": 1}}
    schedule.load_state_dict(state)
    kept = schedule.state_dict()
    assert kept["progress"] == asdict(Progress(3, 900, risen_at=3)) and not kept["best_critic"]
    schedule.load_state_dict(state | {"measure": kept["measure"]})
    assert schedule.state_dict()["progress"] == old
    schedule.load_state_dict({"finished": True, "progress": old})
    assert schedule.state_dict() == {
        "finished": True,
        "progress": old,
        "measure": kept["measure"],
    }


def moments(state):
    return torch.cat([s["exp_avg"].flatten() for s in state["optimizer"]["state"].values()])


def test_the_best_critic_comes_back_with_its_optimizer(tiny_actor, tmp_path):
    seed_everything(1)
    before, after = Recorder(), After()
    module = make_module(tiny_actor)
    schedule = ValuePretraining(
        max_rollouts=5, min_rollouts=5, held_out_share=0.5, dirpath=str(tmp_path)
    )
    fit(module, 5, before, schedule, after)
    measured = [m["value_pretraining/r2"] for m in after.metrics]
    best = max(range(5), key=lambda i: measured[i])
    assert best < 4  # else it would be the last one anyway
    assert torch.equal(after.weights[-1], before.critics[best])
    assert not torch.equal(after.weights[-1], before.critics[-1])
    assert torch.equal(moments(after.states[-1]), moments(after.states[best]))
    exported = load_critic(str(tmp_path / "critic"), ValueSettings())
    assert torch.equal(weights(exported), before.critics[best])
    assert module.phase is Phase.POLICY_OPTIMIZATION and module.rollout_store is None


class Watched(VCPPOModule):
    """Remembers the prompts of every update of the critic."""

    def update_network(self, network, rollout, epochs=None, also=()):
        self.fitted = [*getattr(self, "fitted", []), [tuple(p) for p, _ in rows(rollout)]]
        super().update_network(network, rollout, epochs, also)


def test_held_out_prompts_are_never_fitted_on_though_they_come_again(tiny_actor):
    seed_everything(1)
    settings = vars(make_module(tiny_actor))
    module = Watched(
        str(tiny_actor),
        reward="tests.support.training.random_reward",
        **{name: settings[name] for name in ("sampling", "evaluation", "update")},
    )
    held_out = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            store = pl_module.rollout_store
            held_out["prompts"] = {tuple(p) for p, _ in rows(store.held_out)}
            held_out["sampled"] = [
                *held_out.get("sampled", []),
                {tuple(p) for p, _ in rows(pl_module.rollout)},
            ]

    # 40 problems in rollouts of 20: the second epoch brings the held-out ones again.
    schedule = ValuePretraining(max_rollouts=9, min_rollouts=9, replays=1, held_out_share=0.5)
    fit(module, 2, Look(), schedule, prompts=20, epochs=2)
    first, *later = held_out["sampled"]
    assert len(held_out["prompts"]) == 10 and held_out["prompts"] < first
    assert any(held_out["prompts"] & prompts for prompts in later)
    assert len(module.fitted) == 8  # of each step one replay and the newest
    assert not held_out["prompts"] & {prompt for lesson in module.fitted for prompt in lesson}


def test_each_step_replays_and_replays_alone_change_the_fit(tiny_actor):
    updates = []
    for replays in (0, 3):
        seed_everything(1)
        module = make_module(tiny_actor, update=UpdateSettings(ppo_mini_batch_size=4))
        schedule = ValuePretraining(max_rollouts=2, replays=replays, held_out_share=0.5)
        fit(module, 2, schedule)
        updates.append(module.updates_done["critic"])
    # First rollout: 4 of 8 responses are fitted, an update a pass; second: 8, two updates. With
    # three replays: 3 + 1 passes over the first, then first, second, first, and the second.
    assert updates == [1 + 2, 4 + (1 + 2 + 1 + 2)]


@pytest.mark.parametrize(("max_rollouts", "of_policy"), [(1, 1), (2, 0), (3, 0)])
def test_a_run_that_may_not_train_its_policy_says_so(max_rollouts, of_policy, tiny_actor, tmp_path):
    module = make_module(tiny_actor)
    schedule = ValuePretraining(max_rollouts=max_rollouts, dirpath=str(tmp_path))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(module, 2, schedule)
    texts = [str(warning.message) for warning in said]
    before = [
        text for text in texts if text.startswith("Value pretraining may take all 2 rollouts")
    ]
    after = [text for text in texts if "the policy was not trained" in text]
    assert len(before) == (of_policy == 0) and len(after) == (max_rollouts > 2)


# From a file


def saved_responses(module, rollouts, run_seed):
    """Return responses in the order in which `SavedRollouts` deals out these rollouts."""
    groups = []
    for rollout in rollouts:
        for row, (prompt, response) in enumerate(rows(rollout)):
            if row % 2 == 0:
                groups.append([])
            groups[-1].append(
                {
                    "prompt_ids": prompt,
                    "response_ids": response,
                    "reward": float(rollout.scores_B[row]),
                    "finished": bool(rollout.finished_B[row]),
                    "sample": row % 2,
                }
            )
    order = torch.randperm(len(groups), generator=stream(run_seed, "saved rollouts")).tolist()
    placed = sorted(zip(order, groups, strict=True), key=lambda pair: pair[0])
    common = {"source": "", "problem": "", "answer": 0, "response": "", "prediction": None}
    common |= {"correct": True, "length": 8, "origin": module.sampler.origin(module.sampling)}
    return [SavedResponse(index=i, **common, **row) for i, group in placed for row in group]


def write(path, responses):
    path.write_text("".join(json.dumps(asdict(response)) + "\n" for response in responses))
    return str(path)


@pytest.fixture(scope="module")
def online(tiny_actor):
    """A phase of three rollouts that were generated, and what was left after each."""
    seed_everything(1)
    module = make_module(tiny_actor)
    before = fit(module, 3, ValuePretraining(max_rollouts=9, held_out_share=0.5))
    return module, before


def pretrain_from(path, tiny_actor, rollouts):
    seed_everything(1)
    after = After()
    schedule = ValuePretraining(
        max_rollouts=9, min_rollouts=9, held_out_share=0.5, rollouts_path=path
    )
    before = fit(make_module(tiny_actor), rollouts, schedule, after)
    return before, after


def test_saved_rollouts_fit_the_critic_that_generated_ones_do(online, tiny_actor, tmp_path):
    module, generated = online
    responses = saved_responses(module, generated.rollouts, module.run_seed)
    saved, after = pretrain_from(write(tmp_path / "x.jsonl", responses), tiny_actor, 4)
    for i in range(3):
        assert rows(saved.rollouts[i]) == rows(generated.rollouts[i])
        assert torch.equal(saved.critics[i], generated.critics[i])
    assert rows(saved.rollouts[3]) == rows(saved.rollouts[0])  # the file from its start
    assert not torch.equal(saved.critics[3], saved.critics[2])
    assert after.metrics[-1]["value_pretraining/generated_tokens"] == 0
    assert after.metrics[-1]["value_pretraining/rollouts"] == 4


def test_what_is_held_out_has_no_part_in_the_fit(online, tiny_actor, tmp_path):
    module, generated = online
    responses = saved_responses(module, generated.rollouts, module.run_seed)
    first_prompts = [p for p, _ in rows(generated.rollouts[0])][::2]
    held_out = [first_prompts[1], first_prompts[3]]
    results = []
    for sign in (1.0, -1.0):
        for response in responses:
            if response.prompt_ids in held_out:
                response.reward *= sign
        path = write(tmp_path / f"{sign}.jsonl", responses)
        results.append(pretrain_from(path, tiny_actor, 3))
    (plain, plain_after), (flipped, flipped_after) = results
    assert torch.equal(plain.critics[-1], flipped.critics[-1])
    key = "value_pretraining/bias"
    assert plain_after.metrics[-1][key] != pytest.approx(flipped_after.metrics[-1][key])


def test_saved_rollouts_of_another_policy_are_refused(online, tiny_actor, tmp_path):
    module, generated = online
    responses = saved_responses(module, generated.rollouts, module.run_seed)
    for response in responses:
        response.origin = response.origin | {"tokenizer": "0123"}
    path = write(tmp_path / "x.jsonl", responses)
    with pytest.raises(ValueError, match=r"x\.jsonl: .* another policy: tokenizer 0123 instead"):
        pretrain_from(path, tiny_actor, 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"replays": -1}, "replays: expected >= 0"),
        ({"patience": 0}, "patience: expected >= 1 rollout"),
        ({"held_out_share": 0.0}, r"held_out_share: expected a share in \(0, 1\), got 0.0"),
        ({"held_out_share": 1.0}, "held_out_share: expected"),
    ],
)
def test_numbers_out_of_range_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        ValuePretraining(**flags)


def test_a_trial_of_two_rollouts_goes_through_both_phases(tiny_actor, tmp_path):
    vcppo(
        *("fit", f"--model.actor={tiny_actor}", *ROLLOUTS, "--value_pretraining.max_rollouts=9"),
        *(
            "--trainer.fast_dev_run=2",
            "--trainer.callbacks+=tests.support.tiny_runs.WeightsWatcher",
        ),
        *("--model.actor_optimizer.lr=1e-3", f"--trainer.default_root_dir={tmp_path}"),
    )
    lines = (tmp_path / "weights_0.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["actor"] != second["actor"] and first["critic"] != second["critic"]
