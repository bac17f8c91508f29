"""Skip and count updates whose loss or gradient is not finite; too many in a row end a run.

A NaN that reaches the weights, or the optimizer's moments, stays there. So loss and gradient are
checked before each optimizer step, and all ranks skip the step if one of them finds a value that is
not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning.pytorch import Trainer

from lightning_vcppo.common.files import run_path


class NotFiniteError(ValueError):
    """Too many updates in a row were skipped; the message names the network and what to do."""


@dataclass
class UpdateHealth:
    """Counts the skipped updates of one network.

    Attributes:
        limit: Number of skipped updates in a row that ends the run; 0 means no limit.
        flag: Flag of the network's optimizer, such as `--model.actor_optimizer`.
        skipped: Number of updates skipped since the last call of `take_skipped`.
        in_a_row: Number of updates skipped since the last one that was made.
    """

    limit: int
    flag: str
    skipped: int = 0
    in_a_row: int = 0

    def count(self, skipped: bool) -> None:
        """Count an update, made or skipped."""
        self.skipped += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def take_skipped(self) -> float:
        """Return the number of updates skipped since the last call."""
        skipped, self.skipped = self.skipped, 0
        return float(skipped)

    @property
    def limit_reached(self) -> bool:
        """Whether too many updates in a row were skipped."""
        return 0 < self.limit <= self.in_a_row

    def describe_failure(self, network: str, checkpoint: str) -> str:
        """Return one line: the failure, where the last good weights are, and what to change."""
        return (
            f"{network}: {self.in_a_row} updates in a row were skipped because their loss or "
            "gradient was not finite, so the run has ended. The weights before them are in "
            f"{checkpoint}. Look for rewards or a starting model that are not finite, or "
            f"lower {self.flag}.lr, and resume with --ckpt_path={checkpoint} "
            f"({self.flag}.max_skipped_updates is the limit)."
        )


def end_if_not_finite(of_networks: Mapping[str, UpdateHealth], trainer: Trainer) -> None:
    """End the run, with a checkpoint, if too many updates of a network in a row were skipped.

    Args:
        of_networks: Health of each network that is trained, by name.
        trainer: Trainer of the run.

    Raises:
        NotFiniteError: If the limit is reached.
    """
    failed = {name: health for name, health in of_networks.items() if health.limit_reached}
    if not failed:
        return
    path = str(run_path(trainer, "checkpoints", "not_finite.ckpt"))
    messages = [health.describe_failure(name, path) for name, health in failed.items()]
    for health in failed.values():
        health.in_a_row = 0  # a run that resumes from here starts counting again
    trainer.save_checkpoint(path)
    raise NotFiniteError(" ".join(messages))
