"""Partition of sequences into micro-batches of bounded size."""

from __future__ import annotations

from collections.abc import Sequence


def token_balanced_micro_batches(
    lengths: Sequence[int],
    max_tokens: int,
    *,
    num_micro_batches: int | None = None,
    padded: bool = False,
) -> list[list[int]]:
    """Partition sequences into micro-batches of about equal, bounded size.

    The size of a micro-batch is the number of its tokens, or, where rows are padded to the longest
    of them, rows x longest row. Sequences are taken from the longest to the shortest, so that
    neighbours are alike and memory peaks at once. Of all such partitions into as few micro-batches
    as `max_tokens` allows, or into `num_micro_batches`, the one with the smallest largest
    micro-batch is returned.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Largest size of a micro-batch. A sequence that is longer gets a micro-batch of
            its own.
        num_micro_batches: At least this many are returned, the last ones empty if need be: the
            maximum over ranks, for ranks that must do the same number of backward passes.
        padded: Whether rows are padded to the longest of their micro-batch.

    Returns:
        Lists of indices into `lengths`; each index occurs once. The same input gives the same
        output.

    Raises:
        ValueError: For a negative length, or `max_tokens` or `num_micro_batches` below 1.
    """
    if min(lengths, default=0) < 0:
        raise ValueError("lengths must not be negative")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    if num_micro_batches is not None and num_micro_batches < 1:
        raise ValueError(f"num_micro_batches must be at least 1, got {num_micro_batches}")

    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    count = max(len(_cut(order, lengths, max_tokens, padded)), num_micro_batches or 0)
    too_small, enough = -1, max_tokens
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if len(_cut(order, lengths, middle, padded)) <= count:
            enough = middle
        else:
            too_small = middle
    micro_batches = _cut(order, lengths, enough, padded)
    return micro_batches + [[] for _ in range(count - len(micro_batches))]


def _cut(
    order: Sequence[int], lengths: Sequence[int], max_tokens: int, padded: bool
) -> list[list[int]]:
    """Fill micro-batches one after the other with indices that come longest first."""
    micro_batches: list[list[int]] = []
    size = 0
    for index in order:
        size += lengths[micro_batches[-1][0] if padded and micro_batches else index]
        if micro_batches and size <= max_tokens:
            micro_batches[-1].append(index)
        else:
            micro_batches.append([index])
            size = lengths[index]
    return micro_batches
