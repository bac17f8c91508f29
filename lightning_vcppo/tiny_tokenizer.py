"""A tokenizer small enough for a tiny model, trained in a second."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from lightning_vcppo.problems import THINK_CLOSE, THINK_OPEN

PAD, EOS = "<pad>", "<eos>"


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
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=PAD,  # never needed; without a name transformers adds one on loading
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([THINK_OPEN, THINK_CLOSE])
    return tokenizer
