"""Read questions with choices: join choices to the question, and find the answer's letter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from lightning_vcppo.data.chats import parsed
from lightning_vcppo.data.texts import InvalidRow, check_text, plain

CHOICE_FIELDS = ("choices", "options")
_LABELLED = re.compile(r"\s*\(?([A-Z])\s*[).:]\s*(.*)", re.DOTALL)


def read_choices(value: object) -> dict[str, str]:
    """Return the choices of a cell by their letters; empty if there are none.

    Args:
        value: A list of texts, with ("A) 21") or without letters; a mapping of
            letters to texts; a mapping of the lists `text` and `label`; or these as JSON.

    Raises:
        InvalidRow: If a choice contains invalid characters.
    """
    found = parsed(value)
    labels: Sequence[object] = ascii_uppercase
    if isinstance(found, dict) and isinstance(found.get("text"), list):
        labels, found = found.get("label") or ascii_uppercase, found["text"]
    elif isinstance(found, dict):
        filled = {key: text for key, text in found.items() if text is not None}
        labels, found = [*filled], [*filled.values()]
    if not isinstance(found, list) or not 2 <= len(found) <= len(labels):
        return {}
    cells = [plain(cell) for cell in found]
    if any(isinstance(cell, (list, dict)) or cell is None for cell in cells):
        return {}
    texts = [str(cell) for cell in cells]
    for text in texts:
        check_text(text, "a choice")  # before a leading form feed is stripped
    texts = [text.strip() for text in texts]
    own = [_LABELLED.fullmatch(text) for text in texts]
    if all(own) and [match[1] for match in own if match] == list(ascii_uppercase[: len(own)]):
        return {match[1]: match[2].strip() for match in own if match}
    return {str(label): text for label, text in zip(labels, texts, strict=False)}


def join_choices(question: str, choices: dict[str, str]) -> str:
    """Return a question with its choices, one per line, unless it contains them already."""
    if all(text in question for text in choices.values()):
        return question
    listed = "\n".join(f"{label}. {text}" for label, text in choices.items())
    return f"{question}\n\n{listed}"


def choice_answers(value: object, choices: dict[str, str]) -> tuple[str, ...]:
    """Return the letter of the correct choice, and its text if no other choice has it.

    Args:
        value: A letter, the text of a choice, or its position, counted from 0.
        choices: Texts by letters.

    Raises:
        InvalidRow: If it is not a choice.
    """
    labels = list(choices)
    letter: str | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        letter = labels[value] if 0 <= value < len(labels) else None
    elif isinstance(value, str):
        text = value.strip()
        bare = text.strip("().: ")
        holders = [label for label, choice in choices.items() if choice == text]
        letter = bare if bare in choices else holders[0] if len(holders) == 1 else None
    if letter is None:
        raise InvalidRow(f"expected one of the choices {', '.join(labels)}, got {value!r:.60}")
    content = choices[letter]
    others = [text for label, text in choices.items() if label != letter]
    if not content or content in choices or content in others:
        return (letter,)
    return letter, content
