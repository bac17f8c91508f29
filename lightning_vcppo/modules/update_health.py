"""Updates whose loss or gradient is not finite: they are left out, counted, and too many end a run.

A NaN that reaches the weights, or the moments of the optimizer, stays there for good. So it is
looked for before each step of an optimizer, and all ranks leave the step out as soon as one of them
finds something.
"""

from __future__ import annotations

from dataclasses import dataclass


class NotFiniteError(ValueError):
    """Too many updates in a row were left out; the message says of what, and what to do."""


@dataclass
class UpdateHealth:
    """How the updates of one network went.

    Attributes:
        limit: So many left out in a row are too many; 0 is no limit.
        flag: Where the network's optimizer is set, such as `--model.actor_optimizer`.
        skipped: Updates left out since `take_skipped` was last asked.
        in_a_row: Updates left out since the last one that was made.
    """

    limit: int
    flag: str
    skipped: int = 0
    in_a_row: int = 0

    def count(self, skipped: bool) -> None:
        """Count an update, made or left out."""
        self.skipped += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def take_skipped(self) -> float:
        """Return how many updates were left out since the last call."""
        skipped, self.skipped = self.skipped, 0
        return float(skipped)

    @property
    def is_lost(self) -> bool:
        """Whether too many updates in a row were left out."""
        return 0 < self.limit <= self.in_a_row

    def obituary(self, network: str, checkpoint: str) -> str:
        """Return one line: what happened, where the last good weights are, what to change."""
        return (
            f"{network}: {self.in_a_row} updates in a row were left out because their loss or "
            "gradient was not finite, so the run has ended. The weights are those before them, in "
            f"{checkpoint}. Look for rewards or a starting model that are not finite, or "
            f"lower {self.flag}.lr, and go on with --ckpt_path={checkpoint} "
            f"({self.flag}.max_skipped_updates is the limit)."
        )
