"""Call a reward function with what its parameters name.

1. `response`, `answer`, `problem`, `finished` and `response_ids` are built in. Any other parameter
   is a column of the data; `**columns` gets all columns.
2. A cell without a value is the parameter's default, or None if it has none.
3. A function with a parameter `responses` scores many responses in one call. It gets lists, in
   `responses`, `answers`, `problems` and under the same names as above, and returns a list.
4. `async def` functions of single responses wait for `AT_ONCE` answers at a time.
5. A function of two values with other names, `f(text, gold)`, gets response and answer by place.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from lightning_vcppo.common import places
from lightning_vcppo.common.suggestions import did_you_mean

BUILT_IN = ("response", "answer", "problem", "finished", "response_ids")
SINGULAR = {"responses": "response", "answers": "answer", "problems": "problem"}
"""Names of lists in functions of many responses, and of single values in others."""
RESERVED = {*BUILT_IN, *SINGULAR}
"""Names that never mean a column."""
AT_ONCE = 64
"""Number of calls of an `async def` function that wait at the same time."""
LISTED = 12
"""Largest number of columns that a message names."""

Row = Mapping[str, Any]
"""What is known about a response: built-in values and columns, by name."""


class Reads(NamedTuple):
    """What a reward function reads of the rows of a data set.

    Attributes:
        function: Name of the function, for messages.
        columns: Columns that must exist.
        optional: Columns that may exist.
        everything: Whether it gets all columns.
        answer: Whether it reads the answer, which every row must then have.
    """

    function: str = ""
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    everything: bool = False
    answer: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns that it names."""
        return (*self.columns, *self.optional)

    def check(self, columns: Sequence[str], place: str) -> None:
        """Check that the columns exist.

        Args:
            columns: Names of those that do, in any letter case.
            place: Name of the data, for the message.

        Raises:
            ValueError: If one is missing.
        """
        there = {name.lower() for name in columns}
        for name in self.columns:
            if name.lower() not in there:
                more = ", ..." if len(columns) > LISTED else ""
                listed = f"it has {', '.join(columns[:LISTED])}{more}" if columns else "it has none"
                raise ValueError(
                    f"reward: {self.function} reads {name!r}, which is no column of {place} "
                    f"({listed}){did_you_mean(name, columns)}; with a default the parameter may be "
                    "missing"
                )


class Signature:
    """The parameters of a reward function.

    Attributes:
        name: Name of the function, for messages.
        is_batch: Whether it scores many responses in one call.
        reads: The columns that it reads.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        """Read the parameters.

        Args:
            function: The reward function.
            name: Its name.

        Raises:
            ValueError: If it is not a function of a response and of named values.
        """
        self.name, self._function = name, function
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError) as error:
            raise _refused(str(error), name) from error
        required = [each for each in parameters.values() if _is_required(each)]
        if len(required) == 2 and not RESERVED & parameters.keys():
            self._function = lambda response, answer: function(response, answer)
            parameters = inspect.signature(self._function).parameters
        self.is_batch = "responses" in parameters
        self._takes_all = False
        self._defaults: dict[str, Any] = {}  # by the singular of each name
        optional = []
        for key, parameter in parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                self._takes_all = True
            elif parameter.kind is parameter.VAR_POSITIONAL:
                continue
            elif parameter.kind is parameter.POSITIONAL_ONLY:
                raise _refused(f"{key} cannot be passed by name", name)
            else:
                singular = self._singular(key)
                has_default = parameter.default is not parameter.empty
                self._defaults[singular] = parameter.default if has_default else None
                if has_default:
                    optional.append(singular)
        if "response" not in self._defaults:
            raise _refused("no parameter is named response or responses", name)
        columns = [key for key in self._defaults if key not in BUILT_IN]
        self._needed = [key for key in self._defaults if key not in optional]
        self.reads = Reads(
            name,
            tuple(key for key in columns if key not in optional),
            tuple(key for key in columns if key in optional),
            self._takes_all,
            "answer" in self._defaults,
        )
        called = (function, type(function).__call__)  # of an object, the method
        self._is_async = any(map(inspect.iscoroutinefunction, called))

    def _singular(self, key: str) -> str:
        """Return the name of a single value, and refuse one of the other kind of function."""
        others = {plural: singular for singular, plural in SINGULAR.items()}
        wanted = others if self.is_batch else SINGULAR
        if key in wanted:
            gets = "lists" if self.is_batch else "single values"
            raise _refused(f"it gets {gets}, so {key} is named {wanted[key]}", self.name)
        return SINGULAR.get(key, key)

    def call(self, rows: Sequence[Row]) -> list[Any]:
        """Return what the function returns for each response.

        Raises:
            ValueError: If it reads what no row has, or a function of many responses does not return
                one item for each.
        """
        for name in self._needed:
            if not any(name in row for row in rows):
                known = [key for key in rows[0] if key not in ("response", "answer")]
                there = f"they have {', '.join(known[:LISTED])}" if known else "they have no more"
                raise ValueError(
                    f"reward: {self.name} reads {name!r}, which these responses do not have; "
                    f"besides response and answer {there}"
                )
        arguments = [self._arguments(row) for row in rows]
        if self.is_batch:
            return self._call_once(arguments)
        if self._is_async:
            left = asyncio.Semaphore(AT_ONCE)
            return _wait_for([_call_when(left, self._function, each) for each in arguments])
        returned = []
        for each in arguments:
            places.move_on()
            returned.append(self._function(**each))
        return returned

    def _arguments(self, row: Row) -> dict[str, Any]:
        """Return the arguments for one response."""
        arguments = {} if not self._takes_all else {k: row[k] for k in row if k not in RESERVED}
        for name, default in self._defaults.items():
            value = row.get(name)
            arguments[name] = default if value is None else value
        return arguments

    def _call_once(self, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        plural = {singular: name for name, singular in SINGULAR.items()}
        names = dict.fromkeys(name for each in arguments for name in each)
        lists = {plural.get(n, n): [each.get(n) for each in arguments] for n in names}
        places.move_on()
        returned = self._function(**lists)
        if self._is_async:
            (returned,) = _wait_for([returned])
        try:
            scores = list(returned)
        except TypeError:
            scores = None
        if scores is None or len(scores) != len(arguments):
            got = f"a {type(returned).__name__}" if scores is None else f"{len(scores)}"
            raise ValueError(
                f"reward: expected {len(arguments)} rewards from {self.name}, one for each "
                f"response; got {got}"
            )
        return scores


def _is_required(parameter: inspect.Parameter) -> bool:
    given_by_name = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY)
    return parameter.default is parameter.empty and parameter.kind not in given_by_name


def _refused(reason: str, name: str) -> ValueError:
    return ValueError(f"reward: not an f(response, answer): {reason}; got {name}")


# Functions that wait ------------------------------------------------------------------------------


async def _call_when(
    left: asyncio.Semaphore, function: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]
) -> Any:
    async with left:
        return await function(**arguments)


def _wait_for(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return the results of coroutines; the first error ends all.

    They run in one event loop, so that a client keeps its connections from call to call. The loop
    has its own thread, because a notebook's main thread is inside another loop.
    """
    loop = _event_loop(os.getpid())
    futures = [asyncio.run_coroutine_threadsafe(each, loop) for each in coroutines]
    results = []
    try:
        for future in futures:
            places.move_on()
            results.append(future.result())
    finally:
        for future in futures:
            future.cancel()
    return results


@cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop of a process: a fork lacks the thread of its parent's."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop
