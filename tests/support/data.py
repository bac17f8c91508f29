"""Helpers of tests."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import PromptBatch

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(chat_template=None):
    """A tokenizer with one token a byte."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = chat_template
    return fast


def prompts(size):
    problems = [Problem(f"Problem {i}", i % 1000, source=f"a:{i}") for i in range(size)]
    return PromptBatch(problems, [[i] for i in range(size)], list(range(size)))


def write_problems(path, texts):
    rows = [{"problem": text, "answer": i} for i, text in enumerate(texts)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def indices(loader):
    return [batch.indices for batch in loader]
