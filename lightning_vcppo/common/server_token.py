"""Read and create the token of sampling servers, from the environment or a file."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

VARIABLE = "VCPPO_SERVER_TOKEN"
"""Environment variable of the token; it has precedence over the default file."""
_EXPECTED = "one line with the token, of printable ASCII characters"


def default_file() -> Path:
    """Return the default file, which server and trainer of the same user share."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "lightning-vcppo", "server_token")


def read_token(file: str | None = None) -> str:
    """Return the token that a trainer sends to servers.

    Args:
        file: Path of the file; None takes the environment variable, then the default file.

    Raises:
        ValueError: If there is no token, or not one that an HTTP header can hold; the message does
            not contain it.
    """
    if file is None and (token := os.environ.get(VARIABLE)):
        return _checked(token, VARIABLE)
    path = default_file() if file is None else Path(file)
    try:
        token = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"--model.engine.token_file: {path}: expected {_EXPECTED}") from None
    except OSError:
        token = ""
    if not token:
        raise ValueError(
            f"--model.engine.token_file: {path} holds no token; `vcppo serve` writes it (copy the "
            f"file from the server's machine, or set {VARIABLE} on both sides)"
        )
    return _checked(token, f"--model.engine.token_file: {path}")


def _checked(token: str, where: str) -> str:
    """Return the token; refuse one that an HTTP header cannot hold, without printing it."""
    if not all("!" <= character <= "~" or character == " " for character in token):
        raise ValueError(f"{where}: expected {_EXPECTED}")
    return token


def make_token(file: str | None = None) -> tuple[str, Path | None]:
    """Return the token that a server requires, and its file; create the file if it is missing.

    Args:
        file: Path of the file; None takes the environment variable, then the default file.

    Returns:
        The token, and its file; None for a token from the environment.
    """
    if file is None and (token := os.environ.get(VARIABLE)):
        return _checked(token, VARIABLE), None
    path = default_file() if file is None else Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        number = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="utf-8") as out:
            out.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(unfinished, path)  # fails if another server has created it meanwhile
        except FileExistsError:
            pass
        finally:
            unfinished.unlink()
    path.chmod(0o600)
    return read_token(str(path)), path
