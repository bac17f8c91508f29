"""States are spread, continuations are repeatable, budgets hold, and what is unfit is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_vcppo.critic_lab.branches import first_advantages, read_branches
from lightning_vcppo.critic_lab.continuations import (
    Continuing,
    Plan,
    State,
    choose_states,
    continuations,
)
from lightning_vcppo.critic_lab.judging import ActorOptions, continue_rollouts
from lightning_vcppo.critic_lab.running import read_rollouts
from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.critic_lab.values import ValueReader
from lightning_vcppo.models import loading
from lightning_vcppo.models.fingerprints import model_fingerprint
from lightning_vcppo.settings import SamplingSettings
from tests.support.lab_rollouts import write_rollouts
from tests.support.tiny_runs import run_program

REWARD = "tests.support.lab_rollouts.begins_with_y"


def by_columns(
    response: str, *, problem: str, level: int, finished: bool, response_ids: list[int]
) -> float:
    """Reward as the rollouts do, if everything that a reward function may read is there."""
    known = level == 7 and problem.endswith("?") and response_ids and finished in (True, False)
    return float("nan") if not known else 1.0 if response.startswith("y") else -1.0


@pytest.fixture(scope="module")
def store(tiny_actor: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    path = write_rollouts(tmp_path_factory.mktemp("lab") / "rollouts.jsonl")
    return read_rollouts(str(path), str(tiny_actor))[0]


def plan(store: TokenStore, **changes: object) -> Plan:
    length = max(store.response_lengths)
    usual = Plan(8, 3, REWARD, SamplingSettings(max_response_length=length), seed=0)
    return replace(usual, **changes)  # type: ignore[arg-type]


def continuing(store: TokenStore, actor: Path, **changes: object) -> Continuing:
    model = loading.load_actor(str(actor))
    return Continuing(store, model, loading.load_tokenizer(str(actor)), plan(store, **changes))


def test_states_are_spread_over_prompts_and_positions(store: TokenStore) -> None:
    rows = list(range(8, 40))
    states = choose_states(store, rows, 64, seed=1)
    assert len({(s.row, s.eighth) for s in states}) == len(states) == 64
    assert {s.row for s in states} == set(rows)
    assert Counter(s.eighth for s in states) == dict.fromkeys(range(8), 8)
    for s in states:
        length = store.response_lengths[s.row]
        assert s.eighth * length // 8 <= s.place < max(1, -(-(s.eighth + 1) * length // 8))
        if s.eighth == 4:
            assert s.place == length // 2
    assert choose_states(store, rows, 64, seed=1) == states != choose_states(store, rows, 64, 2)
    assert len(choose_states(store, rows[:2], 1000, seed=0)) == 16
    few = choose_states(store, rows, 8, seed=0)
    assert len({store.groups[s.row] for s in few}) == 8


def test_continuations_keep_budget_and_share_what_begins_alike(
    store: TokenStore, tiny_actor: Path
) -> None:
    last = store.response_lengths[0] - 1
    states = [State(0, 0, 0), State(0, 2, 2), State(0, last, 7), State(1, 3, 3)]
    found = continuing(store, tiny_actor, continuations=40).continue_all(states)
    for each in found:
        token = store.response(each.state.row)[each.state.place]
        assert all(ids[0] == token for ids in each.from_token)
        pairs = zip(each.from_state, each.from_token, each.rewards0, each.rewards, strict=True)
        shared = [(a is b or a == b, x == y) for a, b, x, y in pairs if a[0] == token]
        assert all(same and equal for same, equal in shared)
        longest = max(store.response_lengths) - each.state.place
        assert max(map(len, [*each.from_state, *each.from_token])) <= longest
    # Nothing follows the last token; the reward is the stored one.
    assert {tuple(ids) for ids in found[2].from_token} == {(store.response(0)[last],)}
    assert set(found[2].rewards) == {store.rewards[0]}
    # Behind a first character the reward is decided.
    assert set(found[1].rewards0) == {1.0} and set(found[3].rewards0) == {-1.0}
    one, again, other = (
        continuing(store, tiny_actor, seed=seed).continue_all(states[1:2]) for seed in (3, 3, 4)
    )
    assert one == again != other


def test_a_reward_function_reads_columns_and_needs_no_answer(
    store: TokenStore, tiny_actor: Path, tmp_path: Path
) -> None:
    path = write_rollouts(tmp_path / "plain.jsonl")
    imported = tmp_path / "rollouts.jsonl"
    run_program("import", path, "--output", imported, "--model", tiny_actor)
    rows = [json.loads(line) for line in imported.read_text().splitlines()]
    imported.write_text(
        "".join(json.dumps(row | {"columns": {"level": 7}, "answer": ""}) + "\n" for row in rows)
    )
    states = [State(0, 2, 2), State(1, 3, 3)]
    ours = read_rollouts(str(imported), str(tiny_actor))[0]
    reward = f"{__name__}.by_columns"
    expected = continuing(store, tiny_actor).continue_all(states)
    assert continuing(ours, tiny_actor, reward=reward).continue_all(states) == expected
    with pytest.raises(ValueError, match="reads 'level', which these responses do not have"):
        continuing(store, tiny_actor, reward=reward).continue_all(states)


def test_a_file_of_continuations_is_taken_over_if_it_is_of_the_same_plan(
    store: TokenStore, tiny_actor: Path, tmp_path: Path
) -> None:
    actor, tokenizer = loading.load_actor(str(tiny_actor)), loading.load_tokenizer(str(tiny_actor))
    path, rows = tmp_path / "continuations.jsonl", list(range(16))

    def found(changed: Plan) -> list[object]:
        fingerprint = model_fingerprint(actor)
        return list(continuations(path, store, rows, actor, fingerprint, tokenizer, changed))

    first = found(plan(store))
    written = path.stat().st_mtime_ns
    assert found(plan(store)) == first and path.stat().st_mtime_ns == written
    assert len(found(plan(store, prefixes=4))) == 4


def test_advantages_of_a_critic_of_zeros_are_discounted_rewards(
    store: TokenStore, tiny_actor: Path, tiny_critic: Path
) -> None:
    states = [State(0, 0, 0), State(1, 4, 4)]
    found = continuing(store, tiny_actor).continue_all(states)
    reader = ValueReader(str(tiny_critic), store, device="cpu")
    branches = read_branches(found, store, reader, (0.5, 1.0))
    assert branches.values_N.tolist() == [0.0, 0.0]
    for n, each in enumerate(found):
        for name, endings, rewards in (
            ("advantages0_LNM", each.from_state, each.rewards0),
            ("advantages_LNM", each.from_token, each.rewards),
        ):
            expected = [
                [lam ** (len(ids) - 1) * r for ids, r in zip(endings, rewards, strict=True)]
                for lam in (0.5, 1.0)
            ]
            np.testing.assert_allclose(getattr(branches, name)[:, n], expected)


def test_the_first_advantage_by_hand() -> None:
    # delta_0 = 0.6 - 0.2, delta_1 = 1 - 0.6.
    found = first_advantages([np.array([0.2, 0.6]), np.array([0.3])], [1.0, -1.0], [0.5, 1.0])
    np.testing.assert_allclose(found, [[0.4 + 0.5 * 0.4, -1.3], [0.8, -1.3]], rtol=1e-6)


def test_what_cannot_be_continued_is_refused(
    store: TokenStore, tiny_actor: Path, tmp_path: Path
) -> None:
    without = write_rollouts(tmp_path / "without.jsonl", answer="")
    bare, _ = read_rollouts(str(without), str(tiny_actor))
    with pytest.raises(ValueError, match="1 of 1 responses to continue have no stored answer"):
        continuing(bare, tiny_actor).continue_all([State(0, 0, 0)])
    options = ActorOptions(str(tiny_actor), prefixes=4, continuations=2, reward=REWARD)
    path, model = tmp_path / "c.jsonl", str(tiny_actor)
    with pytest.raises(ValueError, match="is not the policy of the rollouts"):
        continue_rollouts(path, store, {"model": "other"}, [0, 1], model, options, 0)
    short = replace(options, max_response_length=2)
    with pytest.raises(ValueError, match="--max_response_length: expected >= "):
        continue_rollouts(path, store, {}, [0, 1], model, short, 0)
    sampled = options.plan(store, {"temperature": 0.7, "max_response_length": 99}, 0).sampling
    assert (sampled.temperature, sampled.max_response_length, sampled.top_p) == (0.7, 99, 1.0)
