"""Convert lists, in which vLLM returns responses, to padded tensors.

Shapes: B sequences, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_vcppo.generation.base import Generations


def pad(
    token_ids: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float] | None],
    finished: Sequence[bool],
    pad_token_id: int,
    device: torch.device,
) -> Generations:
    """Pad responses on the right.

    Args:
        token_ids: Token ids of each response.
        logprobs: Log-probabilities of its tokens; None if unknown, which becomes NaN.
        finished: Whether each response ended by itself.
        pad_token_id: Filler.
        device: Device of the result.
    """
    lengths_B = torch.tensor([len(ids) for ids in token_ids])
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    ids_BT = torch.full(mask_BT.shape, pad_token_id)
    logprobs_BT = torch.zeros(mask_BT.shape, dtype=torch.float32)
    for row, (ids, of_ids) in enumerate(zip(token_ids, logprobs, strict=True)):
        ids_BT[row, mask_BT[row]] = torch.tensor(list(ids))
        # The default dtype may be that of the trainer's precision, so it has to be named.
        known = float("nan") if of_ids is None else of_ids
        logprobs_BT[row, mask_BT[row]] = torch.tensor(known, dtype=torch.float32)
    tensors = (ids_BT, mask_BT, logprobs_BT, torch.tensor(list(finished)))
    return Generations(*(tensor.to(device) for tensor in tensors))
