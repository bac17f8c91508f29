"""Find the package's data files: configs by short name, and documents.

In a checkout they are next to the package, in a wheel within it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from lightning_vcppo.common.suggestions import nearest

PACKAGE = Path(__file__).parents[1]

FRAGMENT_FLAGS = {
    "--data": "data",
    "--model": "model",
    "--model.engine": "engine",
    "--model.lora": "lora",
    "--trainer": "trainer",
    "--trainer.logger": "logger",
}
"""Flags that accept a config fragment, and its directory in `configs/`."""


def shipped_directory(name: str) -> Path:
    """Return a directory of documents or configs, in a checkout or a wheel."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


@cache
def config_names() -> tuple[str, ...]:
    """Return the short names of all configs: `vcppo`, `demo/rl`, `data/aime24`, ..."""
    root = shipped_directory("configs")
    files = (path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    return tuple(sorted(file.removesuffix(".yaml") for file in files))


def find_config(name: str) -> str | None:
    """Return the file of a name: one in the working directory, else a shipped one, else None.

    Args:
        name: A path, or a short name, with or without `.yaml` and `configs/`.
    """
    for here in (name, f"{name}.yaml"):
        if Path(here).is_file():
            return here
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short not in config_names():
        return None
    path = shipped_directory("configs") / f"{short}.yaml"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def resolve_configs(arguments: Iterable[str]) -> list[str]:
    """Replace short names of configs by their files.

    `--config` and the flags of fragments accept them, also as `--config=NAME`.

    Raises:
        ValueError: If a name is neither a file nor a shipped config.
    """
    return list(_resolved(arguments))


def _resolved(arguments: Iterable[str]) -> Iterator[str]:
    flag = ""
    for argument in arguments:
        if argument.startswith("-"):
            flag, equals, value = argument.partition("=")
            yield f"{flag}={_file(flag, value)}" if equals else argument
            flag = "" if equals else flag
        else:
            yield _file(flag, argument)
            flag = ""


def _file(flag: str, value: str) -> str:
    """Return the file of a config's name; any other value unchanged."""
    if flag in ("-c", "--config"):
        directory = ""
        is_name = value != "null" and not set(value) & set(":{}\n")  # else YAML itself, or a URL
    else:
        directory = f"{FRAGMENT_FLAGS.get(flag.replace('.init_args', ''), '-')}/"
        is_name = value.removeprefix("configs/").startswith(directory)
    if not is_name:
        return value
    if file := find_config(value):
        return file
    short = value.removeprefix("configs/").removesuffix(".yaml")
    names = [name for name in config_names() if name.startswith(directory)]
    ends = {name.removeprefix(directory): name for name in names}
    close = nearest(short.removeprefix(directory), ends)
    first = [name for name in names if "/" not in name.removeprefix(directory)]
    hint = f"did you mean {ends[close]}?" if close else f"expected one of {', '.join(first)}"
    raise ValueError(f"{flag}: {value}: no such file, and no config of that name; {hint}")
