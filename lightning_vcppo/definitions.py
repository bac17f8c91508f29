"""What each metric means and which values are healthy, as docs/metrics.md says it.

That page is the only place where metrics are defined; it lies beside this package in a checkout and
within it in a wheel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from lightning_vcppo.shipped import shipped_folder

HEADER = "| Key | Meaning | Healthy |"


@dataclass(frozen=True)
class Definition:
    """A row of the page.

    Attributes:
        key: `group/name`; braces stand for letters, digits and underscores, as in `decile_{0..9}`.
        meaning: What the number is.
        healthy: Which values are; may be empty.
    """

    key: str
    meaning: str
    healthy: str

    def covers(self, key: str) -> bool:
        """Tell whether a logged key is this one."""
        parts = re.split(r"\{.*?\}", self.key)
        return re.fullmatch(r"\w+".join(map(re.escape, parts)), key) is not None


@cache
def read_definitions() -> tuple[Definition, ...]:
    """Return the rows of all tables of metrics, in the order of the page."""
    page = shipped_folder("docs") / "metrics.md"
    definitions: list[Definition] = []
    in_table = False
    for line in page.read_text(encoding="utf-8").splitlines():
        in_table = line == HEADER or (in_table and line.startswith("|"))
        if in_table and line.startswith("| `"):
            key, meaning, healthy = (c.strip() for c in re.split(r"(?<!\\)\|", line)[1:4])
            definitions.append(Definition(key.strip("`"), meaning, healthy))
    return tuple(definitions)


def define(key: str) -> Definition:
    """Return the definition of a key, as it is logged or as the page writes it.

    Raises:
        KeyError: If the page has none.
    """
    definitions = read_definitions()
    exact = [definition for definition in definitions if definition.key == key]
    found = exact or [definition for definition in definitions if definition.covers(key)]
    if not found:
        raise KeyError(f"docs/metrics.md does not define {key}")
    return found[0]
