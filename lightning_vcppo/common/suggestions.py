"""Suggest names for misspelt ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

ELSEWHERE = {
    "learning_rate": "--model.actor_optimizer.lr",
    "lr": "--model.actor_optimizer.lr",
    "actor_lr": "--model.actor_optimizer.lr",
    "critic_lr": "--model.critic_optimizer.lr",
    "batch_size": "--data.prompts_per_rollout",
    "train_batch_size": "--data.prompts_per_rollout",
    "epochs": "--trainer.max_epochs",
    "num_train_epochs": "--trainer.max_epochs",
    "output_dir": "--trainer.default_root_dir",
    "model_name_or_path": "--model.actor",
    "max_new_tokens": "--model.sampling.max_response_length",
    "max_completion_length": "--model.sampling.max_response_length",
    "beta": "--model.policy.kl_coef",
    "seed": "--seed_everything",
}
"""Flags of other trainers, and their names here."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`, ignoring case; None if none is similar."""
    by_folded = {other.casefold(): other for other in known}
    close = get_close_matches(name.casefold(), by_folded, 1)
    return by_folded[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, or "" if no known name is similar."""
    close = nearest(name, known)
    return f"; did you mean {close}?" if close else ""


def nearest_flag(flag: str, known: Iterable[str]) -> str | None:
    """Return the flag that was probably meant by a misspelt, shortened or misplaced one.

    Args:
        flag: A flag, such as `--lambda_actor`.
        known: All flags, such as `--model.advantage.lambda_actor`.
    """
    flags = list(known)
    if other := ELSEWHERE.get(flag.removeprefix("--")):
        return other
    last = flag.lstrip("-").split(".")[-1]
    same_end = [other for other in flags if other.lstrip("-").split(".")[-1] == last]
    if same_end:
        return nearest(flag, same_end) or min(same_end, key=len)
    beginnings = [other for other in flags if other.startswith(flag)]
    if len(beginnings) == 1:
        return beginnings[0]
    # A long common prefix would hide the difference, so only the last parts are compared.
    siblings = {
        other.rpartition(".")[2]: other
        for other in flags
        if other.rpartition(".")[0] == flag.rpartition(".")[0]
    }
    close = nearest(last, siblings) if "." in flag else None
    return siblings[close] if close else nearest(flag, flags)


def near_file(path: Path) -> str:
    """Return `; did you mean X?` for the path on the disk that is most like a missing one.

    Each part of the path that does not exist is replaced by the most similar name.
    """
    found = Path(path.anchor)
    for part in path.relative_to(found).parts:
        name: str | None = part
        if not (found / part).exists():
            try:
                name = nearest(part, (other.name for other in found.iterdir()))
            except OSError:  # not a directory, or not readable
                return ""
        if name is None:
            return ""
        found /= name
    return f"; did you mean {found}?" if found != path else ""


def name_flag(message: str, values: Mapping[str, Any]) -> str:
    """Replace the setting's name at the start of a message by its complete flag.

    Args:
        message: A message, such as "gamma: expected a number in [0, 1], got 2.0".
        values: Values of all settings by flag without dashes: {"model.advantage.gamma": 2.0}.

    Returns:
        "--model.advantage.gamma: expected ..."; if several flags have this ending, those with the
        value in the message.
    """
    begin = re.match(r"([a-z][\w.]*): ", message)
    if not begin:
        return message
    flags = [flag for flag in values if f".{flag}".endswith(f".{begin[1]}")]
    got = message.rpartition("got ")[2]
    same = [flag for flag in flags if str(values[flag]) == got]
    flags = same if len(flags) > 1 and same else flags
    if not flags:
        return message
    return f"{' or '.join(f'--{flag}' for flag in flags)}{message[len(begin[1]) :]}"
