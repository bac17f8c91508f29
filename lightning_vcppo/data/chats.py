"""Read chats of a cell: a list, JSON, or Python syntax.

A chat's last user message is the question; the messages before it are its context, which the
prompt keeps; an assistant's message after it is a reply.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any, NamedTuple

from lightning_vcppo.data.problem import Message
from lightning_vcppo.data.texts import InvalidRow, check_text, plain

ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
"""Names of roles in data sets, and those in chat templates."""

_NESTED = re.compile(r"\s*(?:\[\s*[\[{'\"\]0-9-]|\{\s*['\"])")
_LOOKS_LIKE_CHAT = re.compile(r"""\s*\[?\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")


class Chat(NamedTuple):
    """A question with its context and reply.

    Attributes:
        question: The last user message.
        context: The messages before it.
        reply: The assistant's message after it, if there is one.
    """

    question: str
    context: tuple[Message, ...] = ()
    reply: str | None = None


def parsed(value: object) -> object:
    """Return the list or mapping in a text, and any other value unchanged.

    JSON and Python syntax (`str`, the `to_csv` of pandas) are supported.
    """
    value = plain(value)
    if not isinstance(value, str) or not _NESTED.match(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown escapes
            return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return value


def read_chat(value: object) -> Chat | None:
    """Read a question given as text or as chat messages.

    Args:
        value: Text; a message `{"role": ..., "content": ...}` or `{"from": ..., "value": ...}`; a
            list of messages; or any of these as a JSON string or in Python syntax.

    Returns:
        The question, without surrounding space, and its context; None if there is none.

    Raises:
        InvalidRow: If the cell looks like a chat but cannot be read as one, or a text contains
            invalid characters.
    """
    value = plain(value)
    found = parsed(value)
    items = found if isinstance(found, list) else [found]
    messages = [item for item in items if isinstance(item, dict)]
    if not messages or len(messages) < len(items):
        if not isinstance(value, str):
            return None
        if _LOOKS_LIKE_CHAT.match(value):
            raise InvalidRow(
                "the problem is a chat, but neither JSON nor Python syntax; write the rows as "
                "JSON Lines or parquet"
            )
        check_text(value, "the problem")
        return Chat(value.strip()) if value.strip() else None
    return _of_messages([(_role(m), _content(m)) for m in messages])


def _of_messages(turns: list[Message]) -> Chat | None:
    for _, text in turns:
        check_text(text, "the problem")
    users = [place for place, (role, _) in enumerate(turns) if role == "user"]
    place = users[-1] if users else 0
    question = turns[place][1].strip()
    if not question:
        return None
    replies = [text for role, text in turns[place + 1 :] if role == "assistant"]
    context = tuple((role, text) for role, text in turns[:place] if text)
    return Chat(question, context, replies[-1] if replies else None)


def _role(message: dict[str, Any]) -> str:
    role = plain(message.get("role", message.get("from")))
    return ROLES.get(role, role) if isinstance(role, str) else ""


def _content(message: dict[str, Any]) -> str:
    content = plain(message.get("content", message.get("value")))
    if isinstance(content, list):  # the parts of a multimodal message
        parts = [plain(part.get("text")) for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
