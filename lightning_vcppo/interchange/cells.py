"""Parse the cells of a dump: rewards, texts, chats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from lightning_vcppo.data.cell_types import finite, shown
from lightning_vcppo.data.chats import parsed
from lightning_vcppo.data.texts import InvalidRow

Prompt: TypeAlias = str | list[dict[str, str]]

CUT_REASONS = {"length", "max_tokens", "max_length", "max_output_tokens", "max_total_tokens"}
"""Finish reasons by which engines mark a truncated response."""


def number(value: object, name: str) -> float:
    """Return a reward, given as a number, a truth value, or a list of token rewards to sum.

    Raises:
        InvalidRow: If the value is none of these, or not finite within float32.
    """
    if isinstance(value, list) and value and all(isinstance(v, (int, float)) for v in value):
        value = sum(finite(v, name) for v in value)
    return finite(value, name)


def text(value: object, name: str) -> str:
    """Return a text.

    Raises:
        InvalidRow: If the value is not a text.
    """
    if not isinstance(value, str):
        raise InvalidRow(f"{name}: expected text, got {type(value).__name__}")
    return value


def prompt(value: object, name: str) -> Prompt:
    """Return a text or the messages of a chat, given as a list or as JSON.

    Raises:
        InvalidRow: If the value is neither.
    """
    found = parsed(value)
    is_chat = isinstance(found, list) and found and isinstance(found[0], dict)
    return messages(found, name) if is_chat else text(value, name)


def question(prompt: Prompt) -> str:
    """Return the last message of the user, or the complete prompt."""
    if isinstance(prompt, str):
        return prompt
    asked = [message["content"] for message in prompt if message["role"] == "user"]
    return asked[-1] if asked else prompt[-1]["content"] if prompt else ""


def reply(value: object, name: str) -> str:
    """Return a response, given as a text or as a chat with one message of the assistant.

    Raises:
        InvalidRow: If the value is neither, or has several turns.
    """
    found = parsed(value)
    if not (isinstance(found, list) and found and isinstance(found[0], dict)):
        return text(value, name)
    turns = messages(found, name)
    if len(turns) > 1:
        raise InvalidRow(f"{name}: the response has {len(turns)} turns; one is expected")
    return turns[0]["content"]


def messages(value: object, name: str) -> list[dict[str, str]]:
    """Return messages with role and content as texts.

    Raises:
        InvalidRow: If the value is not a list of messages.
    """
    if not (isinstance(value, list) and value and all(isinstance(m, dict) for m in value)):
        raise InvalidRow(f"{name}: expected messages with role and content")
    return [{"role": str(m.get("role", "")), "content": content(m)} for m in value]


def content(message: Mapping[str, Any]) -> str:
    """Return the text of a message, with the thinking that some trainers store separately."""
    found = message.get("content") or ""
    if isinstance(found, list):
        found = "".join(str(part.get("text", "")) for part in found if isinstance(part, dict))
    thinking = message.get("reasoning_content")
    return f"<think>{thinking}</think>{found}" if thinking else str(found)


def ended(reason: object) -> bool | None:
    """Return whether a response ended by itself; None if no reason is given."""
    return None if not isinstance(reason, str) else reason not in CUT_REASONS


def as_name(value: object) -> str | None:
    """Return the name of a prompt as text; None if there is none."""
    return None if value is None else str(value)


def step(value: object) -> int | None:
    """Return a training step, which TRL writes as text; None if there is none.

    Raises:
        InvalidRow: If the value is not a whole number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):  # a gap in a table
        return None
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not (found.is_integer() and abs(found) < 2**53):
        raise InvalidRow(f"step: expected a whole number, got {shown(value)}")
    return int(found)


def only(value: Any) -> Any:
    """Return the only item of a batch of one; other values are unchanged."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
