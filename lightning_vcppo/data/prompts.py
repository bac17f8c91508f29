"""Render problems as prompts that a model continues, and tokenize them.

The text depends only on the problem and on settings. Chat templates that write the date get it from
a `Clock` with a fixed date, so a run that is resumed on another day has the same prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from jinja2 import TemplateError
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_vcppo.common.errors import WRONG_FORM, require
from lightning_vcppo.data.problem import THINK_OPEN, Message, Problem
from lightning_vcppo.data.texts import fault_in
from lightning_vcppo.rewards.verifier import INSTRUCTIONS, Style, asked_style, reads

HELD_OUT = "held_out"
"""Name of the evaluation set that belongs to the training problems."""


class PromptBatch:
    """Problems of a data set, with their rendered and tokenized prompts.

    Not a dataclass, because Lightning would walk through it, id by id, to move it to a device.
    """

    def __init__(
        self,
        problems: list[Problem],
        prompt_ids: list[list[int]],
        indices: list[int],
        evaluation_set: str = "",
        following: Callable[[], PromptBatch | None] | None = None,
    ) -> None:
        """Collect a batch.

        Args:
            problems: The problems.
            prompt_ids: Token ids of each prompt, without padding.
            indices: Position of each problem in its data set.
            evaluation_set: Name of the evaluation set that they belong to, if any.
            following: Returns the next training batch, None after the last; None if nobody knows.
        """
        self.problems = problems
        self.prompt_ids = prompt_ids
        self.indices = indices
        self.evaluation_set = evaluation_set
        self._following = following

    def upcoming(self, count: int) -> list[PromptBatch]:
        """Return the next training batches of this process, at most `count`, as far as known."""
        found: list[PromptBatch] = []
        batch: PromptBatch | None = self
        while len(found) < count and batch is not None and batch._following is not None:
            if (batch := batch._following()) is not None:
                found.append(batch)
        return found

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.problems)


INSTRUCTION = INSTRUCTIONS["boxed"]
HASHES = "####"
"""The answer form of GSM8K, which no style of the verifier reads."""


CLOCK = "strftime_now"
"""Name of the function by which chat templates read the clock."""
_SKIPPED = re.compile(r"\s+|/no_think|/think|/system_override")
"""What templates may drop: white space, and the switches that they read."""
_DIRECTIVES = "aAbBcdDeFGhHIjmMpRSTuUVwWxXyYzZ"
_STANDING_CLOCK = (
    "{%- macro strftime_now(pattern) -%}"
    "{%- set of_date = namespace(text=pattern) -%}"
    "{%- for directive, text in date_directives.items() -%}"
    "{%- set of_date.text = of_date.text.replace(directive, text) -%}"
    "{%- endfor -%}"
    "{{ of_date.text }}"
    "{%- endmacro %}{{ '' }}"  # Jinja would drop a line end right behind a block
)
"""Replaces the clock at the start of a template, because transformers passes no functions on."""


class Clock:
    """The clock of chat templates, with a fixed date.

    Attributes:
        date: Date that templates write.
        was_read: Whether a template may have read it.
    """

    def __init__(self, at: date | None = None) -> None:
        """Set the clock.

        Args:
            at: A day; None means today.
        """
        self.date = at or date.today()
        self.was_read = False

    def directives(self) -> dict[str, str]:
        """Return the texts of the directives of `strftime`, those without padding first."""
        midnight = datetime(self.date.year, self.date.month, self.date.day)
        texts = {f"%{name}": midnight.strftime(f"%{name}") for name in _DIRECTIVES}
        bare = {f"%-{name}": texts[f"%{name}"].lstrip("0") or "0" for name in "dHIjmMSy"}
        return bare | texts | {"%%": "%"}


def as_date(text: str | None) -> date | None:
    """Parse a date; None stays None.

    Raises:
        ValueError: If the text is not a date.
    """
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ValueError(f"prompt_date: expected YYYY-MM-DD, got {text!r}") from None


def chat_template_text(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> str | None:
    """Return the template of prompts; None if they are plain.

    Args:
        tokenizer: Tokenizer with one template, several by name, or none.
        chat_template: "plain"; "chat", the only template or the one named default; "auto", the
            same if there is any; or the name of a template.

    Raises:
        ValueError: If there is no such template.
    """
    own = tokenizer.chat_template
    templates = own if isinstance(own, dict) else {"default": own} if own else {}
    names = ", ".join(templates)
    if chat_template == "plain" or (chat_template == "auto" and not templates):
        return None
    if chat_template not in ("auto", "chat"):
        require(
            chat_template in templates,
            f"chat_template: expected auto, chat, plain or a name of the tokenizer's templates "
            f"({names or 'it has none'}), got {chat_template!r}",
        )
        return str(templates[chat_template])
    require(bool(templates), "chat_template: the tokenizer has none; expected plain or auto")
    if len(templates) == 1:
        return str(next(iter(templates.values())))
    require(
        "default" in templates,
        f"chat_template: the tokenizer has several, none of which is called default; name one of "
        f"{names}",
    )
    return str(templates["default"])


def render_prompt(
    problem: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: Sequence[Message] = (),
    chat_template: str = "auto",
    instruction: str | None = None,
    style: Style | None = None,
    system_prompt: str | None = None,
    clock: Clock | None = None,
) -> str:
    r"""Return the text that a model continues.

    Chat: the tokenizer's template around the context, the problem and the instruction, up to where
    the assistant's turn begins. The instruction is added unless one of them already asks for a form
    that the reward reads.

    Plain: context and problem, a line each, and an opening thinking tag, `"{problem}\n<think>\n"`;
    the response is "...</think>\n\boxed{123}" by training, not by instruction. An instruction and a
    system prompt are added only if they are given: as lines after the problem and before all.

    Args:
        problem: The question.
        tokenizer: Tokenizer with the chat template.
        context: System message and earlier turns.
        chat_template: "chat", "plain", "auto" or a name, see `chat_template_text`.
        instruction: How to answer; None takes that of the style in a chat, and like "" adds nothing
            to a plain prompt.
        style: Style of the reward; None, for a user's own function, instructs as "boxed".
        system_prompt: The system message if the context has none; None leaves it to the template.
        clock: Date of templates; None means today.

    Raises:
        ValueError: If the tokenizer has no such template, or the template refuses the messages.
    """
    template = chat_template_text(tokenizer, chat_template)
    clock = clock or Clock()
    messages = [*context]
    if system_prompt is not None and not any(role == "system" for role, _ in context):
        messages.insert(0, ("system", system_prompt))
    if instruction is None:  # a base model continues a text as it was trained to
        instruction = "" if template is None else INSTRUCTIONS[style or "boxed"]
    if instruction and not _asks_itself([text for _, text in messages] + [problem], style):
        problem = f"{problem}\n{instruction}"
    messages.append(("user", problem))
    if template is None:
        return "\n".join([*(text for _, text in messages), THINK_OPEN, ""])
    return fill_template(tokenizer, template, messages, clock)


def fill_template(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    clock: Clock,
) -> str:
    """Return a chat up to the start of the assistant's turn.

    Args:
        tokenizer: Tokenizer that fills the template.
        template: Template from `chat_template_text`.
        messages: Role and text of each turn.
        clock: Date of templates.

    Raises:
        ValueError: If the template refuses the messages.
    """
    if CLOCK in template:
        template, clock.was_read = _STANDING_CLOCK + template, True
    try:
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            date_directives=clock.directives() if clock.was_read else {},
        )
    # A template may do anything with the messages.
    except (TemplateError, *WRONG_FORM) as error:
        raise ValueError(f"the tokenizer's chat template refuses the prompt: {error}") from error
    _check_holds(str(text), messages)
    return str(text)


def _check_holds(text: str, messages: Sequence[Message]) -> None:
    """Refuse a prompt without the text of a message, apart from white space and switches.

    Earlier turns of the assistant are not checked, because templates drop their thinking.

    Raises:
        ValueError: If a template has dropped or altered the text.
    """
    rendered = _SKIPPED.sub("", text)
    for role, content in messages:
        require(
            role == "assistant" or _SKIPPED.sub("", content) in rendered,
            f"the tokenizer's chat template drops or alters text of the {role} message "
            f"{content.strip()[:40]!r}; choose another with --data.chat_template",
        )


def _asks_itself(texts: list[str], style: Style | None) -> bool:
    """Return whether a text asks for a form of answer that a style reads."""
    return any((asked := asked_style(text)) and reads(style or "boxed", asked) for text in texts)


@dataclass(frozen=True)
class PromptFormat:
    """The format of prompts, see `render_prompt`.

    Attributes:
        chat_template: "chat", "plain", "auto" or a template's name.
        instruction: How to answer.
        system_prompt: The chat's system message.
    """

    chat_template: str = "auto"
    instruction: str | None = None
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        """Refuse unintended characters: YAML interprets a backslash in double quotes."""
        for name in ("instruction", "system_prompt"):
            fault = fault_in(getattr(self, name) or "")
            require(fault is None, f"{name}: holds {fault}")

    def token_ids(
        self,
        problems: Sequence[Problem],
        tokenizer: PreTrainedTokenizerBase,
        style: Style | None,
        clock: Clock,
    ) -> list[list[int]]:
        """Return the token ids of the prompts of problems.

        Args:
            problems: Problems.
            tokenizer: Tokenizer of the model that answers them.
            style: Style of its reward.
            clock: Date of templates.

        Raises:
            ValueError: If the tokenizer has no such template, or the template refuses the messages.
        """
        was_read = clock.was_read
        texts = [
            render_prompt(
                problem.problem,
                tokenizer,
                context=problem.context,
                chat_template=self.chat_template,
                instruction=self.instruction,
                style=style,
                system_prompt=self.system_prompt,
                clock=clock,
            )
            for problem in problems
        ]
        if clock.was_read and not was_read:
            rank_zero_info(
                f"data: the chat template writes the date, {clock.date}; a resumed run keeps it, "
                "--data.prompt_date sets it"
            )
        is_chat = chat_template_text(tokenizer, self.chat_template) is not None
        return tokenise_prompts(texts, tokenizer, is_chat=is_chat)


def warn_of_unread_forms(
    problems: Sequence[Problem], style: Style | None, evaluation_set: str = ""
) -> None:
    """Warn of problems that ask for a form of answer that the reward does not read.

    Args:
        problems: Problems of a set.
        style: Style of the reward; None means unknown.
        evaluation_set: Name of the set, if it is an evaluation set.
    """
    if style is None:
        return
    asking = [(form, problem) for problem in problems if (form := unread_form(problem, style))]
    if asking:
        form, first = asking[0]
        of_set = f" of {evaluation_set}" if evaluation_set else ""
        rank_zero_warn(
            f"data: {len(asking)} of {len(problems)} problems{of_set} ask for {form} "
            f"({first.source}), which --model.reward={style} does not read: a response that does "
            "as they ask is wrong; choose another reward or other problems"
        )


def unread_form(problem: Problem, style: Style) -> str | None:
    """Return the form of answer that a problem asks for, if a style does not read it.

    A response that follows such a problem is graded wrong.
    """
    texts = [problem.problem, *(text for role, text in problem.context if role != "assistant")]
    if style == "last_number" or _asks_itself(texts, style):
        return None
    for text in texts:
        if asked := asked_style(text):
            return {"boxed": r"\boxed{}"}.get(asked, "Answer:")
    return HASHES if style != "lenient" and any(HASHES in text for text in texts) else None


def tokenise_prompts(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, *, is_chat: bool
) -> list[list[int]]:
    """Return the token ids of prompts, so that a model can continue them.

    Special tokens that a tokenizer adds in front are kept; those that it appends (`add_eos_token`,
    a separator) are removed, because they end a text.

    Args:
        texts: Rendered prompts.
        tokenizer: Tokenizer.
        is_chat: Whether a template has already added the special tokens in front.
    """
    if not texts:
        return []
    special = {
        i: str(token)
        for i, token in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        if i != tokenizer.unk_token_id  # which may stand for the text's own end
    }
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=not is_chat).input_ids
    for ids, text in zip(rows, texts, strict=True):
        while ids and ids[-1] in special and not text.rstrip().endswith(special[ids[-1]]):
            ids.pop()
    return rows
