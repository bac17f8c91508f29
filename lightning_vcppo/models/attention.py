"""Choose the attention kernel for each use.

* SDPA never uses cuDNN's kernel (`prefer_general_kernels`). It is compiled for every new shape, 60
  ms each on an H100, and nearly every shape here is new: each decoding step adds a key, and each
  packed row has other lengths.
* Packed rows use variable-length attention if there is one (`variable_length_attention`). It needs
  neither padding nor a mask.
* Decoding with static shapes reads only each row's used keys with the same kernel, or the complete
  storage with a mask.

Every choice is made once per process, by a trial on the device, and logged.

Shapes: N tokens of all sequences, B sequences, H query heads, K key-value heads, D size of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

ALIGNMENT = 16
"""Bias columns begin and end at multiples of this: 16 bytes or more in every type."""
MEMORY_EFFICIENT_HEAD = 8
"""Head sizes of fused kernels are multiples of this."""

VariableLength: TypeAlias = Callable[..., Tensor]


def aligned_down(columns: int) -> int:
    """Return the last aligned column at or before `columns`."""
    return columns - columns % ALIGNMENT


def aligned_up(columns: int) -> int:
    """Return the first aligned column at or after `columns`."""
    return -(-columns // ALIGNMENT) * ALIGNMENT


@cache
def prefer_general_kernels() -> None:
    """Switch cuDNN's attention off in this process; log it if there is a GPU."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    if torch.cuda.is_available():
        rank_zero_info("attention: flash and memory-efficient kernels, not cuDNN's (shapes vary)")


def variable_length_attention(query: Tensor) -> VariableLength | None:
    """Choose a kernel for packed rows.

    Args:
        query: (N, H, D), which gives device, type and head size.

    Returns:
        A function with the arguments of `reference_varlen`; None if there is none for this type and
        device, so that the caller pads groups of sequences.
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    if not query.is_cuda or not half or query.shape[-1] % MEMORY_EFFICIENT_HEAD:
        return None
    return _tried_varlen(query.device)


def attends_by_length(query: Tensor) -> VariableLength | None:
    """Choose a kernel that reads only each row's used keys; None if there is none."""
    kernel = variable_length_attention(query)
    return kernel if kernel is not None and _tried_used_keys(query.device) else None


def try_kernels(device: torch.device) -> None:
    """Make the choices for a device now, before checkpointed layers or captured graphs run."""
    if device.type == "cuda" and _tried_varlen(device) is not None:
        _tried_used_keys(device)


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    key_ends: Tensor,
    longest: int,
    longest_keys: int,
    *,
    scale: float | None = None,
    window: int | None = None,
    used_keys: Tensor | None = None,
) -> Tensor:
    """Attend causally within each sequence, one by one: the reference for the kernels.

    Args:
        query: (N, H, D), the sequences concatenated.
        key: (keys, K, D).
        value: (keys, K, D).
        ends: (B + 1,) int32; sequence b is tokens ends[b] to ends[b + 1].
        key_ends: The same for the keys.
        longest: Number of tokens of the longest sequence.
        longest_keys: Number of keys of the longest sequence.
        scale: Factor of the dot products; None means 1 / sqrt(D).
        window: Number of keys that a token sees, its own included; None means all before it.
        used_keys: (B,) int32, the number of each sequence's keys that are used; None means all.

    Returns:
        (N, H, D).
    """
    shared = query.shape[1] // key.shape[1]
    outputs = []
    bounds = zip(ends.tolist()[:-1], ends.tolist()[1:], key_ends.tolist()[:-1], strict=True)
    for row, (start, end, key_start) in enumerate(bounds):
        count = int(key_ends[row + 1]) - key_start if used_keys is None else int(used_keys[row])
        keys, values = (
            x[key_start : key_start + count].repeat_interleave(shared, 1).transpose(0, 1)
            for x in (key, value)
        )
        place_Q = torch.arange(end - start, device=query.device) + count - (end - start)
        behind_QK = place_Q[:, None] - torch.arange(count, device=query.device)
        seen_QK = (behind_QK >= 0) & (behind_QK < (window or count))
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores_HQK = query[start:end].transpose(0, 1) @ keys.transpose(1, 2) * factor
        weights_HQK = scores_HQK.masked_fill(~seen_QK, float("-inf")).softmax(-1)
        outputs.append((weights_HQK @ values).transpose(0, 1))
    return torch.cat(outputs)


def _torch_varlen() -> VariableLength | None:
    """Wrap torch's function, whose arguments differ between versions."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        ends: Tensor,
        key_ends: Tensor,
        longest: int,
        longest_keys: int,
        *,
        scale: float | None = None,
        window: int | None = None,
        used_keys: Tensor | None = None,
    ) -> Tensor:
        options: dict[str, Any] = {}
        if "scale" in known:
            options["scale"] = scale
        elif scale is not None:
            query = query * (scale * query.shape[-1] ** 0.5)
        if "window_size" in known:
            options["window_size"] = (-1 if window is None else window - 1, 0)
        elif window is None:
            options["is_causal"] = True
        else:
            raise TypeError("this torch's varlen_attn has no window")
        if "enable_gqa" in known:
            options["enable_gqa"] = query.shape[1] != key.shape[1]
        if used_keys is not None:
            options["seqused_k"] = used_keys
        attended = varlen_attn(query, key, value, ends, key_ends, longest, longest_keys, **options)
        assert isinstance(attended, Tensor)  # without the optional sums
        return attended

    return attend


@cache
def _tried_varlen(device: torch.device) -> VariableLength | None:
    """Try torch's function in bfloat16: forward and backward, grouped queries, with a window."""
    kernel = _torch_varlen()
    reason = "this torch has none" if kernel is None else ""
    if kernel is not None:
        ends = torch.tensor([0, 33, 34, 51], dtype=torch.int32, device=device)
        try:
            for window in (None, 7):
                reason = reason or _disagreement(kernel, ends, window)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
    if reason:
        rank_zero_info(f"attention of packed rows: padded groups (varlen_attn: {reason})")
        return None
    rank_zero_info("attention of packed rows: torch's varlen_attn")
    return kernel


def _disagreement(kernel: VariableLength, ends: Tensor, window: int | None) -> str:
    """Return how a kernel's output or gradients differ from the reference's, or ""."""
    generator = torch.Generator().manual_seed(0)
    count = int(ends[-1])
    drawn = [torch.randn(count, heads, 64, generator=generator) for heads in (6, 2, 2)]
    results = []
    with torch.enable_grad(), torch.inference_mode(False), torch.autocast("cuda", enabled=False):
        for attend, kind in ((kernel, torch.bfloat16), (reference_varlen, torch.float32)):
            leaves = [x.to(ends.device, torch.bfloat16).to(kind).requires_grad_() for x in drawn]
            query, key, value = leaves
            output = attend(query, key, value, ends, ends, 33, 33, scale=0.1, window=window)
            gradients = torch.autograd.grad(output.float().square().sum(), leaves)
            results.append([output.detach(), *gradients])
    for name, ours, wanted in zip(["output", "query", "key", "value"], *results, strict=True):
        gap = float((ours.float() - wanted).norm() / wanted.norm())
        if not gap < 0.03:  # rounding of bfloat16 sums; a wrong mask is off by about 1
            return f"{name} is {gap:.1%} off with window {window}"
    return ""


@cache
def _tried_used_keys(device: torch.device) -> bool:
    """Try one query per row against storage of which only each row's first keys are used."""
    kernel, reason = _torch_varlen(), ""
    generator = torch.Generator().manual_seed(0)
    rows, capacity = 3, 48
    query, key, value = (
        torch.randn(*shape, 64, generator=generator).to(device, torch.bfloat16)
        for shape in ((rows, 6), (rows * capacity, 2), (rows * capacity, 2))
    )
    row_R = torch.arange(rows + 1, device=device, dtype=torch.int32)
    used_R = torch.tensor([1, 48, 17], device=device, dtype=torch.int32)
    arguments: list[Any] = [query, key, value, row_R, row_R * capacity, 1, capacity]
    try:
        assert kernel is not None
        for window in (None, 5):
            ours = kernel(*arguments, window=window, used_keys=used_R).float()
            wanted = reference_varlen(*arguments, window=window, used_keys=used_R).float()
            gap = float((ours - wanted).norm() / wanted.norm())
            reason = reason or ("" if gap < 0.03 else f"{gap:.1%} off with window {window}")
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        rank_zero_info(f"attention of decoding: over the complete storage, masked ({reason})")
    else:
        rank_zero_info("attention of decoding: by each row's length (varlen_attn)")
    return not reason
