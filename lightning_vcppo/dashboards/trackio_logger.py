"""Log a run to Trackio, the local dashboard of Hugging Face.

Trackio keeps all runs in one place, `TRACKIO_DIR` or `trackio` in the cache of Hugging Face, which
`trackio show` reads. Nothing leaves the machine unless `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL`
names another place.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lightning_vcppo.common.errors import require
from lightning_vcppo.dashboards.late_opening import OpensLate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECT = "lightning-vcppo"


class RunTrackioLogger(OpensLate):
    """A logger of a run on Trackio, which creates it when something is logged.

    Args:
        run_dir: The run's directory, which names the run.
        part: Part of the run, which is a run of its own on Trackio: "" is the training.

    Attributes:
        resumes: Whether to continue the latest run of the same name.
    """

    def __init__(self, run_dir: str, part: str = "") -> None:
        """Check that Trackio is installed."""
        super().__init__()
        require(
            find_spec("trackio") is not None,
            "--loggers=[trackio]: Trackio is not installed; pip install 'lightning-vcppo[trackio]'",
        )
        self._place = place = Path(run_dir, part).absolute()
        # Trackio finds a run by its name, and directories such as seed_0 often have the same one.
        self._name = f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:6]}"
        self.resumes = False
        self._config: dict[str, Any] = {}
        self._experiment = None

    @property
    @override
    def name(self) -> str:
        """The name of the project."""
        return PROJECT

    @property
    @override
    def version(self) -> str:
        """The name of the run."""
        return self._name

    @property
    @override
    def save_dir(self) -> str:
        """The directory of this part of the run, where the config is saved."""
        return str(self._place)

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the run of Trackio, opened if need be; None while it may not open."""
        if self._experiment is None and self.may_open:
            import trackio

            self._experiment = trackio.init(
                PROJECT,
                name=self._name,
                config=self._config,
                resume="allow" if self.resumes else "never",
                embed=False,
            )
        return self._experiment

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | argparse.Namespace) -> None:
        """Keep the config, which Trackio stores with the first metrics."""
        self._config |= dict(params if isinstance(params, Mapping) else vars(params))

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Log a table."""
        import trackio

        table = trackio.Table(columns=[*columns], data=[[*row] for row in rows])
        self.experiment.log({key: table}, step=step)

    @rank_zero_only
    def log_figure(self, key: str, figure: Figure, step: int) -> None:
        """Log a figure of matplotlib as a picture."""
        import trackio
        from PIL import Image

        picture = BytesIO()
        figure.savefig(picture, format="png")
        self.experiment.log({key: trackio.Image(Image.open(picture))}, step=step)

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is still queued; a later call of the Trainer continues the run."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment, self.resumes = None, True
