"""Write critics in the formats of other trainers.

    verl      a token classifier with one label: `score.weight`, `score.bias`
    nemo      the same in a checkpoint of NeMo-RL, from which it warm-starts a value model; in a
              model directory it would not read the head
    openrlhf  a sequence classifier with one output: `score.weight` without a bias, which is added
              to the mean that OpenRLHF subtracts from values

In all formats the output at a token is V of the state after it, as in this package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_vcppo.common.errors import require
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.models.lora import plain_weights
from lightning_vcppo.models.side_critic import Ladder

Layout: TypeAlias = Literal["verl", "nemo", "openrlhf"]

PLACES = {"verl": "critic", "nemo": "step_0", "openrlhf": "critic"}
"""Subdirectory of the output directory that each layout writes."""
_TRAINERS = {"verl": "verl", "nemo": "NeMo-RL", "openrlhf": "OpenRLHF"}


def write_layout(
    directory: Path, critic: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> None:
    """Write a critic for another trainer.

    Args:
        directory: Directory to write; `PLACES` has its name.
        critic: A token classifier with a scalar head, as `Critic.model`, with adapters or without.
        tokenizer: Tokenizer of the critic.
        layout: Layout of the other trainer.

    Raises:
        ValueError: If V is not the output of the critic's head, or needs more than the tokens.
    """
    check_layout(critic, layout)
    place = directory / "value" / "weights" / "model" if layout == "nemo" else directory
    place.parent.mkdir(parents=True, exist_ok=True)
    model = critic
    weights = dict(plain_weights(critic, critic.state_dict()))
    if layout == "openrlhf":
        config = deepcopy(critic.config)
        del config.value_head  # it describes a head with a bias
        config.num_labels = 1
        config.value_head_prefix = "score"
        config.mean, config.std = -float(weights.pop("score.bias", torch.zeros(1))), 1.0
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    write_folder(place, model, tokenizer, weights)
    _edit(place / "config.json", _with_names_of_transformers_4)
    _edit(place / "tokenizer_config.json", _with_known_class)


def check_layout(critic: PreTrainedModel, layout: Layout) -> None:
    """Check that another trainer can compute a critic's values.

    Raises:
        ValueError: If it cannot.
    """
    trainer = _TRAINERS[layout]
    require(
        not isinstance(critic, Ladder),
        f"--layout={layout}: a side critic reads the activations of an actor, which {trainer} does "
        "not do",
    )
    described = getattr(critic.config, "value_head", None) or {"head": "scalar"}
    head, hint = described["head"], described.get("privileged_prompt", "none")
    require(
        head == "scalar",
        f"--layout={layout}: the critic has the head {head}, whose value is not its output; "
        f"{trainer} reads one number a token (value.head=scalar)",
    )
    require(
        hint == "none",
        f"--layout={layout}: the critic reads a hint before each prompt ({hint}), which {trainer} "
        "does not give it",
    )


def how_to_load(directory: Path, layout: Layout) -> str:
    """Return the settings with which the other trainer loads the output of `write_layout`."""
    if layout == "verl":
        return f"verl: critic.model.path={directory}"
    if layout == "nemo":
        return (
            f"NeMo-RL: ppo.warm_start_value_checkpoint={directory}, and value.model_name is the "
            "model from which the critic was fitted (dtensor_cfg; Megatron has another checkpoint "
            "format)"
        )
    mean = json.loads((directory / "config.json").read_text(encoding="utf-8"))["mean"]
    text = f"OpenRLHF: --critic.model_name_or_path {directory}"
    if mean:
        text += " --reward.normalize_enable, because `mean` of config.json has the bias of the head"
    return text


def _edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(content), indent=2) + "\n", encoding="utf-8")


def _with_names_of_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """Repeat the position embedding under its names of transformers 4, which many still run.

    It does not know `rope_parameters`, and would take its default without a word.
    """
    scaling = dict(config.get("rope_parameters") or {})
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in scaling:
            config[name] = scaling.pop(name)
    if scaling.get("rope_type", "default") != "default":
        config["rope_scaling"] = scaling
    return {**config, "torch_dtype": config.get("dtype")}


def _with_known_class(config: dict[str, Any]) -> dict[str, Any]:
    """Name the class of the tokenizer as both transformers 4 and 5 do."""
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return config
