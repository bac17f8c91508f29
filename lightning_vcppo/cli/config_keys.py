"""Find mistakes in a config before its values are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml


def read_keys(path: str, name: str) -> dict[str, int]:
    """Return the keys of a config, nested ones with dots, and their lines.

    Args:
        path: Path of the config.
        name: Its name in messages.

    Raises:
        ValueError: If it is not YAML in UTF-8, not a mapping, or has a key twice; the message names
            file and line.
        OSError: If it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: expected YAML as UTF-8 text") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        place = f"{name}:{error.problem_mark.line + 1}" if error.problem_mark else name
        raise ValueError(f"{place}: broken YAML, {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: broken YAML, {str(error).splitlines()[0]}") from None
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else "a list" if root.tag.endswith("seq") else "a value"
        raise ValueError(f"{name}: expected options as `name: value`, found {found}")
    keys: dict[str, int] = {}
    for key, line in _keys(root, "", set()):
        if key in keys:
            raise ValueError(f"{name}:{line}: duplicate key {key}, first in line {keys[key]}")
        keys[key] = line
    return keys


def _keys(node: yaml.MappingNode, above: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Yield keys and lines; skip a mapping that an alias repeats."""
    seen.add(id(node))
    for name, value in node.value:
        key = f"{above}{name.value}"
        yield key, name.start_mark.line + 1
        if isinstance(value, yaml.MappingNode) and id(value) not in seen:
            yield from _keys(value, f"{key}.", seen)
