"""Load actor, critic and reference, and compute their outputs on responses."""

from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.models.loading import build_actor, load_actor, load_tokenizer
from lightning_vcppo.models.logprobs import token_logprobs
from lightning_vcppo.models.packing import enable_packing

__all__ = [
    "build_actor",
    "enable_packing",
    "load_actor",
    "load_critic",
    "load_tokenizer",
    "token_logprobs",
    "write_folder",
]
