"""Parts of a critic that keep the weights they start with (SAO, arXiv 2607.07508).

SAO found a critic steadier whose attention is frozen: only MLPs, norms, embeddings and head are
trained. Frozen weights get no gradient and no state of the optimizer; checkpoints and folders hold
them, as they hold all others.
"""

from __future__ import annotations

from typing import Literal

from torch.nn import Parameter
from transformers import PreTrainedModel

Part = Literal["none", "attention", "embeddings"]


def freeze(model: PreTrainedModel, part: Part) -> None:
    """Freeze a part of a critic's backbone.

    Args:
        model: With a backbone in `base_model`.
        part: "attention": projections of queries, keys, values and outputs, in every layer; norms
            within attention are trained on, as in the authors' code. "embeddings": those of tokens.

    Raises:
        ValueError: If the model has no such part that can be told by its name.
    """
    if part == "none":
        return
    found = _attention(model) if part == "attention" else _embeddings(model)
    if not found:
        raise ValueError(
            f"--model.value.freeze: a model of type {model.config.model_type} has no {part} that "
            "is known here; use a decoder of the Llama, Qwen, Gemma, Mistral or SmolLM kind"
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
