"""Continue states of stored responses with the policy, and grade the results.

1. A state is the place before a token of a held-out response. Each response has one or more states,
   spread evenly over the eighths of a response. In the third, fifth and seventh eighth the place is
   exactly after 25, 50 and 75 %; in the others it is random.
2. The policy continues each state M times, and each state with its token M times. `truth` explains
   why the two share as many continuations as possible.
3. The seed, the state and the number of a continuation name its random stream, so a call samples
   the same tokens however continuations are batched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.files import complete_file
from lightning_vcppo.common.seeding import stream, stream_seed
from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.critic_lab.truth import EIGHTHS
from lightning_vcppo.rewards.functions import Grader
from lightning_vcppo.rollouts.sampler import Sampler
from lightning_vcppo.settings import EngineSettings, SamplingSettings

SEQUENCES = 1024
"""Number of continuations in one call of the engine, sorted by the number of tokens left."""
TOLERATED = 0.05
"""Largest share of stored rewards that the grader may contradict."""
EXACT = {2: 0.25, 4: 0.5, 6: 0.75}
"""Share of the response after which all states of an eighth lie."""


@dataclass(frozen=True)
class State:
    """A place in a stored response.

    Attributes:
        row: Number of the response.
        place: Number of its tokens that are kept.
        eighth: Eighth of the response, counted from 0.
    """

    row: int
    place: int
    eighth: int


@dataclass(frozen=True)
class Continued:
    """A state and its continuations by the policy.

    Attributes:
        state: The state.
        from_state: Token ids of M continuations.
        from_token: Token ids of M continuations that begin with the stored token.
        rewards0: Rewards of the continuations from the state.
        rewards: Rewards of the continuations from the token.
    """

    state: State
    from_state: list[list[int]]
    from_token: list[list[int]]
    rewards0: list[float]
    rewards: list[float]


@dataclass(frozen=True)
class Plan:
    """The number of continuations, and the settings with which they are sampled and graded.

    Attributes:
        prefixes: Number of states, at most eight for each response.
        continuations: Number M of continuations.
        reward: Style of the verifier, or a reward function.
        sampling: Temperature, top-p and largest length of the stored responses' policy.
        seed: Seed of states and continuations.
    """

    prefixes: int
    continuations: int
    reward: str
    sampling: SamplingSettings
    seed: int

    def __post_init__(self) -> None:
        """Refuse numbers that are too small for an estimate."""
        require(self.prefixes >= 2, f"--prefixes: expected >= 2, got {self.prefixes}")
        require(
            self.continuations >= 2, f"--continuations: expected >= 2, got {self.continuations}"
        )


def choose_states(store: TokenStore, rows: Sequence[int], count: int, seed: int) -> list[State]:
    """Choose states of as many prompts and responses as possible.

    Args:
        store: Store of the rollouts.
        rows: Responses that may be continued.
        count: Number of states; at most eight for each response are returned.
        seed: Seed of the choice.
    """
    rng = stream(seed, "states")
    by_prompt: dict[int, list[int]] = {}
    for i in torch.randperm(len(rows), generator=rng).tolist():
        by_prompt.setdefault(store.groups[rows[i]], []).append(rows[i])
    longest = max(map(len, by_prompt.values()))
    ordered = [of[k] for k in range(longest) for of in by_prompt.values() if k < len(of)]
    first = torch.randperm(len(ordered), generator=rng) % EIGHTHS
    states = []
    for i in range(min(count, EIGHTHS * len(ordered))):
        again, at = divmod(i, len(ordered))
        eighth = (int(first[at]) + 3 * again) % EIGHTHS  # another one each time
        within = torch.rand((), generator=rng).item()
        share = EXACT.get(eighth, (eighth + within) / EIGHTHS)
        length = store.response_lengths[ordered[at]]
        states.append(State(ordered[at], min(int(share * length), length - 1), eighth))
    return states


class Continuing:
    """An actor that continues stored responses, and a grader that agrees with their rewards."""

    def __init__(
        self,
        store: TokenStore,
        actor: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        plan: Plan,
    ) -> None:
        """Collect the parts.

        Args:
            store: Store of the rollouts.
            actor: Policy of the rollouts, on its device.
            tokenizer: Tokenizer of the actor.
            plan: The plan of sampling.
        """
        self._store, self._plan = store, plan
        # Two different rewards are those of right and wrong responses, whatever their scale.
        self._scale = store.reward_range if len(set(store.rewards)) == 2 else None
        self._sampler = Sampler(tokenizer, Grader(plan.reward), EngineSettings())
        self._sampler.attach(actor)

    def continue_all(self, states: Sequence[State]) -> list[Continued]:
        """Continue states as described at the top of this file.

        Raises:
            ValueError: If a prompt has no stored answer, a column that the reward function reads is
                not stored, or the grader contradicts stored rewards.
        """
        self._check_rewards(sorted({state.row for state in states}))
        many = range(self._plan.continuations)
        tokens = [self._store.response(state.row)[state.place] for state in states]
        jobs = [(i, j) for i in range(len(states)) for j in many]
        found = self._sample(states, jobs, [[]] * len(jobs), "from the state")
        # A continuation that begins with the stored token also counts as one from that token.
        others = [job for job in jobs if found[job][0][0] != tokens[job[0]]]
        over = {i for i, _ in others if self._ends_there(states[i])}
        missing = [job for job in others if job[0] not in over]
        given = [[tokens[i]] for i, _ in missing]
        separate = self._sample(states, missing, given, "from the token")
        for i, j in others:
            if i in over:
                separate[i, j] = [tokens[i]], self._store.rewards[states[i].row]
        continued = []
        for i, state in enumerate(states):
            from_state = [found[i, j] for j in many]
            from_token = [separate.get((i, j), found[i, j]) for j in many]
            continued.append(
                Continued(
                    state,
                    [ids for ids, _ in from_state],
                    [ids for ids, _ in from_token],
                    [reward for _, reward in from_state],
                    [reward for _, reward in from_token],
                )
            )
        return continued

    def _ends_there(self, state: State) -> bool:
        """Return whether the stored token is the last one, so that nothing follows."""
        return state.place + 1 == self._store.response_lengths[state.row]

    def _sample(
        self,
        states: Sequence[State],
        jobs: Sequence[tuple[int, int]],
        given: Sequence[list[int]],
        purpose: str,
    ) -> dict[tuple[int, int], tuple[list[int], float]]:
        """Return the tokens, including the given ones, and the reward of each (state, number)."""
        limit = self._plan.sampling.max_response_length
        left = [
            limit - states[i].place - len(start) for (i, _), start in zip(jobs, given, strict=True)
        ]
        order = sorted(range(len(jobs)), key=lambda job: left[job])
        found: dict[tuple[int, int], tuple[list[int], float]] = {}
        for begin in range(0, len(order), SEQUENCES):
            chunk = order[begin : begin + SEQUENCES]
            rows = [states[jobs[job][0]].row for job in chunk]
            prompts = [self._store.prompt(row) for row in rows]
            before = [
                [*self._store.response(row)[: states[jobs[job][0]].place], *given[job]]
                for row, job in zip(rows, chunk, strict=True)
            ]
            sampled = self._sampler.generate(
                [[*prompt, *ids] for prompt, ids in zip(prompts, before, strict=True)],
                [self._seed(states, purpose, *jobs[job]) for job in chunk],
                self._sampling(left[chunk[-1]]),
            )
            # A shorter limit cuts the same tokens off a longer continuation.
            endings = [
                ids_T[mask_T].tolist()[: left[job]]
                for ids_T, mask_T, job in zip(
                    sampled.response_ids_BT, sampled.response_mask_BT, chunk, strict=True
                )
            ]
            rewards = self._rewards(rows, [[*a, *b] for a, b in zip(before, endings, strict=True)])
            for job, ending, reward in zip(chunk, endings, rewards, strict=True):
                found[jobs[job]] = [*given[job], *ending], reward
        return found

    def _seed(self, states: Sequence[State], purpose: str, state: int, number: int) -> int:
        """Return the seed of a continuation."""
        row, place = states[state].row, states[state].place
        return stream_seed(self._plan.seed, purpose, row, place, number)

    def _sampling(self, longest: int) -> SamplingSettings:
        sampling = self._plan.sampling
        return SamplingSettings(
            temperature=sampling.temperature, top_p=sampling.top_p, max_response_length=longest
        )

    # Rewards -------------------------------------------------------------------------------------

    def _rewards(self, rows: Sequence[int], responses: Sequence[list[int]]) -> list[float]:
        """Return the rewards of complete responses, on the scale of the stored rewards."""
        store = self._store
        _, grades = self._sampler.grade(
            [store.problems[store.groups[row]] for row in rows],
            [store.prompt(row) for row in rows],
            responses,
        )
        if self._scale is not None:
            low, high = self._scale
            return [high if grade.correct else low for grade in grades]
        return [grade.reward for grade in grades]

    def _check_rewards(self, rows: Sequence[int]) -> None:
        store = self._store
        missing = sum(store.problems[store.groups[row]].answer == "" for row in rows)
        require(
            not missing or not self._sampler.grader.reads.answer,
            f"--actor: {missing} of {len(rows)} responses to continue have no stored answer to "
            "grade by; import the rollouts with --problems=FILE",
        )
        graded = self._rewards(rows, [store.response(row) for row in rows])
        wrong = [
            row
            for row, reward in zip(rows, graded, strict=True)
            if not math.isclose(store.rewards[row], reward, rel_tol=1e-6, abs_tol=1e-6)
        ]
        require(
            len(wrong) <= TOLERATED * len(rows),
            f"--reward: {self._plan.reward} contradicts the stored reward of {len(wrong)} of "
            f"{len(rows)} responses, so continuations would be graded differently; name the reward "
            "function of the rollouts",
        )


# The file of continuations ----------------------------------------------------------------------


def continuations(
    path: Path,
    store: TokenStore,
    rows: Sequence[int],
    actor: PreTrainedModel,
    fingerprint: str,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
) -> list[Continued]:
    """Return the continuations in a file, or sample them and write it.

    Args:
        path: Path of the file; it is replaced if its plan, actor or rollouts differ.
        store: Store of the rollouts.
        rows: Responses that may be continued.
        actor: The policy, on its device.
        fingerprint: Fingerprint of the actor's weights, which identifies it in the file.
        tokenizer: Tokenizer of the actor.
        plan: The plan of sampling.

    Raises:
        ValueError: As in `Continuing.continue_all`.
    """
    head = asdict(plan) | {"actor": fingerprint, "responses": len(store)}
    head["rows"] = stream_seed(*rows)
    if (saved := _read(path, head)) is not None:
        return saved
    states = choose_states(store, rows, plan.prefixes, plan.seed)
    found = Continuing(store, actor, tokenizer, plan).continue_all(states)
    with complete_file(path) as file:
        for line in (head, *map(asdict, found)):
            file.write(json.dumps(line) + "\n")
    return found


def _read(path: Path, head: dict[str, Any]) -> list[Continued] | None:
    if not path.exists():
        return None
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    if json.loads(first) != head:
        return None
    rows = map(json.loads, lines)
    return [Continued(**row | {"state": State(**row["state"])}) for row in rows]
