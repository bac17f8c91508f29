"""Sample from an actor through servers, and compare with the engine in the trained model."""

from __future__ import annotations

import torch

from lightning_vcppo.generation import TransformersEngine, VLLMServerEngine
from lightning_vcppo.settings import EngineSettings, SamplingSettings
from tests.support.stopping import PROMPTS

SETTINGS = SamplingSettings(max_response_length=8)
QUICK = {"retry_s": 0.01, "patience_s": 20.0, "timeout_s": 20.0}


def moved(model, seed: int):
    """Change all weights of a model a little; return it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def engine_for(model, *servers, stops=(), **settings) -> VLLMServerEngine:
    """Return an engine on servers, which has taken the weights of a model."""
    settings = {"name": "vllm_server", **QUICK, **settings}
    engine = VLLMServerEngine(
        model,
        EngineSettings(urls=[server.url for server in servers], **settings),
        device=model.device,
        pad_token_id=0,
        eos_token_ids=set(stops),
    )
    engine.take_weights(0)
    return engine


def sample(engine, rows: int = 4):
    """Sample a response to each of some prompts."""
    return engine.generate((PROMPTS * rows)[:rows], [*range(rows)], SETTINGS)


def assert_same(sampled, model, rows: int = 4) -> None:
    """Check that responses are those of the model itself."""
    expected = sample(TransformersEngine(model, pad_token_id=0, eos_token_ids=set()), rows)
    assert torch.equal(sampled.response_ids_BT, expected.response_ids_BT)
    torch.testing.assert_close(sampled.logprobs_BT, expected.logprobs_BT, atol=1e-5, rtol=0)
