"""Write the table of presets in configs/README.md: `python -m experiments.preset_table`.

The table is generated from the files: the description of a preset is the first sentence of its
header, and its differences from `vcppo.yaml` are those of the values, with the defaults of settings
that a file leaves out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from experiments.runs import CONFIGS
from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.settings import (
    AdvantageSettings,
    OptimizerSettings,
    PolicySettings,
    SamplingSettings,
    UpdateSettings,
    ValueSettings,
)

README = CONFIGS / "README.md"
BEGIN, END = "<!-- presets -->\n", "<!-- /presets -->\n"
REFERENCE = "vcppo"
DEFAULTS: dict[str, dict[str, Any]] = {
    "sampling": asdict(SamplingSettings()),
    "advantage": asdict(AdvantageSettings()),
    "policy": asdict(PolicySettings()),
    "value": asdict(ValueSettings()),
    "update": asdict(UpdateSettings()),
    "actor_optimizer": asdict(OptimizerSettings(lr=1e-6)),
    "critic_optimizer": asdict(OptimizerSettings(lr=2e-6)),
    "value_pretraining": {
        name: parameter.default
        for name, parameter in inspect.signature(ValuePretraining).parameters.items()
    },
}
OF_THE_CRITIC = {"value", "critic_optimizer", "value_pretraining"}
"""Groups that a preset without a critic does not have."""


def presets() -> dict[str, Path]:
    """Return the configs of algorithms by name: those that do not name an actor."""
    return {
        path.stem: path
        for path in sorted(CONFIGS.glob("*.yaml"))
        if "actor" not in yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]
    }


def in_short(path: Path) -> str:
    """Return the first sentence of a file's header."""
    header = path.read_text(encoding="utf-8").split("#\n")[0]
    text = " ".join(line.removeprefix("#").strip() for line in header.splitlines())
    return re.split(r"(?<=\.)\s", text)[0].strip()


def settings(path: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of a preset by group, including defaults."""
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups = given["model"]["init_args"] | {"value_pretraining": given["value_pretraining"]}
    return {name: DEFAULTS[name] | groups.get(name, {}) for name in DEFAULTS}


def differences(
    own: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield a text with the settings that differ for each group."""
    has_critic = own["advantage"]["estimator"] == "gae"
    for group, values in own.items():
        if group in OF_THE_CRITIC and not has_critic:
            continue
        changed = [
            f"`{name}: {_written(value)}`"
            for name, value in values.items()
            if value != reference[group][name] and (name == "enabled" or values.get("enabled", 1))
        ]
        if changed:
            yield f"{group}: {', '.join(changed)}"


def table() -> str:
    """Return the table in Markdown."""
    reference = settings(presets()[REFERENCE])
    lines = ["| Preset | Description | Differences from `vcppo.yaml` |", "|---|---|---|"]
    for name, path in presets().items():
        changed = "; ".join(differences(settings(path), reference)) or "-"
        lines.append(f"| `{name}.yaml` | {in_short(path)} | {changed} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Return a text in which the table between the marks is replaced by the current one."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def _written(value: Any) -> str:
    """Return a value as one line of YAML."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("...\n").strip()


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
