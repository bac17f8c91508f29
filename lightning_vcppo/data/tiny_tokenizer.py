"""Train a tokenizer that is small enough for a tiny model, in about a second."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from lightning_vcppo.data.generator import ProblemSettings, generate_problems
from lightning_vcppo.data.problem import THINK_CLOSE, THINK_OPEN

FAMILIES_OF_THE_TOKENIZER = ("sum", "product", "power", "recurrence", "count")
"""Fixed families of its texts: another family would change the token ids of all tiny models."""


def default_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Train the tiny model's tokenizer, always on the same generated problems."""
    return _wrap(Tokenizer.from_str(_default_tokens(vocab_size)))


@cache
def _default_tokens(vocab_size: int) -> str:
    """Return the trained tokenizer as text, of which each caller makes its own object."""
    settings = ProblemSettings(
        FAMILIES_OF_THE_TOKENIZER, max_steps=6, rough_rate=0.2, check_rate=0.2
    )
    problems = generate_problems(2000, settings, seed=0)
    texts = (f"{p.problem}\n{THINK_OPEN}\n{p.solution}" for p in problems)
    return _train(texts, vocab_size).to_str()


PAD, EOS = "<pad>", "<eos>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer: digits one by one, any text without loss.

    Args:
        texts: Samples of the texts to tokenize.
        vocab_size: Upper bound; 256 bytes and the special tokens are always included.

    Returns:
        A fast tokenizer with <pad>, <eos> and the thinking tags as single tokens.
    """
    return _wrap(_train(texts, vocab_size))


def _train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
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
    return bpe


def _wrap(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=PAD,  # never needed; without a name transformers adds one on loading
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([THINK_OPEN, THINK_CLOSE])
    return tokenizer
