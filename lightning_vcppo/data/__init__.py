"""Read or generate problems, and turn them into batches of token ids."""

from typing import TYPE_CHECKING

from lightning_vcppo.common.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_vcppo.data.answers import parse_answer
    from lightning_vcppo.data.datamodule import AIMEDataModule
    from lightning_vcppo.data.generator import ProblemSettings, generate_problems
    from lightning_vcppo.data.problem import Problem
    from lightning_vcppo.data.prompts import PromptBatch, render_prompt
    from lightning_vcppo.data.sources import load_problems
    from lightning_vcppo.data.tiny_tokenizer import default_tokenizer

__all__ = [
    "AIMEDataModule",
    "Problem",
    "ProblemSettings",
    "PromptBatch",
    "default_tokenizer",
    "generate_problems",
    "load_problems",
    "parse_answer",
    "render_prompt",
]

_HOME = {
    "AIMEDataModule": "datamodule",
    "Problem": "problem",
    "ProblemSettings": "generator",
    "PromptBatch": "prompts",
    "default_tokenizer": "tiny_tokenizer",
    "generate_problems": "generator",
    "load_problems": "sources",
    "parse_answer": "answers",
    "render_prompt": "prompts",
}

__getattr__ = lazy_exports(__name__, _HOME)
