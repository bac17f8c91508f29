"""Keep the state of a decoding batch: one column per step, one row per running sequence.

All rows write their next token into the same column, whenever they began. A prompt that joins later
is written to the columns just before it, so every row ends at the present column:

    row 0   . . p p p r r r r r r        p prompt, r response, . hidden by the mask
    row 1   . . . . . . p p r r r        first = 2, column = 11
    row 2   . . . . p p p p p r r

So a step writes keys and values with a slice, not a scatter, and rows join and leave at any
time. When the columns are used up, the live ones move to the front of new storage.

Fused attention kernels read the mask 16 bytes at a time. So a step reads from an aligned column on,
and each row of the mask is aligned. The mask hides columns that are read only for alignment.

Shapes: R rows, C columns, H key-value heads, D size of a head, M tokens written at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lightning_vcppo.models.attention import aligned_down, aligned_up

GROWTH = 256
"""Minimum number of steps for which new storage has room."""


class Columns:
    """The columns of a batch that are in use.

    Attributes:
        first: Aligned column before which no running row begins.
        column: Column of the next tokens' keys and values.
        capacity: Number of columns of the storage.
    """

    def __init__(self, column: int, capacity: int) -> None:
        """Begin with `column` empty columns."""
        self.first = column
        self.column = column
        self.capacity = capacity


class SlotLayer(DynamicLayer):
    """Keys and values of one layer in preallocated storage."""

    keys: Tensor  # not None once a prompt has been written
    values: Tensor

    def __init__(self, columns: Columns, rows: int, window: int | None) -> None:
        """Allocate nothing yet: the first keys determine shape and type."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns, self.rows, self.window = columns, rows, window

    def write(
        self, rows_M: Tensor, columns_M: Tensor, keys_MHD: Tensor, values_MHD: Tensor
    ) -> None:
        """Write tokens of prompts."""
        if not self.is_initialized:
            shape = (self.rows, keys_MHD.shape[1], self.columns.capacity)
            self.keys = keys_MHD.new_zeros(*shape, keys_MHD.shape[2])
            self.values = values_MHD.new_zeros(*shape, values_MHD.shape[2])
            self.is_initialized = True
        self.keys[rows_M, :, columns_M] = keys_MHD
        self.values[rows_M, :, columns_M] = values_MHD

    def append(self, keys_RHD: Tensor, values_RHD: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token per row; return the keys and values to attend to, (R, H, columns, D)."""
        self.keys[:, :, self.columns.column] = keys_RHD
        self.values[:, :, self.columns.column] = values_RHD
        seen = self.seen()
        return self.keys[:, :, seen], self.values[:, :, seen]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Do the same with (R, H, 1, D), as models call it."""
        return self.append(key_states[:, :, 0], value_states[:, :, 0])

    def seen(self) -> slice:
        """Return the columns that the present token may attend to, before the rows' mask."""
        end = self.columns.column + 1
        first = self.columns.first
        if self.window is not None:
            first = max(first, aligned_down(max(0, end - self.window)))
        return slice(first, end)

    def hidden(self) -> int:
        """Return how many of these columns lie before the window."""
        if self.window is None:
            return 0
        end = self.columns.column + 1
        return max(0, end - self.window - int(self.seen().start))

    def move(self, source: slice, target: slice, capacity: int) -> None:
        """Move columns into new storage."""
        self.keys = _moved(self.keys, source, target, capacity, dim=2)
        self.values = _moved(self.values, source, target, capacity, dim=2)

    def keep(self, rows: Tensor) -> None:
        """Keep some rows, in the order given."""
        self.rows = len(rows)
        self.keys, self.values = self.keys[rows], self.values[rows]


class SlotCache(Cache):
    """A key-value cache, with its mask, whose rows can be replaced at any step."""

    def __init__(
        self, config: PreTrainedConfig, rows: int, prompt_width: int, limit: int, like: Tensor
    ) -> None:
        """Make room for `rows` sequences.

        Args:
            config: Config of the model.
            rows: Number of sequences that run at the same time.
            prompt_width: Number of tokens of the longest prompt.
            limit: Largest number of tokens of a response.
            like: Tensor of the mask's type and device.

        Raises:
            ValueError: If the model has other layers than attention over all tokens or over a
                sliding window.
        """
        self.columns = Columns(prompt_width, aligned_up(prompt_width + min(limit, GROWTH)))
        kinds = (DynamicLayer, DynamicSlidingWindowLayer)
        layers = DynamicCache(config=config).layers
        if odd := sorted({type(x).__name__ for x in layers if type(x) not in kinds}):
            raise ValueError(
                f"{config.model_type}: the transformers engine cannot cache {', '.join(odd)}; use "
                "a model with ordinary attention, or another engine"
            )
        self.slots = [
            SlotLayer(self.columns, rows, getattr(layer, "sliding_window", None))
            for layer in layers
        ]
        super().__init__(layers=[*self.slots])
        self.prompt_width = prompt_width
        self.mask_RC = like.new_zeros(rows, self.columns.capacity)

    def masks(self) -> dict[int | None, Tensor]:
        """Return the additive mask of the present column, (R, 1, 1, columns), by layer window."""
        by_window = {layer.window: layer for layer in self.slots}
        return {window: self._mask(layer) for window, layer in by_window.items()}

    def _mask(self, layer: SlotLayer) -> Tensor:
        mask_RC = self.mask_RC[:, layer.seen()]
        if hidden := layer.hidden():
            mask_RC = mask_RC.clone()
            mask_RC[:, :hidden] = float("-inf")
        return mask_RC[:, None, None]

    def join(self, rows: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Begin prompts of the given lengths in the given rows.

        Returns:
            Row and column of each of their tokens, (M,) each, for `SlotLayer.write`.
        """
        device = self.mask_RC.device
        rows_R = torch.tensor(rows, device=device)
        starts_R = self.columns.column - torch.tensor(lengths, device=device)
        hidden_RC = torch.arange(self.columns.capacity, device=device) < starts_R[:, None]
        self.mask_RC[rows_R] = torch.zeros_like(self.mask_RC[rows_R]).masked_fill_(
            hidden_RC, float("-inf")
        )
        row_M, column_M = (~hidden_RC[:, : self.columns.column]).nonzero(as_tuple=True)
        return rows_R[row_M], column_M

    def make_room(self, first: int) -> int:
        """Free the columns before `first`, and make room for the next one.

        Returns:
            Number of columns by which the remaining ones have moved to the right.
        """
        columns = self.columns
        first = columns.first = aligned_down(first)
        if columns.column < columns.capacity:
            return 0
        live = columns.column - first
        # A prompt must fit before it, and the live columns stay aligned.
        column = live + aligned_up(max(0, self.prompt_width - live))
        capacity = aligned_up(column + max(GROWTH, live // 2))
        source, target = slice(first, columns.column), slice(column - live, column)
        for layer in self.slots:
            layer.move(source, target, capacity)
        self.mask_RC = _moved(self.mask_RC, source, target, capacity, dim=1)
        self.mask_RC[:, : target.start] = float("-inf")
        moved = target.start - source.start
        columns.first, columns.column, columns.capacity = target.start, column, capacity
        return moved

    def keep(self, rows: Tensor) -> None:
        """Keep some rows, in the order given."""
        for layer in self.slots:
            layer.keep(rows)
        self.mask_RC = self.mask_RC[rows]


def _moved(storage: Tensor, source: slice, target: slice, capacity: int, dim: int) -> Tensor:
    """Return new storage with the old one's `source` at `target`, and 0 elsewhere."""
    shape = list(storage.shape)
    shape[dim] = capacity
    new = storage.new_zeros(shape)
    length = source.stop - source.start
    new.narrow(dim, target.start, length).copy_(storage.narrow(dim, source.start, length))
    return new
