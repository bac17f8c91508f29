"""Define the parser of the command line, which reports a mistake in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any, NoReturn, Union, get_args

import yaml
from jsonargparse import ArgumentParser, Namespace, auto_cli
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.enums import StrEnum
from typing_extensions import override

from lightning_vcppo.cli.config_keys import read_keys
from lightning_vcppo.common.errors import describe, explain, fail
from lightning_vcppo.common.suggestions import nearest_flag

CLASSES: dict[str, type] = {
    "--model": LightningModule,
    "--trainer.callbacks": Callback,
    "--trainer.logger": Logger,
}
"""Flags that name a class, and its base class."""

# Lightning's Timer has a default that YAML cannot write.
yaml.SafeDumper.add_multi_representer(
    StrEnum, lambda dumper, each: dumper.represent_str(each.value)
)


class OneLineParser(ArgumentParser):
    """A parser that prints one line for a mistake, without the usage."""

    _reading = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept only complete flags, because a new flag may make an abbreviation ambiguous."""
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program, or raise if jsonargparse only tries an alternative."""
        explained = self._reading + explain(message, self._flags(), _class_names)
        if not self.exit_on_error:
            super().error(explained, ex)
        fail(explained, ex)

    @override
    def parse_args(  # type: ignore[override]  # argparse's has overloads
        self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any
    ) -> Namespace:
        """Parse arguments; jsonargparse passes null to the parser of a class as the text None."""
        if not self.exit_on_error and args is not None:
            args = [f"{text[:-4]}null" if text.endswith("=None") else text for text in args]
        parsed: Namespace = super().parse_args(args, *rest, **kwargs)
        return parsed

    def _flags(self) -> Iterator[str]:
        """Yield the flags of this parser and of its subcommands."""
        parsers = [self]
        if self._subcommands_action:
            parsers += self._subcommands_action.choices.values()
        for parser in parsers:
            yield from (flag for flag in parser._option_string_actions if flag.startswith("--"))


class VCPPOArgumentParser(OneLineParser, LightningArgumentParser):
    """A parser that names the config in which a mistake is, and reads 1 as a whole number."""

    @override
    def add_lightning_class_args(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add the arguments of a class; those that may be int or float are read as int first.

        For `int | float` Python returns `float | int` if any library has asked for that before.
        Then `limit_train_batches=1`, one batch, would be read as 1.0, all batches.
        """
        added: list[str] = super().add_lightning_class_args(*args, **kwargs)
        for action in self._actions:
            types = get_args(getattr(action, "_typehint", None))
            if int in types and float in types:
                ordered = tuple(sorted(types, key=lambda kind: kind is float))
                vars(action)["_typehint"] = Union[ordered]  # noqa: UP007 (of a tuple)
        return added

    @override
    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Read a config; messages about mistakes name it."""
        try:
            keys = read_keys(os.fspath(cfg_path), str(cfg_path))
        except (ValueError, OSError) as error:
            self.error(describe(error) or str(error), error)
        for key, line in keys.items():
            if not self._takes(key):
                close = nearest_flag(f"--{key}", self._flags())
                hint = f"; did you mean {close.removeprefix('--')}?" if close else ""
                self.error(f"{cfg_path}:{line}: {key}: no such option{hint}")
        self._reading = f"{cfg_path}: "
        config: Namespace = super().parse_path(cfg_path, *args, **kwargs)
        self._reading = ""
        return config

    def _takes(self, key: str) -> bool:
        """Return whether a key is an option, or a parent or child of one."""
        names = {flag.removeprefix("--") for flag in self._flags() if not flag.endswith(".help")}
        above = {name.rpartition(".")[0] for name in names}
        return any(
            f"{name}.".startswith(f"{key}.") or (key.startswith(f"{name}.") and name not in above)
            for name in names
        )


def _class_names(flag: str) -> Iterator[str]:
    """Yield the names of the classes that a flag accepts."""
    waiting = [CLASSES[flag]] if flag in CLASSES else []
    while waiting:
        classes: list[type] = waiting.pop().__subclasses__()
        yield from (c.__name__ for c in classes if not c.__name__.startswith("_"))
        waiting += classes


def run_function(function: Callable[..., Any], name: str, arguments: Sequence[str]) -> None:
    """Run a function as a command: its parameters are the flags.

    `--dry_run` without a value means `--dry_run=true`.

    Args:
        function: Function to call.
        name: Name of the command.
        arguments: Arguments after the command's name.
    """
    parameters = signature(function).parameters.values()
    switches = {f"--{p.name}" for p in parameters if isinstance(p.default, bool)}
    auto_cli(
        function,
        args=[f"{text}=true" if text in switches else text for text in arguments],
        as_positional=name != "export",  # which has --ckpt_path, like `fit`
        parser_class=OneLineParser,
        prog=f"vcppo {name}",
    )
