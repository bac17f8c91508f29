"""Sample from a transformers model with continuous batching.

1. A fixed number of rows decodes together. When a sequence ends, a waiting one takes its row, so
   responses of different lengths do not wait for the longest.
2. A prompt is read once, whatever the number of its samples (prompt_reader.py).
3. Each sequence draws its tokens from its own random stream.
4. On CUDA the shapes of a step are static, and it is repeated as a graph (static_batch.py). The
   batch in this file is for other devices, and for models of other families.

Shapes: B sequences, R rows, C columns (see slots.py), T response tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vcppo.common import places
from lightning_vcppo.generation.base import Generations
from lightning_vcppo.generation.decoding import decoder_of, walks_layers
from lightning_vcppo.generation.prompt_reader import PromptReader
from lightning_vcppo.generation.sampling import sample_tokens, uniform_numbers
from lightning_vcppo.generation.slots import SlotCache
from lightning_vcppo.generation.static_batch import StaticBatch
from lightning_vcppo.models.attention import prefer_general_kernels
from lightning_vcppo.settings import SamplingSettings


class TransformersEngine:
    """Samples directly from the trained model, without a copy of its weights.

    Args:
        model: A causal language model.
        pad_token_id: Token id that fills finished responses.
        eos_token_ids: Tokens that end a response.
        max_num_seqs: Largest number of rows that decode together.
        static: Whether steps have static shapes and are captured as CUDA graphs (static_batch.py);
            None means if that is possible and faster.
    """

    detached = False

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pad_token_id: int,
        eos_token_ids: set[int],
        max_num_seqs: int = 256,
        static: bool | None = None,
    ) -> None:
        """Wrap the model."""
        prefer_general_kernels()
        self._model = model
        self._pad = pad_token_id
        self._eos = sorted(eos_token_ids)
        self._max_num_seqs, self._static = max_num_seqs, static

    def take_weights(self, version: object) -> None:
        """Do nothing, because the weights are the trained ones."""

    def forget_weights(self) -> None:
        """Do nothing, because there is no copy."""

    def sleep(self) -> None:
        """Do nothing, because memory is held only while responses are sampled."""

    @torch.no_grad()
    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response per prompt, see `GenerationEngine.generate`."""
        training = self._model.training
        self._model.eval()  # a layer with activation checkpointing reads no cache in training mode
        kind = StaticBatch if self._is_static() else _Batch
        batch = kind(
            self._model,
            prompt_ids,
            seeds,
            settings,
            max_num_seqs=self._max_num_seqs,
            eos=self._eos,
            pad=self._pad,
        )
        generations = batch.run()
        self._model.train(training)
        return generations

    def _is_static(self) -> bool:
        """Return whether shapes are static: on CUDA, where launches cost more than padding does."""
        if self._static is not None:
            return self._static
        return self._model.device.type == "cuda" and walks_layers(self._model)


class _Batch:
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
        self.model, self.settings, self.pad = model, settings, pad
        self.decode = decoder_of(model)
        self.prompts = [tuple(ids) for ids in prompt_ids]
        self.waiting = deque(range(len(self.prompts)))
        self.running: dict[int, int] = {}  # row -> sequence
        self.begins: dict[int, int] = {}  # row -> column of the first response token
        self.reader = PromptReader(model, self.prompts, pad)
        self.device, self.limit = model.device, settings.max_response_length

        size = len(self.prompts)
        self.ids_BT = torch.zeros(size, self.limit, dtype=torch.long, device=self.device)
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.logprobs_BT = torch.zeros(size, self.limit, dtype=dtype, device=self.device)
        self.entropy_BT = torch.zeros_like(self.logprobs_BT)
        self.lengths = [0] * size
        self.finished = [False] * size
        self.uniforms_BT = uniform_numbers(seeds, self.limit).to(self.device)
        self.eos = torch.tensor(eos, dtype=torch.long, device=self.device)

        self.rows = min(size, max_num_seqs)
        width = max(map(len, self.prompts))
        weight: Tensor = model.get_output_embeddings().weight
        self.cache = SlotCache(model.config, self.rows, width, self.limit, weight)
        columns = self.cache.columns.capacity + 1
        # Sampled tokens, each in the column into which it will be read.
        self.ids_RC = torch.zeros(self.rows, columns, dtype=torch.long, device=self.device)
        self.logprobs_RC = torch.zeros(self.rows, columns, dtype=dtype, device=self.device)
        self.entropy_RC = torch.zeros_like(self.logprobs_RC)
        self.sequence_R = torch.zeros(self.rows, dtype=torch.long, device=self.device)
        self.begin_R = torch.full_like(self.sequence_R, width)
        self.prompt_length_R = torch.zeros_like(self.sequence_R)
        self.running_R = torch.zeros(self.rows, dtype=torch.bool, device=self.device)

    def run(self) -> Generations:
        """Sample all sequences."""
        while self.waiting or self.running:
            places.move_on()
            if self.should_refill():
                self.refill()
            else:
                self.step()
        return self.generations()

    def should_refill(self) -> bool:
        """Return whether enough rows are free for a forward pass over new prompts."""
        free = self.rows - len(self.running)
        return bool(self.waiting) and (not self.running or free >= max(1, self.rows // 8))

    def refill(self) -> None:
        """Give the free rows to waiting sequences and sample their first tokens."""
        free = [row for row in range(self.rows) if row not in self.running]
        joining = [(row, self.waiting.popleft()) for row in free[: len(self.waiting)]]
        prompts = self.reader.take(
            [self.prompts[sequence] for _, sequence in joining],
            (self.prompts[sequence] for sequence in self.waiting),
        )
        rows, sequences = (list(each) for each in zip(*joining, strict=True))
        lengths = [len(prompt) for prompt in prompts]

        self._make_room()
        column = self.cache.columns.column
        row_M, column_M = self.cache.join(rows, lengths)
        for index, layer in enumerate(self.cache.slots):
            layer.write(
                row_M,
                column_M,
                torch.cat([prompt.keys[index] for prompt in prompts]),
                torch.cat([prompt.values[index] for prompt in prompts]),
            )
        rows_R = torch.tensor(rows, device=self.device)
        sequence_R = torch.tensor(sequences, device=self.device)
        self.sequence_R[rows_R] = sequence_R
        self.begin_R[rows_R] = column
        self.prompt_length_R[rows_R] = torch.tensor(lengths, device=self.device)
        self.running_R[rows_R] = True
        self.running |= dict(joining)
        self.begins |= dict.fromkeys(rows, column)
        self._track_first()

        logits_RV = torch.stack([prompt.logits_V for prompt in prompts])
        sampled = sample_tokens(logits_RV, self.uniforms_BT[sequence_R, 0], self.settings)
        for buffer_RC, new_R in zip(self._buffers(), sampled, strict=True):
            buffer_RC[rows_R, column] = new_R.to(buffer_RC)
        self._retire(column)

    def step(self) -> None:
        """Read the tokens of the present column and sample those of the next."""
        if not self.waiting and len(self.running) <= 0.75 * self.rows:
            self._keep(sorted(self.running))
        self._make_room()
        column = self.cache.columns.column
        position_R = (column - self.begin_R + self.prompt_length_R).clamp_min_(0)
        logits_RV = self.decode(self.model, self.cache, self.ids_RC[:, column], position_R)
        place_R = (column + 1 - self.begin_R).clamp_(0, self.limit - 1)
        uniform_R = self.uniforms_BT[self.sequence_R, place_R]
        sampled = sample_tokens(logits_RV, uniform_R, self.settings)
        for buffer_RC, new_R in zip(self._buffers(), sampled, strict=True):
            buffer_RC[:, column + 1] = new_R
        self.cache.columns.column += 1
        self._retire(column + 1)

    def generations(self) -> Generations:
        """Return the responses of all sequences."""
        lengths_B = torch.tensor(self.lengths, device=self.device)
        longest = max(self.lengths)
        mask_BT = torch.arange(longest, device=self.device) < lengths_B[:, None]
        return Generations(
            self.ids_BT[:, :longest].masked_fill(~mask_BT, self.pad),
            mask_BT,
            self.logprobs_BT[:, :longest],
            torch.tensor(self.finished, device=self.device),
            self.entropy_BT[:, :longest],
        )

    def _retire(self, column: int) -> None:
        """Free the rows whose newest token, in `column`, is their last."""
        newest_R = self.ids_RC[:, column]
        ended_R = self.running_R & torch.isin(newest_R, self.eos)
        full = [row for row in self.running if column - self.begins[row] + 1 == self.limit]
        ended = ended_R.nonzero()[:, 0].tolist() if bool(ended_R.any()) else []
        for row in {*ended, *full}:
            sequence = self.running.pop(row)
            begin = self.begins.pop(row)
            length = column - begin + 1
            self.lengths[sequence] = length
            self.finished[sequence] = row in ended
            results = (self.ids_BT, self.logprobs_BT, self.entropy_BT)
            for result_BT, buffer_RC in zip(results, self._buffers(), strict=True):
                result_BT[sequence, :length] = buffer_RC[row, begin : column + 1]
            self.running_R[row] = False
        if ended or full:
            self._track_first()

    def _track_first(self) -> None:
        starts = [
            self.begins[row] - len(self.prompts[sequence]) for row, sequence in self.running.items()
        ]
        self.first = min(starts, default=self.cache.columns.column)

    def _make_room(self) -> None:
        """Make room for the next token, which may move the running rows."""
        moved = self.cache.make_room(self.first if self.running else self.cache.columns.column)
        if not moved and self.ids_RC.shape[1] == self.cache.columns.capacity + 1:
            return
        live = slice(self.first, self.cache.columns.column - moved + 1)
        self.ids_RC, self.logprobs_RC, self.entropy_RC = (
            _shifted(buffer_RC, live, moved, self.cache.columns.capacity + 1)
            for buffer_RC in self._buffers()
        )
        self.begin_R += moved
        self.begins = {row: begin + moved for row, begin in self.begins.items()}
        self._track_first()

    def _keep(self, rows: list[int]) -> None:
        """Drop the free rows."""
        rows_R = torch.tensor(rows, device=self.device)
        self.cache.keep(rows_R)
        self.ids_RC, self.logprobs_RC, self.entropy_RC = (b[rows_R] for b in self._buffers())
        self.sequence_R, self.begin_R = self.sequence_R[rows_R], self.begin_R[rows_R]
        self.prompt_length_R = self.prompt_length_R[rows_R]
        self.running_R = self.running_R[rows_R]
        self.running = {new: self.running[old] for new, old in enumerate(rows)}
        self.begins = {new: self.begins[old] for new, old in enumerate(rows)}
        self.rows = len(rows)

    def _buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.ids_RC, self.logprobs_RC, self.entropy_RC


def _shifted(buffer_RC: Tensor, live: slice, moved: int, columns: int) -> Tensor:
    new_RC = buffer_RC.new_zeros(len(buffer_RC), columns)
    new_RC[:, live.start + moved : live.stop + moved] = buffer_RC[:, live]
    return new_RC
