"""Check for an account of Weights & Biases without importing wandb, which takes seconds."""

from __future__ import annotations

import netrc
import os
from urllib.parse import urlparse


def has_account() -> bool:
    """Return whether `wandb login` or the environment has set an API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
