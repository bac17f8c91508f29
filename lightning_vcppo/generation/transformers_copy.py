"""Sampling with transformers from a copy of the actor: while it trains, or on another device.

The copy is built from the actor's config and filled tensor by tensor, as the copy of vLLM is. It
computes as the trained model does: what adapters have learnt is added to the weights, which rounds
differently, and Liger's kernels, if the trained model has them, are not in it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_vcppo.common.errors import UserError
from lightning_vcppo.generation.base import Generations
from lightning_vcppo.generation.transformers_engine import TransformersEngine
from lightning_vcppo.models.lora import plain_weights
from lightning_vcppo.models.packing import enable_packing, reads_packed_rows
from lightning_vcppo.settings import EngineSettings, SamplingSettings


class TransformersCopyEngine:
    """Samples as `TransformersEngine` does, from a copy of the actor."""

    detached = True

    def __init__(
        self,
        actor: PreTrainedModel,
        settings: EngineSettings,
        *,
        device: torch.device,
        pad_token_id: int,
        eos_token_ids: set[int],
    ) -> None:
        """Store the actor; the copy is made when weights are first taken.

        Args:
            actor: The trained model.
            settings: Rows that decode together; `init_args` may name the device of the copy.
            device: Device on which the actor runs.
            pad_token_id: Filler after finished responses.
            eos_token_ids: Tokens that end a response.

        Raises:
            UserError: If there is another argument, or the device does not exist.
        """
        if unknown := sorted(settings.init_args.keys() - {"device"}):
            raise UserError(
                "--model.engine.init_args: transformers_copy takes device, not "
                f"{', '.join(unknown)}"
            )
        self._actor = actor
        self._home = device
        self._device = _device(settings.init_args.get("device"), device)
        self._build_engine = partial(
            TransformersEngine,
            pad_token_id=pad_token_id,
            eos_token_ids=eos_token_ids,
            max_num_seqs=settings.max_num_seqs,
        )
        self._version: object = None
        self._copy: PreTrainedModel | None = None

    def take_weights(self, version: object) -> None:
        """Copy the actor's weights, unless they are there already; called on every rank."""
        if version is not None and version == self._version:
            return
        if self._copy is None:
            self._copy = _like(self._actor, self._device)
            self._engine = self._build_engine(self._copy)
        own = dict(self._copy.named_parameters(remove_duplicate=False))
        with torch.inference_mode(False), torch.no_grad():
            for name, weight in plain_weights(self._actor):
                own[name].copy_(weight)
        self._version = version

    def forget_weights(self) -> None:
        """Copy the weights again next time, whatever their version."""
        self._version = None

    def sleep(self) -> None:
        """Do nothing: the copy stays where it is."""

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response a prompt, see `GenerationEngine.generate`."""
        assert self._copy is not None, "take_weights comes first"
        sampled = self._engine.generate(prompt_ids, seeds, settings)
        home = self._home
        entropy_BT = sampled.entropy_BT
        return Generations(
            sampled.response_ids_BT.to(home),
            sampled.response_mask_BT.to(home),
            sampled.logprobs_BT.to(home),
            sampled.finished_B.to(home),
            None if entropy_BT is None else entropy_BT.to(home),
        )


def _device(given: str | None, of_actor: torch.device) -> torch.device:
    """Return the device of the copy: the given one, or the actor's.

    Raises:
        UserError: If torch knows no such device here.
    """
    if given is None:
        return of_actor
    try:
        device = torch.device(given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--model.engine.init_args.device: expected a device of this machine, such as cuda:1, "
            f"got {given}: {reason}"
        ) from error
    return device


def _like(actor: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Build a model like the actor on a device, with uninitialized weights.

    Its parameters require gradients as the actor's do, though none are ever computed: torch chooses
    kernels by that, and the copy would round differently.
    """
    config = copy.deepcopy(actor.config)
    implementation = "sdpa" if reads_packed_rows(actor) else config._attn_implementation
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=actor.dtype, attn_implementation=implementation
        )
    nn.Module.to(model.eval(), device)
    return enable_packing(model) if reads_packed_rows(actor) else model
