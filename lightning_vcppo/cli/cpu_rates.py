"""Measure how fast this machine's CPU samples and learns, for `vcppo plan`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_vcppo.generation import TransformersEngine
from lightning_vcppo.models import forward
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.planning.run import Run
from lightning_vcppo.planning.seconds import Rates, plan_seconds
from lightning_vcppo.settings import SamplingSettings

TRIAL_TOKENS, TRIAL_COLUMNS, TRIAL_PROMPT, TRIAL_VOCABULARY = 1024, 16, 16, 2**25


def measured_rates(run: Run) -> Rates:
    """Time sampling and an update of two layers of the actor's shape on this CPU, a few seconds.

    The operations that `plan_seconds` counts are divided by the measured times, so that uncounted
    ones, such as norms and softmax, are included in the rates.
    """
    shape = run.actor
    layers, vocabulary = 2, min(shape.vocab_size, TRIAL_VOCABULARY // shape.hidden_size)
    trial = replace(
        run,
        actor=replace(shape, num_layers=layers, vocab_size=vocabulary),
        critic=None,
        prompt_length=TRIAL_PROMPT,
        mean_response_length=TRIAL_COLUMNS,
        prompts=run.rows,
        num_generations=1,
        devices=1,
        epochs=1,
        strategy="single",
        engine="transformers",
        sampling_devices=0,
    )
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        tie_word_embeddings=shape.tied,
    )
    model: Any = enable_packing(AutoModelForCausalLM.from_config(config).eval())
    prompts = torch.randint(0, vocabulary, (run.rows, TRIAL_PROMPT)).tolist()
    settings = SamplingSettings(max_response_length=TRIAL_COLUMNS)
    engine = TransformersEngine(model, pad_token_id=0, eos_token_ids=set(), max_num_seqs=run.rows)
    sampling = _seconds(lambda: engine.generate(prompts, range(run.rows), settings))

    responses = max(1, TRIAL_TOKENS // (2 * TRIAL_COLUMNS))
    ids_BL = torch.randint(0, vocabulary, (responses, TRIAL_PROMPT + TRIAL_COLUMNS))
    lengths_B = torch.full((responses,), TRIAL_PROMPT)
    mask_BT = torch.ones(responses, TRIAL_COLUMNS, dtype=torch.bool)

    def update() -> None:
        targets_N = ids_BL[:, TRIAL_PROMPT:].flatten()
        logprobs_N, _ = forward.response_logprobs(model, ids_BL, lengths_B, mask_BT, targets_N)
        torch.autograd.grad(logprobs_N.sum(), list(model.parameters()))

    unit = Rates(1.0, 1.0)
    sampled = plan_seconds(trial, unit, 1).sampling
    updated = plan_seconds(replace(trial, prompts=responses), unit, 1).policy
    return Rates(updated / _seconds(update), sampled / sampling)


def _seconds(run: Callable[[], object]) -> float:
    """Return the shorter time of two calls, after a warm-up call."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times[1:])
