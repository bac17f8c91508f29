"""Store rollouts of the frozen policy, which are generated once, for value pretraining.

Their Monte-Carlo returns never change, so each rollout can be fitted many times. A share of the
prompts of the first rollout is held out, with every later response to them: the critic's values
there measure how it generalises, not what it has memorised.

Shapes: B responses, L tokens of prompt + response, T response tokens, G groups (prompts) of the
rollout over all ranks, P positions of all rows, without padding.
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
"""Fields that are stored to fit the critic: about nine bytes per token, on the CPU."""

Packed = dict[str, Tensor]


class RolloutStore:
    """This rank's part of the stored rollouts: those to fit, and the held-out part.

    Attributes:
        distinct: Number of different rollouts, if they repeat in the same order; None if each is
            new.
    """

    def __init__(self, replays: int, held_out_share: float) -> None:
        """Start empty.

        Args:
            replays: Number of stored rollouts to fit again after each added one.
            held_out_share: Share of the first rollout's prompts that is never fitted on.
        """
        self._replays = replays
        self._held_out_share = held_out_share
        self.distinct: int | None = None
        self.clear()

    def clear(self) -> None:
        """Remove all rollouts."""
        self._to_fit: list[Packed] = []
        self._held_out: Packed = {}
        self._held_out_prompts: set[int] = set()
        self._rounds = 0
        self._next_replay = 0

    def __len__(self) -> int:
        """Number of stored rollouts."""
        return len(self._to_fit)

    @property
    def rounds(self) -> int:
        """Number of rollouts added, repeated ones included."""
        return self._rounds

    @property
    def held_out(self) -> Rollout:
        """Responses that the critic is never fitted on."""
        return unpack(self._held_out)

    @property
    def seen(self) -> Rollout:
        """The rest of the first rollout, on which the critic is fitted most often."""
        return unpack(self._to_fit[0])

    def add(self, rollout: Rollout, *, reduce: Reduce = identity) -> None:
        """Store a rollout with its returns, unless it is a repeated one.

        Every rank must call it.

        Args:
            rollout: This rank's part.
            reduce: Sums a small tensor over ranks.

        Raises:
            ValueError: If the first rollout has only one prompt, so that nothing can be held out.
        """
        self._rounds += 1
        if self.distinct is not None and self._rounds > self.distinct:
            return
        begins_B = torch.zeros_like(rollout.prompt_lengths_B)
        if rollout.hint_lengths_B is not None:  # hints before a prompt differ by response
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

    def rollouts_to_fit(self) -> Iterator[Rollout]:
        """Yield the rollouts to fit now: stored ones in turn, and then the last added."""
        for _ in range(self._replays):
            yield unpack(self._to_fit[self._next_replay % len(self)])
            self._next_replay = (self._next_replay + 1) % len(self)
        yield unpack(self._to_fit[(self._rounds - 1) % len(self)])

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part as tensors, lists and numbers."""
        return {
            "to_fit": self._to_fit,
            "held_out": self._held_out,
            "held_out_prompts": sorted(self._held_out_prompts),
            "rounds": self._rounds,
            "turn": self._next_replay,
        }

    def load_state_dict(self, states: list[dict[str, Any]], rank: int = 0, ranks: int = 1) -> None:
        """Restore the states of all ranks of a checkpoint, on more or fewer ranks if need be."""
        state = states[rank % len(states)]  # all ranks have the same, except for the rows
        self._to_fit = list(state["to_fit"])
        self._held_out = state["held_out"]
        if len(states) != ranks:
            of_ranks = zip(*(of_rank["to_fit"] for of_rank in states), strict=True)
            self._to_fit = [divide(packed, rank, ranks) for packed in of_ranks]
            self._held_out = divide([of_rank["held_out"] for of_rank in states], rank, ranks)
        self._held_out_prompts = set(state["held_out_prompts"])
        self._rounds = state["rounds"]
        self._next_replay = state["turn"]


def held_out_prompts(
    prompts: list[int], group_ids_B: Tensor, share: float, reduce: Reduce = identity
) -> set[int]:
    """Choose a share of a rollout's prompts, evenly spaced, the same on every rank.

    Args:
        prompts: Number of each row's prompt, the same for equal prompts.
        group_ids_B: 0..G-1 over all ranks.
        share: Share of the G groups; at least one is chosen, and at least one is not.
        reduce: Sums a small tensor over ranks.

    Raises:
        ValueError: If there is only one group.
    """
    first_rows = {int(group): row for row, group in enumerate(group_ids_B)}
    groups = int(reduce(torch.tensor(len(first_rows), device=group_ids_B.device)))
    require(
        groups > 1,
        "value pretraining: with one prompt per rollout nothing can be held out; "
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

    A rank without chosen rows keeps one that does not count.

    Args:
        rollout: This rank's rows.
        chosen_B: True on the rows to return.
        reduce: Sums a small tensor over ranks.
    """
    rows = int(reduce(torch.tensor(len(rollout), device=chosen_B.device)))
    chosen_R = torch.zeros(rows, dtype=torch.int64, device=chosen_B.device)
    chosen_R[rollout.positions_B] = chosen_B.long()
    number_R = reduce(chosen_R).cumsum(0) - 1
    if not chosen_B.any():
        return _ignored_row(rollout)
    kept = rollout.select(chosen_B.nonzero()[:, 0])
    return kept.with_(positions_B=number_R[kept.positions_B])


def divide(parts: Sequence[Packed], rank: int, ranks: int) -> Packed:
    """Return a rank's part of a stored rollout that was divided among another number of ranks."""
    complete = join([unpack(packed) for packed in parts])
    in_order_R = complete.positions_B.argsort()
    counted_R = in_order_R[complete.positions_B[in_order_R] >= 0]
    mine = complete.select(torch.tensor_split(counted_R, ranks)[rank])
    return pack(mine if len(mine) else _ignored_row(complete))


def _ignored_row(rollout: Rollout) -> Rollout:
    """Return a row that does not count, because no mini-batch contains position -1."""
    row = rollout.select(torch.zeros(1, dtype=torch.long, device=rollout.positions_B.device))
    return row.with_(positions_B=torch.full_like(row.positions_B, -1))


def pack(rollout: Rollout) -> Packed:
    """Return the `KEPT` fields of a rollout, on the CPU and without padding."""
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
    """Return a packed rollout, padded again, without texts and log-probabilities."""
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
