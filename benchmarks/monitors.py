"""Time the monitors of a rollout: `python -m benchmarks.monitors`.

The run is VC-PPO with the sizes of configs/demo/rl.yaml from random weights: 16 rollouts, an
evaluation after every eighth. On a busy machine two runs differ by more than the time of the
monitors, so the time is measured inside their hooks.

The last line is JSON:

    overhead    seconds in hooks during training and in logging, divided by those of `training_step`
    rollout_s   seconds of `training_step` per rollout
    hooks_ms    for each callback, milliseconds per rollout
    logging_ms  milliseconds in which Lightning passes metrics to the loggers, with the module's
    at_end_s    seconds after the last rollout: the final plots
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

from benchmarks.measure import THREADS, actor_fields, print_json, print_table, start, write_actor
from lightning_vcppo.cli import lightning_cli
from lightning_vcppo.modules.vcppo import VCPPOModule

ROLLOUTS = 16
NO_MONITORS = {"value_pretraining", "aime_evaluation", "model_export", "response_writer"}
"""Forced callbacks that train, evaluate or export, which are not timed."""
AFTER_TRAINING = {"on_train_end", "on_fit_end"}


class Stopwatch:
    """Sums the seconds of methods by name."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds: dict[str, float] = defaultdict(float)

    def watch(self, owner: type, method: str, name: str) -> None:
        """Replace a method of a class by a timed one."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        setattr(owner, method, timed)


def watch_everything(watch: Stopwatch) -> list[str]:
    """Time rollouts, logging and every hook of the monitors; return the monitors' names."""
    watch.watch(VCPPOModule, "training_step", "training_step")
    for method in ("update_train_step_metrics", "update_train_epoch_metrics"):
        watch.watch(_LoggerConnector, method, "logging")
    monitors = [name for name in lightning_cli.FORCED_CALLBACKS if name not in NO_MONITORS]
    for name in monitors:
        callback = lightning_cli.FORCED_CALLBACKS[name]
        for hook in (attribute for attribute in dir(Callback) if attribute.startswith("on_")):
            if getattr(callback, hook) is not getattr(Callback, hook):
                watch.watch(callback, hook, "end" if hook in AFTER_TRAINING else name)
    return monitors


def main() -> None:
    """Run, print a table and a line of JSON."""
    start()
    watch = Stopwatch()
    monitors = watch_everything(watch)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_actor(directory / "actor", actor_fields("demo/cold_start"))
        lightning_cli.main(
            [
                *("fit", "--config=vcppo", "--config=demo/rl"),
                *(f"--model.actor={directory / 'actor'}", f"--model.critic={directory / 'actor'}"),
                *(f"--trainer.default_root_dir={directory}", f"--threads={THREADS}"),
                *(f"--trainer.limit_train_batches={ROLLOUTS}", "--trainer.val_check_interval=8"),
                *("--data.val_size=8", "--data.val_batch_size=8", "--loggers=[csv]"),
                *("--value_pretraining.max_rollouts=5", "--trainer.enable_model_summary=false"),
            ]
        )
    seconds = watch.seconds
    hooks_ms = {name: 1e3 * seconds[name] / ROLLOUTS for name in monitors}
    logging_ms = 1e3 * seconds["logging"] / ROLLOUTS
    rollout_s = seconds["training_step"] / ROLLOUTS
    overhead = (sum(hooks_ms.values()) + logging_ms) / 1e3 / rollout_s
    parts = {**hooks_ms, "logging": logging_ms, "all": 1e3 * overhead * rollout_s}
    print_table(
        f"{ROLLOUTS} rollouts of {rollout_s:.2f} s",
        ("", "ms a rollout", "% of it"),
        [(name, ms, ms / 10 / rollout_s) for name, ms in parts.items()],
    )
    results = {"overhead": overhead, "rollout_s": rollout_s, "hooks_ms": hooks_ms}
    print_json(results | {"logging_ms": logging_ms, "at_end_s": seconds["end"]})


if __name__ == "__main__":
    main()
