"""Freeze parts of a critic at their initial weights (SAO, arXiv 2607.07508).

SAO found training more stable if the critic's attention is frozen and only MLPs, norms, embeddings
and head are trained. Frozen weights have no gradient and no optimizer state; checkpoints and
exports contain them like all others.
"""

from __future__ import annotations

from typing import Literal

from torch.nn import Parameter
from transformers import PreTrainedModel

Part = Literal["none", "attention", "embeddings"]


def freeze(model: PreTrainedModel, part: Part) -> None:
    """Freeze a part of a critic's backbone.

    Args:
        model: A model with a backbone in `base_model`.
        part: "attention": projections of queries, keys, values and outputs, in every layer; norms
            within attention are still trained, as in the authors' code. "embeddings": those of
            tokens.

    Raises:
        ValueError: If the model has no such part that can be recognised by its name.
    """
    if part == "none":
        return
    found = _attention(model) if part == "attention" else _embeddings(model)
    if not found:
        raise ValueError(
            f"--model.value.freeze: found no {part} in a model of type {model.config.model_type}; "
            "use a decoder of the Llama, Qwen, Gemma, Mistral or SmolLM family"
        )
    for parameter in found:
        parameter.requires_grad_(False)


def _attention(model: PreTrainedModel) -> list[Parameter]:
    """Return the weights within attention modules, norms excepted."""
    return [
        parameter
        for module in model.base_model.modules()
        if type(module).__name__.endswith("Attention")
        for name, parameter in module.named_parameters()
        if "norm" not in name
    ]


def _embeddings(model: PreTrainedModel) -> list[Parameter]:
    return list(model.get_input_embeddings().parameters())
