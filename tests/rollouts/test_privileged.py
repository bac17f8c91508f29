"""What the critic alone reads: never the response judged, and never anything for the actor."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.rollouts.privileged import PrivilegedPrompt, choose_siblings
from lightning_vcppo.rollouts.store import RolloutStore, pack, unpack
from lightning_vcppo.settings import SamplingSettings, UpdateSettings, ValueSettings
from tests.support.rollouts import make_rollout, rows
from tests.support.rows import every
from tests.support.training import SaveAfter, fit, make_module

TOKENIZER = default_tokenizer(320)
ANSWER, SIBLINGS = (ValueSettings(privileged_prompt=kind) for kind in ("answer", "siblings"))


def groups(correct=(True, False, True, False, True, True)):
    """Return two prompts with three responses each."""
    rollout = make_rollout([[5, 6]] * 3 + [[7]] * 3, [[20 + i, 30 + i] for i in range(6)])
    return rollout.with_(
        group_ids_B=torch.tensor([0, 0, 0, 1, 1, 1]), correct_B=torch.tensor(correct)
    )


def text(ids):
    return TOKENIZER.decode(ids)


def test_siblings_are_a_right_and_a_wrong_one_and_never_the_judged():
    correct = [True, False, True, True, False, True]
    assert choose_siblings(0, [0, 1, 2], correct) == [2, 1]
    assert choose_siblings(1, [0, 1, 2], correct) == [2, 0]  # two right ones: all there is
    assert choose_siblings(3, [3, 4, 5], correct) == [5, 4]
    assert choose_siblings(4, [3, 4], correct) == [3]
    assert choose_siblings(0, [0], correct) == []


def test_what_stands_before_the_prompts():
    rollout = groups()
    view = PrivilegedPrompt(TOKENIZER, ANSWER).view(rollout)
    hints = [p[: int(n)] for (p, _), n in zip(rows(view), view.hint_lengths_B, strict=True)]
    assert [text(h) for h in hints] == [f"Reference answer: {i}\n\n" for i in range(6)]
    view = PrivilegedPrompt(TOKENIZER, SIBLINGS).view(rollout)
    hints = [p[: int(n)] for (p, _), n in zip(rows(view), view.hint_lengths_B, strict=True)]
    third, second = text([22, 32]), text([21, 31])
    expected = f"A correct response:\n{third}\n\nAn incorrect response:\n{second}\n\n"
    assert text(hints[0]) == expected
    assert text(hints[1]).startswith("Reference answer: 1\n\nA correct response:\n")
    assert text(hints[1]).count("A correct response:") == 2
    for (prompt, response), (longer, same), n in zip(
        rows(rollout), rows(view), view.hint_lengths_B.tolist(), strict=True
    ):
        assert longer[n:] == prompt and same == response
    assert torch.equal(view.response_ids_N, rollout.response_ids_N)
    assert rollout.hint_lengths_B is None
    assert PrivilegedPrompt(TOKENIZER, SIBLINGS).view(view) is view


@pytest.mark.parametrize("row", range(6))
def test_a_hint_knows_nothing_of_the_response_that_is_judged(row):
    hints = PrivilegedPrompt(TOKENIZER, SIBLINGS).hints
    changed = groups()
    place = int(changed.prompt_lengths_B[row])
    changed.input_ids_BL[row, place : place + 2] = torch.tensor([90, 91])
    changed.correct_B[row] = ~changed.correct_B[row]
    assert hints(changed)[row] == hints(groups())[row]
    assert any(a != b for a, b in zip(hints(changed), hints(groups()), strict=True))


def test_long_siblings_keep_their_ends():
    rollout = make_rollout([[5]] * 3, [[9] * 200 + [i] for i in (11, 12, 13)]).with_(
        group_ids_B=torch.zeros(3, dtype=torch.long), correct_B=torch.tensor([True, False, True])
    )
    settings = replace(SIBLINGS, privileged_max_length=100)
    hints = PrivilegedPrompt(TOKENIZER, settings).hints(rollout)
    assert all(80 < len(hint) <= 100 for hint in hints)
    assert hints[0].index(13) < hints[0].index(12) and 11 not in hints[0]
    with pytest.raises(ValueError, match="privileged_max_length: expected >= 32"):
        ValueSettings(privileged_max_length=31)


def test_ranks_and_the_store_see_the_same_hints():
    prompt = PrivilegedPrompt(TOKENIZER, SIBLINGS)
    rollout = groups()
    halves = [prompt.hints(rollout.select(torch.arange(i, i + 3))) for i in (0, 3)]
    assert halves[0] + halves[1] == prompt.hints(rollout)
    view = prompt.view(rollout)
    again = unpack(pack(view))
    assert rows(again) == rows(view) and torch.equal(again.hint_lengths_B, view.hint_lengths_B)
    # A prompt is held out whatever the hints before it.
    store = RolloutStore(0, 0.5)
    store.add(view.with_(returns_BT=torch.zeros(6, 2)))
    others = prompt.view(groups((False, False, True, True, False, True)))
    store.add(others.with_(returns_BT=torch.zeros(6, 2)))
    assert [len(lesson) for lesson in store.rollouts_to_fit()] == [3]


def train(actor, path=None, *, kind="none", rollouts=1, pretraining=0, ckpt_path=None):
    seed_everything(0)
    module = make_module(
        actor,
        value=ValueSettings(privileged_prompt=kind, privileged_max_length=64, head="sigmoid"),
        sampling=SamplingSettings(max_response_length=8, num_generations=4),
        update=UpdateSettings(ppo_mini_batch_size=8, ppo_max_token_len_per_gpu=300),
    )
    callbacks = []
    if pretraining:
        callbacks.append(ValuePretraining(max_rollouts=pretraining, held_out_share=0.5))
    if path is not None:  # behind the callback whose state it saves
        callbacks.append(SaveAfter(1, path))
    return module, fit(module, rollouts, *callbacks, ckpt_path=ckpt_path)


@pytest.fixture(scope="module")
def unhinted(tiny_actor):
    return train(tiny_actor)[1]


@pytest.mark.parametrize("kind", ["answer", "siblings"])
def test_nothing_reaches_the_actor(tiny_actor, unhinted, kind):
    """The first rollout's values are those of a critic at its start: the same with any hint."""
    _, record = train(tiny_actor, kind=kind)
    assert torch.equal(record.actors[0], unhinted.actors[0])
    assert not torch.equal(record.critics[0], unhinted.critics[0])
    ours, theirs = record.rollouts[0], unhinted.rollouts[0]
    assert torch.equal(ours.old_logprobs_BT, theirs.old_logprobs_BT)
    assert torch.equal(ours.input_ids_BL, theirs.input_ids_BL) and ours.hint_lengths_B is None


def test_another_answer_changes_values_alone(tiny_actor):
    module, record = train(tiny_actor, kind="answer")
    rollout = record.rollouts[0]
    other = rollout.with_(problems=tuple(replace(p, answer=987) for p in rollout.problems))
    first, second = (module.score(r) for r in (rollout, other))
    assert torch.equal(first.old_logprobs_BT, second.old_logprobs_BT)
    assert not torch.equal(first.values_BT, second.values_BT)
    assert first.values_BT.shape == rollout.response_mask_BT.shape


@pytest.mark.parametrize("kind", every(2, ["answer", "siblings"]))
def test_pretraining_with_hints_resumes_exactly(tiny_actor, tmp_path, kind):
    path = tmp_path / "early.ckpt"
    _, whole = train(tiny_actor, path, kind=kind, rollouts=3, pretraining=2)
    _, resumed = train(tiny_actor, kind=kind, rollouts=3, pretraining=2, ckpt_path=path)
    assert torch.equal(resumed.critics[-1], whole.critics[-1])
    assert torch.equal(resumed.actors[-1], whole.actors[-1])
    with pytest.raises(ValueError, match=rf"value\.privileged_prompt: .* {kind}, got none"):
        train(tiny_actor, ckpt_path=path)


def test_a_directory_states_what_its_critic_has_read(tiny_actor, tmp_path):
    load_critic(str(tiny_actor), SIBLINGS).model.save_pretrained(tmp_path)
    load_critic(str(tmp_path), SIBLINGS)
    with pytest.raises(ValueError, match=r"trained with value head .*siblings.*, not .*answer"):
        load_critic(str(tmp_path), ANSWER)


def test_what_cannot_be_is_refused_in_one_line(tiny_actor):
    alone = SamplingSettings(max_response_length=8)
    with pytest.raises(
        ValueError, match=r"privileged_prompt: .*num_generations must be at least 2"
    ):
        make_module(tiny_actor, value=SIBLINGS, sampling=alone)
    module = make_module(tiny_actor, value=replace(ANSWER, privileged_max_length=1020))
    with pytest.raises(ValueError, match="more than the critic's 1024 positions") as error:
        fit(module, 1)
    assert "\n" not in str(error.value)
