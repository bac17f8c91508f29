"""Rollouts of the frozen policy, generated once and kept for value pretraining.

Their Monte-Carlo returns never change, so each rollout can be fitted many times. A share of the
first one is held out, and so is every later response to the same prompts: what the critic says of
them is what it knows, not what it remembers.

Shapes: B responses, L tokens of prompt + response, T response tokens, G groups (prompts) of the
rollout over all ranks, P places of all rows, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_vcppo.algorithm.statistics import Reduce, identity
from lightning_vcppo.common.errors import require
from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.rollouts.rollout import Rollout, join

KEPT = (
    "input_ids_BL",
    "prompt_lengths_B",
    "response_mask_BT",
    "finished_B",
    "positions_B",
    "group_ids_B",
    "scores_B",
    "correct_B",
    "hint_lengths_B",
    "noise_weights_B",
    "returns_BT",
)
"""What the critic is fitted on: about nine bytes a token, on the CPU."""

Packed = dict[str, Tensor]


class RolloutStore:
    """This rank's part of the stored rollouts: what to fit, what is held out, whose turn it is.

    Attributes:
        distinct: How many different rollouts there are, if they come again and again in the same
            order; None if each is new.
    """

    def __init__(self, replays: int, held_out_share: float) -> None:
        """Start empty.

        Args:
            replays: Passes over stored rollouts beside the one over the last added.
            held_out_share: Share of the prompts of the first rollout that is never fitted on.
        """
        self._replays = replays
        self._held_out_share = held_out_share
        self.distinct: int | None = None
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._to_fit: list[Packed] = []
        self._held_out: Packed = {}
        self._held_out_prompts: set[int] = set()
        self._rounds = 0
        self._turn = 0

    def __len__(self) -> int:
        """Number of stored rollouts."""
        return len(self._to_fit)

    @property
    def rounds(self) -> int:
        """How often a rollout was added, or came again."""
        return self._rounds

    @property
    def held_out(self) -> Rollout:
        """The responses that the critic is never fitted on."""
        return unpack(self._held_out)

    @property
    def seen(self) -> Rollout:
        """The rest of the rollout that they come from: what the critic is fitted on most often."""
        return unpack(self._to_fit[0])

    def add(self, rollout: Rollout, *, reduce: Reduce = identity) -> None:
        """Store a rollout with its returns, unless it is one that has come round again.

        Every rank must call it.

        Args:
            rollout: This rank's part.
            reduce: Sums a small tensor over ranks.

        Raises:
            ValueError: If the first rollout has a single prompt, which cannot be in two parts.
        """
        self._rounds += 1
        if self.distinct is not None and self._rounds > self.distinct:
            return
        begins_B = torch.zeros_like(rollout.prompt_lengths_B)
        if rollout.hint_lengths_B is not None:  # what is before a prompt differs by response
            begins_B = rollout.hint_lengths_B
        prompts = [
            stream_seed(*ids[begin:end])
            for ids, begin, end in zip(
                rollout.input_ids_BL.tolist(),
                begins_B.tolist(),
                rollout.prompt_lengths_B.tolist(),
                strict=True,
            )
        ]
        if not self._to_fit:
            self._held_out_prompts = held_out_prompts(
                prompts, rollout.group_ids_B, self._held_out_share, reduce
            )
        held_out_B = torch.tensor([prompt in self._held_out_prompts for prompt in prompts])
        held_out_B = held_out_B.to(rollout.positions_B.device)
        if not self._to_fit:
            self._held_out = pack(part(rollout, held_out_B, reduce))
        self._to_fit.append(pack(part(rollout, ~held_out_B, reduce)))

    def lessons(self) -> Iterator[Rollout]:
        """Yield what to fit on now: stored rollouts, each in its turn, and then the last added."""
        for _ in range(self._replays):
            yield unpack(self._to_fit[self._turn % len(self)])
            self._turn = (self._turn + 1) % len(self)
        yield unpack(self._to_fit[(self._rounds - 1) % len(self)])

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part as tensors, lists and numbers."""
        return {
            "to_fit": self._to_fit,
            "held_out": self._held_out,
            "held_out_prompts": sorted(self._held_out_prompts),
            "rounds": self._rounds,
            "turn": self._turn,
        }

    def load_state_dict(self, states: list[dict[str, Any]], rank: int = 0, ranks: int = 1) -> None:
        """Go on with what a checkpoint has of all its ranks; here there may be more, or fewer."""
        state = states[rank % len(states)]  # but for the rows, all ranks have the same
        self._to_fit = list(state["to_fit"])
        self._held_out = state["held_out"]
        if len(states) != ranks:
            of_ranks = zip(*(of_rank["to_fit"] for of_rank in states), strict=True)
            self._to_fit = [divide(packed, rank, ranks) for packed in of_ranks]
            self._held_out = divide([of_rank["held_out"] for of_rank in states], rank, ranks)
        self._held_out_prompts = set(state["held_out_prompts"])
        self._rounds = state["rounds"]
        self._turn = state["turn"]


def held_out_prompts(
    prompts: list[int], group_ids_B: Tensor, share: float, reduce: Reduce = identity
) -> set[int]:
    """Choose a share of the prompts of a rollout, evenly over it, the same on every rank.

    Args:
        prompts: A number for each row's prompt, the same for equal prompts.
        group_ids_B: 0..G-1 over all ranks.
        share: Of the G groups; at least one is chosen, and at least one is not.
        reduce: Sums a small tensor over ranks.

    Raises:
        ValueError: If there is one group only.
    """
    first_rows = {int(group): row for row, group in enumerate(group_ids_B)}
    groups = int(reduce(torch.tensor(len(first_rows), device=group_ids_B.device)))
    require(
        groups > 1,
        "value pretraining: a rollout of one prompt has nothing to hold out; "
        "raise data.prompts_per_rollout, or set value_pretraining.enabled=false",
    )
    chosen = min(max(1, round(share * groups)), groups - 1)
    prompts_G = torch.zeros(groups, dtype=torch.int64, device=group_ids_B.device)
    for group, row in first_rows.items():
        prompts_G[group] = prompts[row]
    of_all = reduce(prompts_G).tolist()
    return {of_all[g] for g in range(groups) if g * chosen // groups < (g + 1) * chosen // groups}


def part(rollout: Rollout, chosen_B: Tensor, reduce: Reduce = identity) -> Rollout:
    """Return the chosen rows, numbered without gaps over all ranks.

    A rank without any keeps one that does not count.

    Args:
        rollout: This rank's rows.
        chosen_B: Boolean.
        reduce: Sums a small tensor over ranks.
    """
    rows = int(reduce(torch.tensor(len(rollout), device=chosen_B.device)))
    chosen_R = torch.zeros(rows, dtype=torch.int64, device=chosen_B.device)
    chosen_R[rollout.positions_B] = chosen_B.long()
    number_R = reduce(chosen_R).cumsum(0) - 1
    if not chosen_B.any():
        return _nobody(rollout)
    kept = rollout.select(chosen_B.nonzero()[:, 0])
    return kept.with_(positions_B=number_R[kept.positions_B])


def divide(parts: Sequence[Packed], rank: int, ranks: int) -> Packed:
    """Return a rank's part of a stored rollout that was divided among another number of ranks."""
    whole = join([unpack(packed) for packed in parts])
    in_order_R = whole.positions_B.argsort()
    counted_R = in_order_R[whole.positions_B[in_order_R] >= 0]
    mine = whole.select(torch.tensor_split(counted_R, ranks)[rank])
    return pack(mine if len(mine) else _nobody(whole))


def _nobody(rollout: Rollout) -> Rollout:
    """Return a row that does not count: no mini-batch asks for position -1."""
    row = rollout.select(torch.zeros(1, dtype=torch.long, device=rollout.positions_B.device))
    return row.with_(positions_B=torch.full_like(row.positions_B, -1))


def pack(rollout: Rollout) -> Packed:
    """Return what the critic needs of a rollout, on the CPU and without padding."""
    packed: Packed = {}
    widths = {"BL": rollout.lengths_B, "BT": rollout.extents_B}
    for name in KEPT:
        value = getattr(rollout, name)
        if value is not None:
            if (lengths_B := widths.get(name.rsplit("_", 1)[-1])) is not None:
                place_W = torch.arange(value.shape[1], device=value.device)
                value = value[place_W < lengths_B[:, None]]
            if value.dtype == torch.int64 and value.max() < 2**31:
                value = value.int()
            packed[name] = value.cpu()
    return packed | {"extents_B": rollout.extents_B.int().cpu()}


def unpack(packed: Packed) -> Rollout:
    """Return a packed rollout, padded again, with neither texts nor log-probabilities."""
    extents_B = packed["extents_B"].long()
    widths = {"BL": packed["prompt_lengths_B"].long() + extents_B, "BT": extents_B}
    fields: dict[str, Any] = {}
    for name in KEPT:
        if name in packed:
            value = packed[name].long() if packed[name].dtype == torch.int32 else packed[name]
            if (lengths_B := widths.get(name.rsplit("_", 1)[-1])) is not None:
                value = pad_sequence(list(value.split(lengths_B.tolist())), batch_first=True)
            fields[name] = value
    size = len(extents_B)
    return Rollout(
        problems=(Problem("", 0),) * size,
        responses=("",) * size,
        sampler_logprobs_BT=torch.zeros(fields["response_mask_BT"].shape),
        **fields,
    )
