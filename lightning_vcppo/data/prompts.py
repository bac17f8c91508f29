"""How a problem is put to a model: the text that it is asked to continue."""

from __future__ import annotations

from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lightning_vcppo.common.errors import require
from lightning_vcppo.data.problem import THINK_OPEN, Problem

HELD_OUT = "held_out"
"""Name of the evaluation set that comes with the training problems."""


class PromptBatch:
    """Problems of a data set, with their rendered and tokenised prompts.

    An ordinary class: Lightning would walk through a dataclass, id by id, to move it to a device.
    """

    def __init__(
        self,
        problems: list[Problem],
        prompt_ids: list[list[int]],
        indices: list[int],
        evaluation_set: str = "",
    ) -> None:
        """Collect a batch.

        Args:
            problems: The problems.
            prompt_ids: Token ids of each prompt, without padding.
            indices: Position of each problem in its data set.
            evaluation_set: Name of the evaluation set that they belong to, if any.
        """
        self.problems = problems
        self.prompt_ids = prompt_ids
        self.indices = indices
        self.evaluation_set = evaluation_set

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.problems)


INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."

Template = Literal["auto", "chat", "plain"]


def uses_chat(tokenizer: PreTrainedTokenizerBase, chat_template: Template) -> bool:
    """Tell whether prompts follow the tokenizer's chat template.

    Raises:
        ValueError: They should, but it has none.
    """
    has_template = bool(tokenizer.chat_template)
    require(
        has_template or chat_template != "chat",
        "chat_template: the tokenizer has none; expected plain or auto",
    )
    return has_template and chat_template != "plain"


def render_prompt(
    problem: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: Template = "auto",
    instruction: str = INSTRUCTION,
    system_prompt: str | None = None,
) -> str:
    r"""Write the text that a model is asked to continue.

    Chat: the tokenizer's template around the problem and the instruction, which is added unless the
    problem speaks of a box itself, up to where the assistant's turn begins.

    Plain: the problem and an opening thinking tag, `"{problem}\n<think>\n"`; the response is
    "...</think>\n\boxed{123}" by training, not by instruction.

    Args:
        problem: The question.
        tokenizer: Has the chat template.
        chat_template: "chat", "plain", or "auto" for a chat if the tokenizer has a template.
        instruction: How to answer; "" adds nothing.
        system_prompt: The chat's system message; None leaves it to the template.

    Raises:
        ValueError: The tokenizer has no chat template, or that refuses the messages.
    """
    if not uses_chat(tokenizer, chat_template):
        return f"{problem}\n{THINK_OPEN}\n"
    asks = not instruction or r"\boxed" in problem
    messages = [{"role": "user", "content": problem if asks else f"{problem}\n{instruction}"}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the prompt: {error}") from error
    return str(text)
