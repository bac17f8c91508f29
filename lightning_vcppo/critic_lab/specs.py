"""Parse the critics to compare: `mse`, `hl_gauss:num_bins=101,lr=1e-4`, or a YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.suggestions import did_you_mean
from lightning_vcppo.settings import OptimizerSettings, ValueSettings

KINDS: dict[str, dict[str, Any]] = {
    "mse": {},
    "huber": {"value.loss": "huber"},
    "bounded": {"value.head": "bounded"},
    "sigmoid": {"value.head": "sigmoid", "value.loss": "bce"},
    "hl_gauss": {"value.head": "hl_gauss"},
    "side": {"value.architecture": "side"},
    "answer": {"value.privileged_prompt": "answer"},
    "siblings": {"value.privileged_prompt": "siblings"},
}
"""Settings that each name of a critic stands for."""


@dataclass(frozen=True)
class CriticSpec:
    """A critic to fit.

    Attributes:
        name: Name that the user gave.
        settings: Flags of `vcppo critic fit` without the dashes.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def is_side(self) -> bool:
        """Whether it reads the actor's activations."""
        return self.settings.get("value.architecture") == "side"

    @property
    def hints(self) -> ValueSettings:
        """Kind and largest length of the hints that it reads, with defaults for the rest."""
        names = ("privileged_prompt", "privileged_max_length")
        given = {name: self.settings.get(f"value.{name}") for name in names}
        return ValueSettings(**{name: v for name, v in given.items() if v is not None})


def read_specs(texts: Sequence[str], actor: str | None = None) -> list[CriticSpec]:
    """Read the names of critics.

    Args:
        texts: Names that the user gave.
        actor: Directory or hub id of the actor, which side critics read.

    Raises:
        ValueError: If a critic or setting is unknown, a name is given twice, or a side critic has
            no actor.
    """
    specs = [_read_spec(text) for text in texts]
    for spec in specs:
        if spec.is_side:
            require(
                actor is not None,
                f"--critics: {spec.name} reads the actor's activations; name the actor with "
                "--actor",
            )
    names = [spec.name for spec in specs]
    twice = {name for name in names if names.count(name) > 1}
    require(not twice, f"--critics: expected each once, got {', '.join(sorted(twice))} twice")
    return specs


def _read_spec(text: str) -> CriticSpec:
    if text.endswith((".yaml", ".yml")):
        try:
            given = yaml.safe_load(Path(text).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{text}: broken YAML, {str(error).splitlines()[0]}") from error
        require(isinstance(given, dict), f"{text}: expected settings such as value.head: hl_gauss")
        return CriticSpec(Path(text).stem, dict(_checked(text, _flat(given))))
    kind, _, options = text.partition(":")
    require(
        kind in KINDS,
        f"--critics: no critic {kind!r}{did_you_mean(kind, KINDS)}; expected {', '.join(KINDS)} or "
        "a YAML file",
    )
    given = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        require(bool(equals), f"--critics: {text}: expected key=value, got {option!r}")
        given[key] = yaml.safe_load(value)
    return CriticSpec(text, KINDS[kind] | dict(_checked(text, given)))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _checked(place: str, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield settings with the names of their groups; refuse unknown ones."""
    groups = {"value": ValueSettings, "critic_optimizer": OptimizerSettings}
    known = {
        f"{group}.{f.name}": f"{group}.{f.name}" for group, c in groups.items() for f in fields(c)
    }
    short = {name.partition(".")[2]: name for name in reversed(known)}
    for key, value in given.items():
        name = key if key in known else short.get(key)
        if name is None:
            raise ValueError(f"{place}: no setting {key!r}{did_you_mean(key, [*short, *known])}")
        yield name, value
