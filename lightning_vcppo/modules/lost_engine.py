"""End all ranks of a run together when one of them has lost its sampling servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning_vcppo.common.errors import EngineLostError
from lightning_vcppo.settings import EngineSettings


@contextmanager
def together(engine: EngineSettings, agree: Callable[[int], int]) -> Iterator[None]:
    """Raise on every rank if the body has lost its servers on one; called on every rank.

    So they can save a checkpoint, which needs all of them.

    Args:
        engine: Only engines that can be lost cost an exchange.
        agree: Returns the largest of one number a rank.

    Raises:
        EngineLostError: If a rank has no server that answers.
    """
    lost: EngineLostError | None = None
    try:
        yield
    except EngineLostError as error:
        lost = error
    if engine.name == "vllm_server" and agree(int(lost is not None)):
        raise lost or EngineLostError("another rank has lost its servers, see what it says")
