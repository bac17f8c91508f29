"""Lightning's own callbacks: those that cannot work are refused, misspelt metrics are noticed."""

import warnings

import pytest
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lightning_vcppo.modules.foreign_callbacks import (
    NEEDS_ONE_LOSS,
    UNSUITABLE,
    refuse_unsuitable,
    warn_of_unknown_metrics,
)
from tests.support.rows import thin
from tests.support.tiny_runs import ROLLOUTS, run_program

NEEDED = {
    "EarlyStopping": ["monitor=rollout/accuracy"],
    "ModelPruning": ["pruning_fn=l1_unstructured"],
    "OnExceptionCheckpoint": ["dirpath=saved"],
    "GradientAccumulationScheduler": ["scheduling={0: 2}"],
    "StochasticWeightAveraging": ["swa_lrs=0.1"],
    "BackboneFinetuning": [],
}
"""Arguments without a default."""
ALL = sorted(name for name in callbacks.__all__ if name not in ("Callback", "TQDMProgressBar"))
QUICK = ("Timer", "SpikeDetection", "LearningRateFinder", "StochasticWeightAveraging")


@pytest.mark.parametrize("name", thin(ALL, lambda name: name in QUICK))
def test_each_of_lightnings_callbacks_works_or_is_refused_in_one_line(
    name, tiny_actor, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    given = [f"--trainer.callbacks+={name}"]
    given += [f"--trainer.callbacks.{argument}" for argument in NEEDED.get(name, [])]
    try:
        run_program(
            *("fit", f"--model.actor={tiny_actor}", *ROLLOUTS, *given, "--loggers=[csv]"),
            *("--trainer.limit_train_batches=2", "--trainer.default_root_dir=run"),
        )
    except SystemExit as end:
        line = capfd.readouterr().err.splitlines()[-1]
        assert end.code == 2
        assert line.startswith("vcppo: error: ")
        assert name in line or "progress bar" in line, line
    else:
        assert name not in {kind.__name__ for kind in UNSUITABLE | NEEDS_ONE_LOSS}


def test_a_callback_of_ones_own_may_extend_those_that_are_refused():
    for kind in UNSUITABLE | NEEDS_ONE_LOSS:
        with pytest.raises(ValueError, match=f"{kind.__name__} does not work here: "):
            refuse_unsuitable([Callback(), kind.__new__(kind)], automatic_optimization=False)
        mine = type("Mine", (kind,), {})
        refuse_unsuitable([mine.__new__(mine)], automatic_optimization=False)
    for kind in NEEDS_ONE_LOSS:
        refuse_unsuitable([kind.__new__(kind)], automatic_optimization=True)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("rollout/acuracy", "; did you mean rollout/accuracy?"),
        ("val_loss", ". Unless"),
        ("eval/aime24/acc", ". Unless"),
        (None, None),
        ("eval/accuracy", None),
        ("eval/aime24/accuracy", None),
        ("eval/pass_at_4", None),
        ("decay/advantage_decile_0", None),
    ],
)
def test_a_monitored_metric_that_nobody_logs_is_noticed_before_the_run(key, hint):
    watching = [ModelCheckpoint(monitor=key), *([EarlyStopping(key)] if key else [])]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_unknown_metrics(watching)
    assert len(caught) == (0 if hint is None else 2)
    for warning in caught:
        assert f"monitor={key} is no metric of this package{hint}" in str(warning.message)
