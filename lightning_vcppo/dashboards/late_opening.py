"""Define the base of loggers that create their files when something is logged."""

from __future__ import annotations

from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override


class OpensLate(Logger):
    """Base of loggers that create their files when something is logged, and not before.

    Lightning opens all loggers before it reads data; a run that fails there, or at its model or
    checkpoint, would leave an empty run on the dashboard.

    Attributes:
        may_open: Whether Lightning has passed that point. Until then there is no experiment.
    """

    may_open = False
    _experiment: Any

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return what the logger writes to, opened if need be; None while it may not open."""
        return super().experiment if self.may_open else None  # type: ignore[misc]

    @override
    @rank_zero_only
    def save(self) -> None:
        """Write what was logged, if anything was."""
        if self._experiment is not None:
            super().save()
