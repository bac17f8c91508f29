"""Engines that sample token ids and their log-probabilities for tokenized prompts."""

from lightning_vcppo.generation.base import GenerationEngine, Generations
from lightning_vcppo.generation.build import build_engine
from lightning_vcppo.generation.server_engine import VLLMServerEngine
from lightning_vcppo.generation.transformers_copy import TransformersCopyEngine
from lightning_vcppo.generation.transformers_engine import TransformersEngine
from lightning_vcppo.generation.vllm_engine import VLLMEngine

__all__ = [
    "GenerationEngine",
    "Generations",
    "TransformersCopyEngine",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServerEngine",
    "build_engine",
]
