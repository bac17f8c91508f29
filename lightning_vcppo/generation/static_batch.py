"""Decode with static shapes, on CUDA, for the models that `StaticDecoder` supports.

It samples the same tokens as the batch in transformers_engine.py. Here a complete step runs on the
device: it samples, stores the tokens, and marks the rows that have ended. The host synchronizes
only every few steps. Until then a row that has ended repeats its last token, which is not stored.

Shapes: B sequences, R rows, T response tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vcppo.common import places
from lightning_vcppo.generation.base import Generations
from lightning_vcppo.generation.graphs import CapturedStep
from lightning_vcppo.generation.prompt_reader import PromptReader
from lightning_vcppo.generation.sampling import sample_tokens, uniform_numbers
from lightning_vcppo.generation.static_decoder import StaticDecoder
from lightning_vcppo.settings import SamplingSettings

STEPS_BETWEEN_SYNCS = 8
"""Number of steps after which the host waits for the device."""
ROOM = 512
"""Number of response tokens for which storage has room at first; it doubles when full."""
FEWEST_ROWS = 8
"""Number of rows down to which they are halved as sequences end."""


class StaticBatch:
    """A batch of sequences that are running, waiting or finished."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompt_ids: Sequence[Sequence[int]],
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        max_num_seqs: int,
        eos: Sequence[int],
        pad: int,
    ) -> None:
        """Allocate storage; nothing runs yet."""
        self._settings, self._pad = settings, pad
        self._prompts = [tuple(ids) for ids in prompt_ids]
        self._reader = PromptReader(model, self._prompts, pad)
        self._waiting = deque(range(len(self._prompts)))
        self._running: dict[int, int] = {}  # row -> sequence
        self._steps_done: dict[int, int] = {}  # row -> number of response tokens while it runs
        self._limit = settings.max_response_length
        size, device = len(self._prompts), model.device
        rows = min(size, max_num_seqs)

        # Free rows write to their own rows of the storage, behind those of the sequences.
        dtype = torch.promote_types(model.dtype, torch.float32)
        shape = (size + rows, self._limit)
        self._ids_BT = torch.zeros(shape, dtype=torch.long, device=device)
        self._logprobs_BT = torch.zeros(shape, dtype=dtype, device=device)
        self._entropy_BT = torch.zeros_like(self._logprobs_BT)
        self._lengths_B = torch.zeros(shape[0], dtype=torch.long, device=device)
        self._finished_B = torch.zeros(shape[0], dtype=torch.bool, device=device)
        self._uniforms_BT = torch.zeros(shape, dtype=torch.float32, device=device)
        self._uniforms_BT[:size] = uniform_numbers(seeds, self._limit).to(device)
        self._eos = torch.tensor(eos, dtype=torch.long, device=device)

        self._token_R = torch.zeros(rows, dtype=torch.long, device=device)
        self._position_R = torch.zeros_like(self._token_R)
        self._place_R = torch.zeros_like(self._token_R)
        self._sequence_R = torch.arange(size, size + rows, device=device)
        self._running_R = torch.zeros(rows, dtype=torch.bool, device=device)
        longest = max(map(len, self._prompts))
        self._decoder = StaticDecoder(model, rows, longest + min(self._limit, ROOM))
        self._step = CapturedStep(self._advance, device)

    def run(self) -> Generations:
        """Sample all sequences."""
        while self._waiting or self._running:
            places.move_on()
            if self._should_refill():
                self._refill()
            self._make_room()
            steps = min(STEPS_BETWEEN_SYNCS, self._limit - min(self._steps_done.values()))
            for _ in range(steps):
                self._step()
            self._synchronize(steps)
        return self._generations()

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed as a graph."""
        return self._step.is_captured

    def _advance(self) -> None:
        """Read each row's newest token and sample the next one."""
        logits_RV = self._decoder(self._token_R, self._position_R)
        place_R = (self._place_R + self._running_R).clamp_max(self._limit - 1)
        uniform_R = self._uniforms_BT[self._sequence_R, place_R]
        sampled = sample_tokens(logits_RV, uniform_R, self._settings)
        running_R = self._running_R.clone()
        self._note(self._sequence_R, place_R, running_R, sampled)
        self._place_R.copy_(place_R)
        self._token_R.copy_(torch.where(running_R, sampled[0], self._token_R))
        self._running_R.copy_(running_R & ~self._ends(sampled[0], place_R))
        self._position_R.add_(self._running_R)  # a row that has ended stays where it is

    def _note(
        self,
        sequence_R: Tensor,
        place_R: Tensor,
        running_R: Tensor,
        sampled: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Store the tokens that running rows sampled."""
        results = (self._ids_BT, self._logprobs_BT, self._entropy_BT)
        for result_BT, new_R in zip(results, sampled, strict=True):
            old_R = result_BT[sequence_R, place_R]
            result_BT[sequence_R, place_R] = torch.where(running_R, new_R.to(old_R.dtype), old_R)
        self._lengths_B[sequence_R] += running_R
        stopped_R = running_R & self._is_eos(sampled[0])
        self._finished_B[sequence_R] = self._finished_B[sequence_R] | stopped_R

    def _is_eos(self, token_R: Tensor) -> Tensor:
        return (token_R[:, None] == self._eos).any(1)

    def _ends(self, token_R: Tensor, place_R: Tensor) -> Tensor:
        return self._is_eos(token_R) | (place_R == self._limit - 1)

    def _should_refill(self) -> bool:
        """Return whether enough rows are free for a forward pass over new prompts."""
        free = len(self._token_R) - len(self._running)
        return bool(self._waiting) and (
            not self._running or free >= max(1, len(self._token_R) // 8)
        )

    def _refill(self) -> None:
        """Give the free rows to waiting sequences and sample their first tokens."""
        device = self._token_R.device
        free = [row for row in range(len(self._token_R)) if row not in self._running]
        joining = [(row, self._waiting.popleft()) for row in free[: len(self._waiting)]]
        rows, sequences = (list(each) for each in zip(*joining, strict=True))
        prompts = self._reader.take(
            [self._prompts[sequence] for sequence in sequences],
            (self._prompts[sequence] for sequence in self._waiting),
        )
        self._decoder.write(rows, prompts)
        rows_R = torch.tensor(rows, device=device)
        sequence_R = torch.tensor(sequences, device=device)
        place_R = torch.zeros_like(sequence_R)
        running_R = torch.ones_like(sequence_R, dtype=torch.bool)
        logits_RV = torch.stack([prompt.logits_V for prompt in prompts])
        sampled = sample_tokens(logits_RV, self._uniforms_BT[sequence_R, 0], self._settings)
        self._note(sequence_R, place_R, running_R, sampled)
        self._token_R[rows_R] = sampled[0]
        self._position_R[rows_R] = torch.tensor([len(p) for p in prompts], device=device)
        self._place_R[rows_R] = place_R
        self._sequence_R[rows_R] = sequence_R
        self._running_R[rows_R] = ~self._ends(sampled[0], place_R)
        self._running |= dict(joining)
        self._steps_done |= dict.fromkeys(rows, 1)

    def _synchronize(self, steps: int) -> None:
        """Wait for the device and free the rows that have ended."""
        for row in self._steps_done:
            self._steps_done[row] += steps
        running = self._running_R.tolist()
        for row in [row for row in self._running if not running[row]]:
            del self._running[row], self._steps_done[row]

    def _make_room(self) -> None:
        """Make room for the next steps; drop rows if half of them are free."""
        rows, capacity = len(self._token_R), self._decoder.capacity
        tokens = max(
            len(self._prompts[sequence]) + self._steps_done[row]
            for row, sequence in self._running.items()
        )
        if tokens + STEPS_BETWEEN_SYNCS > capacity:
            longest = max(map(len, self._prompts)) + self._limit
            capacity = max(tokens + STEPS_BETWEEN_SYNCS, min(2 * capacity, longest))
        fewer = rows
        while not self._waiting and len(self._running) <= fewer // 2 and fewer > FEWEST_ROWS:
            fewer = max(FEWEST_ROWS, -(-fewer // 2))
        if (fewer, capacity) != (rows, self._decoder.capacity):
            self._resize(fewer, capacity)

    def _resize(self, rows: int, capacity: int) -> None:
        free = [row for row in range(len(self._token_R)) if row not in self._running]
        kept = sorted([*self._running, *free[: rows - len(self._running)]])
        kept_R = torch.tensor(kept, device=self._token_R.device)
        self._token_R, self._position_R = self._token_R[kept_R], self._position_R[kept_R]
        self._place_R, self._sequence_R = self._place_R[kept_R], self._sequence_R[kept_R]
        self._running_R = self._running_R[kept_R]
        moved = {old: new for new, old in enumerate(kept)}
        self._running = {moved[row]: sequence for row, sequence in self._running.items()}
        self._steps_done = {moved[row]: steps for row, steps in self._steps_done.items()}
        self._step.changed()  # first, because the graph holds the old storage
        self._decoder.resize(kept_R, capacity)

    def _generations(self) -> Generations:
        """Return the responses of all sequences."""
        size = len(self._prompts)
        lengths_B = self._lengths_B[:size]
        longest = int(lengths_B.max())
        mask_BT = torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]
        return Generations(
            self._ids_BT[:size, :longest].masked_fill(~mask_BT, self._pad),
            mask_BT,
            self._logprobs_BT[:size, :longest].clone(),
            self._finished_B[:size].clone(),
            self._entropy_BT[:size, :longest].clone(),
        )
