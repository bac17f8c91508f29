"""The token by which a sampling server knows its trainer: from the environment, or a file."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

VARIABLE = "VCPPO_SERVER_TOKEN"
"""Environment variable that holds the token; it comes before any file."""


def default_file() -> Path:
    """Return the file that a server and a trainer of the same user find without a flag."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "lightning-vcppo", "server_token")


def read_token(file: str | None = None) -> str:
    """Return the token with which a trainer speaks to servers.

    Args:
        file: Where it is; None looks into the environment, then at the default place.

    Raises:
        ValueError: If there is none.
    """
    if file is None and (token := os.environ.get(VARIABLE)):
        return token
    path = default_file() if file is None else Path(file)
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError:
        token = ""
    if not token:
        raise ValueError(
            f"--model.engine.token_file: {path} holds no token; `vcppo serve` writes it (copy the "
            f"file from the server's machine, or set {VARIABLE} on both sides)"
        )
    return token


def make_token(file: str | None = None) -> tuple[str, Path | None]:
    """Return the token that a server asks for, and its file; a new one is written if need be.

    Args:
        file: Where it is to be; None looks into the environment, then at the default place.

    Returns:
        The token, and the file that holds it: None if it is from the environment.
    """
    if file is None and (token := os.environ.get(VARIABLE)):
        return token, None
    path = default_file() if file is None else Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        number = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="utf-8") as out:
            out.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(unfinished, path)  # of two servers that start at once, one has written it
        except FileExistsError:
            pass
        finally:
            unfinished.unlink()
    path.chmod(0o600)
    return read_token(str(path)), path
