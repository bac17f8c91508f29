"""Check once a run that sampling, single rows and batched rows give the same policy.

Importance ratios, and everything that reuses the sampler's log-probabilities, assume that a model's
prediction of a token depends only on the tokens before it. Some model types break that assumption
when rows are packed, padded or sampled. So a short and a long row of arbitrary tokens are
sampled and read before the first batch:

1. Both rows read together must give the same states as each read separately. If packed rows do
   not, packing is switched off; if padded rows do not either, the model is refused.
2. Sampling must give the log-probabilities of reading. If they differ slightly, the sampler's are
   not reused; if they differ much, or sampling fails, the model is refused.

Shapes: B sequences, L tokens, T response tokens, N masked response tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vcppo.common.errors import UserError
from lightning_vcppo.distributed.sharding import as_forward
from lightning_vcppo.generation.base import Generations
from lightning_vcppo.models.critic import Critic
from lightning_vcppo.models.forward import response_hidden, response_logprobs
from lightning_vcppo.models.packing import reads_packed_rows
from lightning_vcppo.rollouts.rollout import join_prompts
from lightning_vcppo.settings import SamplingSettings

SHORT, LONG = 3, 25
"""Lengths of the two prompts, in tokens."""
RESPONSE = 6
"""Largest length of a response, in tokens."""

ROUNDING = {4: 2e-3, 2: 0.15}
"""Bytes of a weight -> largest difference due to rounding: relative (states), nats (log-probs)."""
ANOTHER_POLICY = 0.3
"""Difference of sampling and reading, in nats, that no precision's rounding explains."""

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""Errors that a model raises when it is run in a way that its code does not expect."""

Sample = Callable[[list[list[int]], list[int], SamplingSettings], Generations]
Agree = Callable[[int], int]


def probe_policy(
    networks: Mapping[str, PreTrainedModel | Critic],
    sample: Sample | None,
    *,
    device: torch.device,
    half: bool = False,
    agree: Agree = lambda number: number,
) -> bool:
    """Read and sample two rows; switch packing off if it changes the outputs.

    Called on every rank, with gradients off and in the precision of the run.

    Args:
        networks: Networks by name, the actor first.
        sample: Samples from the actor; None if an engine with its own weights does.
        device: Device on which networks run. Their weights may be on the host at the moment.
        half: Whether products are in a 16-bit type or in TF32.
        agree: Returns the largest of the ranks' numbers.

    Returns:
        Whether sampling gives the log-probabilities of reading.

    Raises:
        ValueError: If a model's type cannot be trained here.
    """
    exact = True
    for name, network in networks.items():
        model = language_model(network)
        tolerance = ROUNDING[2 if half else min(model.dtype.itemsize, 4)]
        kind = f"{name}: a model of type {model.config.model_type}"
        apart = True
        if reads_packed_rows(model):
            problem = "has other outputs for packed than for single rows"
            try:
                apart = _differs_among_others(network, tolerance, device)
            except FAILURES as error:  # then it is tried without packing
                problem = f"cannot be read packed: {_in_one_line(error)}"
            if agree(int(apart)):
                rank_zero_warn(f"{kind} {problem}; its rows are padded")
                model.set_attn_implementation("sdpa")
        if not reads_packed_rows(model):
            with _model_errors(kind, "cannot be read here"):
                apart = _differs_among_others(network, tolerance, device)
        if agree(int(apart)):
            raise ValueError(
                f"{kind} has other outputs for a row when a longer row is in the batch, so its "
                "policy depends on the batch; choose a model of another type"
            )
        if sample is not None and network is next(iter(networks.values())):
            with _model_errors(kind, "cannot be sampled from here"):
                assert isinstance(network, PreTrainedModel)
                gap = _gap_of_sampling(network, sample)
            worst = agree(2 if gap > ANOTHER_POLICY else int(gap > tolerance))
            if worst == 2:
                raise ValueError(
                    f"{kind}: log-probabilities of sampling and reading differ by {gap:.2g} nats; "
                    "choose a model of another type, or set --model.engine.name=vllm"
                )
            if worst == 1 and not half:
                rank_zero_warn(
                    f"{kind}: log-probabilities of sampling and reading differ by {gap:.2g} nats; "
                    "they are read again before each update"
                )
            exact = worst == 0
    return exact


class _model_errors:
    """Turns an error within a model into one line that names the model's type."""

    def __init__(self, kind: str, failure: str) -> None:
        self._line = f"{kind} {failure}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The code of a model type that we do not know may raise any error.
        if isinstance(error, FAILURES):
            if isinstance(error, (torch.OutOfMemoryError, UserError)):
                return  # the model is not to blame
            reason = _in_one_line(error)
            raise ValueError(f"{self._line}: {reason}; choose one of another type") from error


def _in_one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def language_model(network: PreTrainedModel | Critic) -> PreTrainedModel:
    """Return the transformers model of a network."""
    return network.model if isinstance(network, Critic) else network


def _prompts(model: PreTrainedModel) -> list[list[int]]:
    """Return a short and a long row of arbitrary tokens, within the model's vocabulary."""
    text = model.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or SHORT + LONG
    long = max(min(LONG, positions - RESPONSE), 1)
    rows = int(text.vocab_size)
    return [[(7 * i + 3) % rows for i in range(length)] for length in (min(SHORT, long), long)]


def _differs_among_others(
    network: PreTrainedModel | Critic, tolerance: float, device: torch.device
) -> bool:
    """Return whether the last states of two rows change when the rows are read together."""
    prompts = _prompts(language_model(network))
    alone = [_last_states(network, [ids], device) for ids in prompts]
    together = _last_states(network, prompts, device)
    scale = together.float().abs().max().clamp_min(1e-6)
    apart = (torch.cat(alone).float() - together.float()).abs().max() / scale
    return not float(apart) <= tolerance


def _last_states(
    network: PreTrainedModel | Critic, prompts: list[list[int]], device: torch.device
) -> Tensor:
    """Return the states that predict the last tokens of each prompt, at most two."""
    model = language_model(network)
    rows = [torch.tensor(ids, device=device) for ids in prompts]
    ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths_B = torch.tensor([max(len(ids) - 2, 1) for ids in prompts], device=device)
    extents = [max(min(len(ids) - 1, 2), 1) for ids in prompts]
    mask_BT = (
        torch.arange(max(extents), device=device) < torch.tensor(extents, device=device)[:, None]
    )
    return as_forward(
        network, lambda: response_hidden(model.base_model, ids_BL, lengths_B, mask_BT)
    )


def _gap_of_sampling(model: PreTrainedModel, sample: Sample) -> float:
    """Return the largest difference between log-probabilities of sampling and of reading."""
    prompts = _prompts(model)
    settings = SamplingSettings(max_response_length=RESPONSE)
    sampled = sample(prompts, [1, 2], settings)
    mask_BT = sampled.response_mask_BT
    logprobs_N, _ = response_logprobs(
        model,
        join_prompts(prompts, sampled.response_ids_BT, mask_BT, 0),
        torch.tensor([len(ids) for ids in prompts], device=mask_BT.device),
        mask_BT,
        sampled.response_ids_BT[mask_BT],
    )
    return float((logprobs_N - sampled.logprobs_BT[mask_BT]).abs().max())
