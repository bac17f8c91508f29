"""A logger that has no directory, such as MLflow's with a database."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.support.tiny_runs import ROLLOUTS, vcppo


def test_the_config_is_in_the_runs_directory_if_the_logger_has_none(
    tiny_actor: Path, tmp_path: Path
) -> None:
    given = (f"--model.actor={tiny_actor}", *ROLLOUTS, "--trainer.limit_train_batches=1")
    vcppo(
        *("fit", *given, "--trainer.logger=lightning.pytorch.loggers.logger.DummyLogger"),
        f"--trainer.default_root_dir={tmp_path}",
    )
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["model"]["init_args"]["actor"] == str(tiny_actor)
