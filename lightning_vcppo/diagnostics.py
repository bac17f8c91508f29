"""What looks at each rollout, and files with a JSON object on each, which a report can read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_vcppo.files import complete_file, may_write, whole_lines

FOLDER = "diagnostics"
"""Of these files, in a run's folder."""
DIGITS = 6
"""Of the numbers in them: measurements, not state."""


class RolloutLog:
    """A JSON Lines file that a resumed run goes on with.

    Only the first rank may use it. What is not finite is written as null, which JSON has.
    """

    def __init__(self, path: Path) -> None:
        """Keep the path; nothing is written yet."""
        self.path = path

    def rewind(self, rollouts_done: int) -> None:
        """Drop the lines of later rollouts: the run goes on from a checkpoint, or starts anew."""
        if self.path.exists():
            kept = [line for line in whole_lines(self.path) if _rollout(line) <= rollouts_done]
            with complete_file(self.path) as file:
                file.writelines(kept)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line.

        Args:
            entry: Of plain types, with the key "rollout".
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(entry), allow_nan=False) + "\n")


def _rollout(line: str) -> int:
    return int(json.loads(line)["rollout"])


def _plain(value: Any) -> Any:
    """Shorten numbers to `DIGITS`, and replace those that are not finite by None."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


class RolloutCallback(Callback):
    """Looks at each rollout that has been learned from; a module without rollouts is left alone."""

    _phase = ""
    """In which the rollout at hand was made: it may change when the rollout ends."""

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the phase."""
        if hasattr(pl_module, "phase"):
            self._phase = cast(Any, pl_module).phase.value

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand the rollout on, if there is one."""
        rollout = getattr(pl_module, "rollout", None)
        if rollout is not None:
            self.on_rollout(trainer, pl_module, rollout)

    def on_rollout(self, trainer: Trainer, module: Any, rollout: Any) -> None:
        """Look at the rollout of a VCPPOModule."""
        raise NotImplementedError


class RolloutMonitor(RolloutCallback):
    """Writes a line on each rollout into `file`, in `dirpath` or the run's own folder of them."""

    file: ClassVar[str]

    def __init__(self, dirpath: str | None) -> None:
        """Keep the folder; None means `diagnostics/` in the trainer's root folder."""
        self._dirpath = dirpath

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what an earlier run wrote about rollouts that are still to come."""
        if may_write(trainer) and hasattr(pl_module, "rollout"):
            self._log(trainer).rewind(cast(Any, pl_module).rollouts_done)

    def _log(self, trainer: Trainer) -> RolloutLog:
        return RolloutLog(Path(self._dirpath or Path(trainer.default_root_dir, FOLDER), self.file))
