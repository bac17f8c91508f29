"""Actor, critic and reference: ordinary transformers models, loaded from folders, the hub or a config.

Shapes: B sequences, L tokens of prompt + response, T response tokens, N masked response tokens,
H hidden, K outputs of the value head (1, or the bins of a histogram).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lightning_vcppo.problems import THINK_CLOSE, THINK_OPEN

PAD, EOS = "<pad>", "<eos>"

# Outputs of these models are not softmax(hidden @ head): the log-probability kernel would be wrong.
_UNSUPPORTED_LOGIT_TRANSFORMS = {
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
}


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub.

    Raises:
        ValueError: if there is none, or if it has no end-of-sequence token.
    """
    tokenizer = _load(AutoTokenizer, name_or_path, "tokenizer")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{name_or_path}: the tokenizer has no eos_token, so no response could end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_actor(name_or_path: str) -> PreTrainedModel:
    """Load a causal language model, in float32 (the Trainer's precision flag casts it).

    Raises:
        ValueError: if there is none at that path, or if its logits are not a plain linear head's.
    """
    actor = _load(AutoModelForCausalLM, name_or_path, "causal language model")
    _check_plain_head(actor, name_or_path)
    return actor


def build_actor(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build a causal language model with random weights.

    Args:
        config: `model_type` and the fields of its transformers config, such as hidden_size.
        tokenizer: Gives the size of the vocabulary and the special tokens.

    Raises:
        ValueError: if transformers knows no such model type or refuses a field.
    """
    fields = dict(config)
    model_type = fields.pop("model_type", None)
    fields |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    try:
        actor = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"actor config (model_type {model_type!r}): {error}") from error
    _check_plain_head(actor, f"model_type {model_type}")
    return actor


def load_critic(name_or_path: str, *, num_outputs: int = 1, fresh_head: bool = False) -> Critic:
    """Load a critic: the backbone of any decoder with a value head on every token.

    The folder may hold a critic, a reward model (its head is taken over) or a causal language model
    (the head starts at zero, so that V = 0 everywhere).

    Args:
        name_or_path: Folder or hub id.
        num_outputs: K, the outputs of the head.
        fresh_head: Take the backbone alone and start the head at zero.

    Raises:
        ValueError: if there is no such model, or its kind has no token-classification form.
    """
    config = _load(AutoConfig, name_or_path, "model config")
    held = getattr(config, "architectures", None) or [""]
    keep_head = not fresh_head and held[0].endswith(("TokenClassification", "SequenceClassification"))
    if keep_head and config.num_labels != num_outputs:
        raise ValueError(
            f"critic {name_or_path}: its head has {config.num_labels} outputs, "
            f"but the value head of this run needs {num_outputs}"
        )
    model = _load(
        AutoModelForTokenClassification, name_or_path, "critic", num_labels=num_outputs
    )
    critic = Critic(model)
    if not keep_head:
        critic.reset_head()
    return critic


class Critic(nn.Module):
    """A transformers token classifier read as a value function.

    The head runs in float32 whatever the precision of the backbone, and dropout is off: V must be the
    same function when it is fitted and when it is read.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap an `AutoModelForTokenClassification`."""
        super().__init__()
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise ValueError(
                f"critic: {type(model).__name__} keeps its head elsewhere than in `score`; "
                "use a decoder of the Llama, Qwen, Gemma, Mistral or SmolLM kind"
            )
        self.model = model

    @property
    def backbone(self) -> nn.Module:
        """The transformer without the head."""
        return self.model.base_model

    @property
    def head(self) -> nn.Linear:
        """The value head, (H -> K)."""
        head = self.model.score
        assert isinstance(head, nn.Linear)
        return head

    @torch.no_grad()
    def reset_head(self) -> None:
        """Start the head at zero: a fresh critic says 0 rather than something arbitrary."""
        self.head.weight.zero_()
        if self.head.bias is not None:
            self.head.bias.zero_()

    def forward(self, input_ids_BL: Tensor, prompt_lengths_B: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the head's float32 output for the state before each masked token, (N, K)."""
        hidden_NH = response_hidden(self.backbone, input_ids_BL, prompt_lengths_B, mask_BT)
        bias = None if self.head.bias is None else self.head.bias.float()
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return nn.functional.linear(hidden_NH.float(), self.head.weight.float(), bias)


def response_hidden(
    backbone: nn.Module, input_ids_BL: Tensor, prompt_lengths_B: Tensor, mask_BT: Tensor
) -> Tensor:
    """Run a transformer and return the hidden states from which the masked tokens are predicted.

    Args:
        backbone: A transformers base model.
        input_ids_BL: Prompt and response, padded on the right alone.
        prompt_lengths_B: Tokens of each prompt, at least 1.
        mask_BT: True on the response tokens wanted.

    Returns:
        (N, H), in row order: for response token t the state of prompt + tokens before t.
    """
    # The last token predicts nothing. Padding stands on the right, so causal attention needs no mask.
    hidden_BLH = backbone(input_ids=input_ids_BL[:, :-1], use_cache=False).last_hidden_state
    row_N, token_N = mask_BT.nonzero(as_tuple=True)
    return hidden_BLH[row_N, prompt_lengths_B[row_N] - 1 + token_N]


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to zero: importance ratios need the same policy twice."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer: digits one by one, any text without loss.

    Args:
        texts: Samples of the texts to come.
        vocab_size: Upper bound; 256 bytes and the special tokens are always there.

    Returns:
        A fast tokenizer with <pad>, <eos> and the thinking tags as single tokens.
    """
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.add_tokens([THINK_OPEN, THINK_CLOSE])
    return tokenizer


def _load(auto_class: Any, name_or_path: str, what: str, **kwargs: Any) -> Any:
    """Call `from_pretrained` and turn its many failures into one line."""
    path = Path(name_or_path).expanduser()
    if name_or_path.startswith((".", "/", "~")) and not path.is_dir():
        raise ValueError(f"{name_or_path}: no such folder (expected a {what})")
    if auto_class not in (AutoTokenizer, AutoConfig):
        kwargs.setdefault("dtype", torch.float32)
    source = str(path) if path.is_dir() else name_or_path
    if path.is_dir() and (gguf := sorted(path.glob("*.gguf"))) and not (path / "config.json").exists():
        kwargs.setdefault("gguf_file", gguf[0].name)
    reports = logging.getLogger("transformers.modeling_utils")
    level = reports.level
    reports.setLevel(logging.ERROR)  # a value head that starts anew is expected, not a fault
    try:
        return auto_class.from_pretrained(source, **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name_or_path}: cannot load a {what} from here: {reason}") from error
    finally:
        reports.setLevel(level)


def _check_plain_head(actor: PreTrainedModel, name: str) -> None:
    for option, neutral in _UNSUPPORTED_LOGIT_TRANSFORMS.items():
        value = getattr(actor.config, option, neutral)
        if value not in (neutral, None):
            raise ValueError(f"{name}: models with {option}={value} are not supported as actors")
