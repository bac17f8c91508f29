"""Find the metrics of a run: of `vcppo fit`, or of a script with Lightning's own CSVLogger."""

from __future__ import annotations

from pathlib import Path

METRICS = "metrics.csv"
LOGS = "lightning_logs"
"""Name of CSVLogger's directory; in it, each run has a directory `version_N`."""


def find_metrics(directory: Path) -> Path:
    """Return the metrics.csv of a run: its own, or that of the last version in `lightning_logs`.

    Raises:
        ValueError: If there is none.
    """
    own = directory / METRICS
    if own.exists():
        return own
    versions = {
        int(path.parent.name.removeprefix("version_")): path
        for path in directory.glob(f"{LOGS}/version_*/{METRICS}")
        if path.parent.name.removeprefix("version_").isdecimal()
    }
    if not versions:
        raise ValueError(
            f"{directory}: no metrics.csv; expected the directory of a run with --loggers=[csv], "
            f"or of a script with CSVLogger (with {LOGS}/version_N), or one with the rollouts that "
            "another trainer dumped"
        )
    return versions[max(versions)]
