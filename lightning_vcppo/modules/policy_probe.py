"""Check once a run that the policy is one function: sampled, read alone and read among others.

Importance ratios, and everything that reuses the sampler's log-probabilities, take for granted that
what a model says of a token depends on the tokens before it alone. Some kinds of models do not keep
to that in some of our ways of running them. So a short and a long row of arbitrary tokens are
sampled and read before the first batch:

1. Both rows read together must give what each gives alone. Where packed rows do not, packing is
   switched off; where padded rows do not either, the model is refused.
2. Sampling must leave the log-probabilities that reading gives. Where they differ a little, they
   are not reused; where they differ much, or sampling fails, the model is refused.

Shapes: B sequences, L tokens, T response tokens, N masked response tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vcppo.distributed.sharding import as_forward
from lightning_vcppo.generation.base import Generations
from lightning_vcppo.models.critic import Critic
from lightning_vcppo.models.forward import response_hidden, response_logprobs
from lightning_vcppo.models.packing import reads_packed_rows
from lightning_vcppo.rollouts.rollout import join_prompts
from lightning_vcppo.settings import SamplingSettings

SHORT, LONG = 3, 25
"""Tokens of the two prompts."""
RESPONSE = 6
"""Tokens of a response, at most."""

ROUNDING = {4: 2e-3, 2: 0.15}
"""Bytes of a weight -> share of a hidden state, or nats, that rounding may make out."""
ANOTHER_POLICY = 0.3
"""Nats between sampling and reading that are no rounding in any precision."""

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""Errors of a model that is run in a way that its code does not expect."""

Sample = Callable[[list[list[int]], list[int], SamplingSettings], Generations]
Agree = Callable[[int], int]


def probe_policy(
    networks: Mapping[str, PreTrainedModel | Critic],
    sample: Sample | None,
    *,
    half: bool = False,
    agree: Agree = lambda number: number,
) -> bool:
    """Read and sample two rows; switch packing off where it would make a difference.

    Called on every rank, with gradients off and in the precision of the run.

    Args:
        networks: By name, the actor first.
        sample: Samples from the actor; None where an engine with weights of its own does.
        half: Whether products are in a type of two bytes, or in TF32.
        agree: Returns the largest of one number a rank.

    Returns:
        Whether sampling leaves the log-probabilities that reading gives.

    Raises:
        ValueError: If a model is of a kind that cannot be trained on here.
    """
    exact = True
    for name, network in networks.items():
        model = language_model(network)
        tolerance = ROUNDING[2 if half else min(model.dtype.itemsize, 4)]
        kind = f"{name}: a model of type {model.config.model_type}"
        apart = True
        if reads_packed_rows(model):
            with suppress(*FAILURES):  # then it is tried without packing
                apart = _differs_among_others(network, tolerance)
            if agree(int(apart)):
                rank_zero_warn(
                    f"{kind} does not read packed rows as it reads them alone; its rows are padded"
                )
                model.set_attn_implementation("sdpa")
        if not reads_packed_rows(model):
            with _named(kind, "cannot be read here"):
                apart = _differs_among_others(network, tolerance)
        if agree(int(apart)):
            raise ValueError(
                f"{kind} gives a row other states when a longer one stands beside it, so its "
                "policy depends on the batch; choose a model of another kind"
            )
        if sample is not None and network is next(iter(networks.values())):
            with _named(kind, "cannot be sampled from here"):
                assert isinstance(network, PreTrainedModel)
                gap = _gap_of_sampling(network, sample)
            worst = agree(2 if gap > ANOTHER_POLICY else int(gap > tolerance))
            if worst == 2:
                raise ValueError(
                    f"{kind} is sampled with log-probabilities that differ from those it is read "
                    f"with (by {gap:.2g} nats); choose a model of another kind, or --model.engine."
                    "name=vllm"
                )
            if worst == 1 and not half:
                rank_zero_warn(
                    f"{kind}: log-probabilities of sampling and reading differ by {gap:.2g} nats; "
                    "they are read anew before each update"
                )
            exact = worst == 0
    return exact


class _named:
    """Turns what fails within a model into one line that names its kind."""

    def __init__(self, kind: str, failure: str) -> None:
        self._line = f"{kind} {failure}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Code of some kind of model that we have never seen may raise anything.
        if isinstance(error, FAILURES):
            if isinstance(error, torch.OutOfMemoryError):
                return
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{self._line}: {reason}; choose one of another kind") from error


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


def _differs_among_others(network: PreTrainedModel | Critic, tolerance: float) -> bool:
    """Return whether the last states of two rows are others when the rows are read together."""
    prompts = _prompts(language_model(network))
    alone = [_last_states(network, [ids]) for ids in prompts]
    together = _last_states(network, prompts)
    scale = together.float().abs().max().clamp_min(1e-6)
    apart = (torch.cat(alone).float() - together.float()).abs().max() / scale
    return not float(apart) <= tolerance


def _last_states(network: PreTrainedModel | Critic, prompts: list[list[int]]) -> Tensor:
    """Return the states from which three tokens behind each prompt's first are predicted."""
    model = language_model(network)
    device = model.device
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
