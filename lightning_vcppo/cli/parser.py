"""The parser of the command line: a mistake ends in one line that names it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, auto_cli
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from typing_extensions import override

from lightning_vcppo.cli.config_keys import read_keys
from lightning_vcppo.common.errors import describe, explain, fail
from lightning_vcppo.common.suggestions import nearest_flag

CLASSES: dict[str, type] = {
    "--model": LightningModule,
    "--trainer.callbacks": Callback,
    "--trainer.logger": Logger,
}
"""Flags that name a class, and of which kind."""


class OneLineParser(ArgumentParser):
    """Answers a mistake with one line instead of a page of usage."""

    _reading = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take flags by their whole names: shortened ones become others' with the next release."""
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program, or raise where jsonargparse only tries something out."""
        explained = self._reading + explain(message, self._flags(), _class_names)
        if not self.exit_on_error:
            super().error(explained, ex)
        fail(explained, ex)

    @override
    def parse_args(  # type: ignore[override]  # argparse's has overloads
        self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any
    ) -> Namespace:
        """Read arguments; jsonargparse hands null on to the parser of a class as the text None."""
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
    """Says in which config a mistake is."""

    @override
    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Read a config; what is wrong in there is said with its name."""
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
        """Return whether a key is an option, above one or within one."""
        names = {flag.removeprefix("--") for flag in self._flags() if not flag.endswith(".help")}
        above = {name.rpartition(".")[0] for name in names}
        return any(
            f"{name}.".startswith(f"{key}.") or (key.startswith(f"{name}.") and name not in above)
            for name in names
        )


def _class_names(flag: str) -> Iterator[str]:
    """Yield the names of the classes that a flag may name."""
    waiting = [CLASSES[flag]] if flag in CLASSES else []
    while waiting:
        classes: list[type] = waiting.pop().__subclasses__()
        yield from (c.__name__ for c in classes if not c.__name__.startswith("_"))
        waiting += classes


def run_function(function: Callable[..., Any], name: str, arguments: Sequence[str]) -> None:
    """Run a function as a command: its parameters are the flags.

    `--dry_run` alone is `--dry_run=true`.

    Args:
        function: To be called.
        name: Of the command.
        arguments: What follows the command.
    """
    parameters = signature(function).parameters.values()
    switches = {f"--{p.name}" for p in parameters if isinstance(p.default, bool)}
    auto_cli(
        function,
        args=[f"{text}=true" if text in switches else text for text in arguments],
        as_positional=name != "export",  # which says --ckpt_path, as `fit` does
        parser_class=OneLineParser,
        prog=f"vcppo {name}",
    )
