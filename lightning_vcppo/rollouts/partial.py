"""Continue long responses with the next weights, so that no step waits for the longest one.

Source: partial rollouts of Kimi k1.5, arXiv 2501.12599, section 2.6.2.

1. In one step a response gains at most `length` tokens. If it has not ended, it waits, and the next
   step continues it from its prompt and its tokens, beside the responses to the next prompts.
2. A group leaves when all of its responses have ended, so estimators that compare the responses to
   a prompt have all of them. `GroupBuffer` collects the groups until a rollout is full.
3. Each token keeps its log-probability and the version of the weights that sampled it. The
   importance correction, or a loss on the sampler's log-probabilities, is per token, so it treats
   a response of several versions like any other. It corrects what each token was drawn from, not
   how likely the tokens before it were: states are those of older policies.
4. Short responses leave first, so the first rollouts have more of them than the policy has. From
   then on as many long responses arrive as begin. Those that wait at the end of a run are lost.
5. How long anything takes decides nothing, and a checkpoint holds what waits: a run is reproducible
   and resumes exactly.

Shapes: B responses, T response tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_vcppo.algorithm.statistics import masked_mean
from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.collectives import Ranks, gather
from lightning_vcppo.generation import Generations
from lightning_vcppo.rollouts.ahead import Vantage
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.rollouts.sampler import Sampler
from lightning_vcppo.settings import SamplingSettings


@dataclass
class Response:
    """A response that may go on.

    Attributes:
        problem: The problem that it answers.
        prompt_ids: Token ids of the prompt.
        index: Position of the problem in its data set.
        sample: Number of the response in its group.
        position: Row among all responses of all ranks, in the order of their batches.
        finished: Whether the end-of-sequence token was sampled.
        ids_T: Tokens so far, on the CPU, as all that follows.
        logprobs_T: Log-probability of each under the weights that sampled it.
        entropy_T: Entropy of the distribution of each; NaN from an engine that does not return it.
        versions_T: Number of updates of the weights that sampled each.
    """

    problem: Problem
    prompt_ids: list[int]
    index: int
    sample: int
    position: int
    finished: bool
    ids_T: Tensor
    logprobs_T: Tensor
    entropy_T: Tensor
    versions_T: Tensor

    def grow(self, sampled: Generations, row: int, version: int) -> None:
        """Append a row of newly sampled tokens."""
        count = int(sampled.response_mask_BT[row].sum())
        logprobs_T = sampled.logprobs_BT[row, :count].cpu()
        entropy_T = torch.full_like(logprobs_T, torch.nan)
        if sampled.entropy_BT is not None:
            entropy_T = sampled.entropy_BT[row, :count].cpu()
        self.ids_T = torch.cat([self.ids_T, sampled.response_ids_BT[row, :count].cpu()])
        self.logprobs_T = torch.cat([self.logprobs_T.to(logprobs_T), logprobs_T])
        self.entropy_T = torch.cat([self.entropy_T.to(logprobs_T), entropy_T])
        self.versions_T = torch.cat([self.versions_T, torch.full((count,), version)])
        self.finished = bool(sampled.finished_B[row])

    def to_plain(self) -> dict[str, Any]:
        """Return its fields as a checkpoint takes them."""
        return vars(self) | {"problem": list(astuple(self.problem))}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Response:
        """Return the response from what `to_plain` has returned."""
        return cls(**plain | {"problem": Problem(*plain["problem"])})


class PartialRollouts:
    """Samples responses in parts, and keeps those that have not ended.

    Attributes:
        length: Most tokens of a part; None if responses are sampled as a whole.
    """

    def __init__(self, length: int | None, sampler: Sampler) -> None:
        """Start with nothing."""
        self.length, self._sampler = length, sampler
        self.begin_run()

    @property
    def is_on(self) -> bool:
        """Whether responses are sampled in parts."""
        return self.length is not None

    def begin_run(self) -> None:
        """Forget what an earlier run has left."""
        self._waiting: list[Response] = []
        self._begun = self._updates = 0

    def sample(
        self,
        batch: PromptBatch,
        settings: SamplingSettings,
        stream: tuple[int | str, ...],
        at: Vantage,
        ranks: Ranks,
    ) -> Rollout | None:
        """Sample the next part of all responses; called on every rank.

        Args:
            batch: Prompts of this rank, which begin now; every rank has equally many.
            settings: Sampling settings, with the length of complete responses.
            stream: Names the random streams of this step.
            at: This process, and the weights of now.
            ranks: Of the run.

        Returns:
            The groups of this rank that are complete now, None if there are none. `positions_B` and
            `group_ids_B` are in the order in which all responses have begun.
        """
        assert self.length is not None
        limit, n = settings.max_response_length, settings.num_generations
        self._updates = at.updates
        self._begin(batch, n, ranks)
        running = [response for response in self._waiting if not _has_ended(response, limit)]
        part = self._sampler.generate(
            [response.prompt_ids + response.ids_T.tolist() for response in running],
            [_seed(stream, response) for response in running],
            replace(settings, max_response_length=self.length),
            version=at.version,
        )
        for row, response in enumerate(running):
            response.grow(part, row, at.updates)
        ended = Counter(r.position // n for r in self._waiting if _has_ended(r, limit))
        done = [r for r in self._waiting if ended[r.position // n] == n]
        self._waiting = [r for r in self._waiting if ended[r.position // n] < n]
        return self._rollout(done, n, at.device) if done else None

    def _begin(self, batch: PromptBatch, n: int, ranks: Ranks) -> None:
        """Let the responses to a batch wait for their first tokens."""
        rows = len(batch) * n
        # Groups begin at multiples of n; the checkpoint of a run with another n may not.
        self._begun += -self._begun % n
        first = self._begun + ranks.rank * rows
        nothing = torch.zeros(0)
        self._waiting += [
            Response(
                batch.problems[row // n],
                batch.prompt_ids[row // n],
                batch.indices[row // n],
                row % n,
                first + row,
                finished=False,
                ids_T=nothing.long(),
                logprobs_T=nothing,
                entropy_T=nothing,
                versions_T=nothing.long(),
            )
            for row in range(rows)
        ]
        self._begun += ranks.count * rows

    def _rollout(self, done: Sequence[Response], n: int, device: torch.device) -> Rollout:
        """Grade complete responses."""

        def padded(name: str) -> Tensor:
            tensors = [getattr(response, name) for response in done]
            return pad_sequence(tensors, batch_first=True).to(device)

        lengths_B = torch.tensor([len(response.ids_T) for response in done], device=device)
        ids_BT, entropy_BT = padded("ids_T"), padded("entropy_T")
        mask_BT = torch.arange(ids_BT.shape[1], device=device) < lengths_B[:, None]
        responses = Generations(
            ids_BT,
            mask_BT,
            padded("logprobs_T"),
            torch.tensor([response.finished for response in done], device=device),
            None if bool(entropy_BT.isnan().any()) else entropy_BT,
        )
        rollout = self._sampler.graded(
            [response.problem for response in done],
            [response.prompt_ids for response in done],
            responses,
            torch.tensor([response.position for response in done], device=device),
            n,
        )
        return rollout.with_(versions_BT=padded("versions_T"))

    def describe(self, rollout: Rollout, ranks: Ranks) -> dict[str, float]:
        """Return the mean age of a rollout's tokens, and how many responses wait.

        Args:
            rollout: The rollout that was learned from.
            ranks: Of the run; each must call it.
        """
        if rollout.versions_BT is None:
            return {}
        ages_BT = (self._updates - rollout.versions_BT).to(rollout.sampler_logprobs_BT)
        waiting = ranks.sum(rollout.scores_B.new_tensor([float(len(self._waiting))]))
        return {
            "rollout/age": float(masked_mean(ages_BT, rollout.response_mask_BT, reduce=ranks.sum)),
            "rollout/unfinished": float(waiting),
        }

    # Checkpoints ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the waiting responses of all ranks; called on every rank."""
        if not self.is_on:
            return {}
        mine = [response.to_plain() for response in self._waiting]
        return {"begun": self._begun, "waiting": gather(mine)}

    def load_state_dict(self, state: dict[str, Any], ranks: Ranks) -> None:
        """Continue what a checkpoint has of all its ranks; here there may be more, or fewer.

        Args:
            state: What `state_dict` has returned.
            ranks: Of the run.
        """
        self.begin_run()
        if not self.is_on or not state:
            return
        self._begun = state["begun"]
        of_ranks = [[Response.from_plain(plain) for plain in plains] for plains in state["waiting"]]
        if len(of_ranks) == ranks.count:
            self._waiting = of_ranks[ranks.rank]
            return
        everything = [response for waiting in of_ranks for response in waiting]
        everything.sort(key=lambda response: response.position)
        first = [response.position - response.sample for response in everything]
        mine = set(sorted(set(first))[ranks.rank :: ranks.count])  # groups stay together
        self._waiting = [r for r, group in zip(everything, first, strict=True) if group in mine]


def unfinished_groups(state: dict[str, Any]) -> tuple[int, set[int]]:
    """Return how many responses of all ranks wait in a state of `PartialRollouts`.

    Args:
        state: What `PartialRollouts.state_dict` has returned.

    Returns:
        Their number, and the numbers of responses of their groups, which wait as a whole.
    """
    places = [(r["position"], r["sample"]) for of_rank in state.get("waiting", []) for r in of_rank]
    groups = Counter(position - sample for position, sample in places)
    return len(places), {*groups.values()}


def _has_ended(response: Response, limit: int) -> bool:
    return response.finished or len(response.ids_T) >= limit


def _seed(stream: tuple[int | str, ...], response: Response) -> int:
    """Return the seed of a part; that of a first part is the seed of a whole response."""
    place = [len(response.ids_T)] if len(response.ids_T) else []
    return stream_seed(*stream, response.index, response.sample, *place)
