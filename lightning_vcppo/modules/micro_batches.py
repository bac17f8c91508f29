"""Partition sequences into micro-batches of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def token_balanced_micro_batches(
    lengths: Sequence[int] | Tensor,
    max_tokens: int,
    *,
    num_micro_batches: int | None = None,
    padded: bool = False,
) -> list[list[int]]:
    """Partition sequences into few micro-batches of about equal, bounded size.

    The size of a micro-batch is the number of its tokens, or, where rows are padded to the longest
    of them, rows x longest row. Sequences are taken from the longest to the shortest, each into the
    first micro-batch with room for it (first-fit decreasing: at most 11/9 of the fewest possible,
    plus one). Padded rows fill one micro-batch after the other, because a micro-batch without room
    for a row has no room for a shorter one either.

    Then the sizes are balanced: a bisection finds the smallest bound for which the same rule needs
    no more micro-batches than before, or than `num_micro_batches`.

    Args:
        lengths: Tokens of each sequence; read only.
        max_tokens: Largest size of a micro-batch. A sequence that is longer gets a micro-batch of
            its own.
        num_micro_batches: Least number to return, the last ones empty if necessary: the maximum
            over ranks, because all must do the same number of backward passes.
        padded: Whether rows are padded to the longest of their micro-batch.

    Returns:
        Lists of indices into `lengths`, longest first; each index occurs once. The same input gives
        the same output.

    Raises:
        ValueError: For a negative length, or `max_tokens` or `num_micro_batches` below 1.
    """
    sizes = [int(length) for length in lengths]
    if min(sizes, default=0) < 0:
        raise ValueError("lengths must not be negative")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    if num_micro_batches is not None and num_micro_batches < 1:
        raise ValueError(f"num_micro_batches must be at least 1, got {num_micro_batches}")

    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    best = _first_fit(order, sizes, max_tokens, padded)
    count = max(len(best), num_micro_batches or 0)
    too_small, enough = -1, max_tokens
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        cut = _first_fit(order, sizes, middle, padded)
        if len(cut) <= count:
            enough, best = middle, cut
        else:
            too_small = middle
    return best + [[] for _ in range(count - len(best))]


def _first_fit(
    order: Sequence[int], sizes: Sequence[int], max_tokens: int, padded: bool
) -> list[list[int]]:
    """Put each index, in that order, into the first micro-batch that has room for it."""
    micro_batches: list[list[int]] = []
    rooms = np.empty(len(order), dtype=np.int64)  # of each micro-batch, in tokens
    for index in order:
        if padded:  # a row takes as much as the longest; only the last has room
            first = max(len(micro_batches) - 1, 0)
            size = sizes[micro_batches[-1][0]] if micro_batches else 0
        else:
            fits = rooms[: len(micro_batches)] >= sizes[index]
            first = int(fits.argmax()) if len(fits) else 0
            size = sizes[index]
        if first < len(micro_batches) and rooms[first] >= size:
            micro_batches[first].append(index)
            rooms[first] -= size
        else:
            rooms[len(micro_batches)] = max_tokens - sizes[index]
            micro_batches.append([index])
    return micro_batches
