"""Find out whether the hub answers, before its client tries again and again for half a minute."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants

from lightning_vcppo.common.suggestions import near_file

PATIENCE_S = 10.0
"""Seconds in which the hub must answer at all."""


@cache
def fault_of_hub() -> str:
    """Return why the hub cannot be asked, "" if it answers; a process asks it once."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE_S).close()
    except HTTPError:  # an answer
        return ""
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLError):  # the hub's client has certificates of its own
            return ""
        return f"no connection to {constants.ENDPOINT} ({getattr(cause, 'strerror', '') or cause})"
    return ""


@contextmanager
def without_retries() -> Iterator[None]:
    """Let `datasets` read only its cache while the hub does not answer."""
    import datasets

    places: list[Any] = [constants, datasets.config]
    kept = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or bool(fault_of_hub())
        yield
    finally:
        for place, value in zip(places, kept, strict=True):
            place.HF_HUB_OFFLINE = value


def is_path(name: str) -> bool:
    """Return whether a name must be that of a directory: ids of the hub are NAME or OWNER/NAME."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def is_cached(name: str) -> bool:
    """Return whether the hub's cache holds any file of a model."""
    return Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots").is_dir()


def absent(name: str, what: str) -> str:
    """Return the message about a model that is not here while the hub cannot be asked for it.

    Args:
        name: Directory or hub id.
        what: Name of what is loaded.
    """
    hint = near_file(Path(name).expanduser())
    if is_path(name):
        return f"{name}: no such directory (expected a {what}){hint}"
    advice = (
        f"; download it where there is a network (hf download {name} --local-dir DIRECTORY) and "
        "give its directory"
    )
    return (
        f"{name}: no such directory (expected a {what}), and the hub cannot be asked for it: "
        f"{fault_of_hub()}{hint or advice}"
    )
