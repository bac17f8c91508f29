"""Note SIGTERM and Ctrl-C, and act on them where a run can be left and resumed."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console

NOTES = {
    signal.SIGTERM: "finishing the rollout, then saving",
    signal.SIGINT: "finishing the rollout, then saving; Ctrl-C again ends the run at once",
}


class Interruptions:
    """Replaces the handlers of signals that end a run, or have SLURM requeue it.

    Lightning's own handlers act in the middle of an update, and would save half of it. When its
    Trainer ends, it restores the previous handlers.

    Attributes:
        pending: Number of the last signal; 0 if there was none.
    """

    def __init__(self) -> None:
        """Start without handlers; `listen` installs them."""
        self.pending = 0
        self._requeue: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the handlers; called after Lightning has installed its own."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in NOTES:
            signal.signal(number, self._note)
        for number in signal.valid_signals() - {signal.SIGTERM, signal.SIGINT}:
            handler = signal.getsignal(number)
            if isinstance(handler, _HandlersCompose):  # SLURM requeues the job by this signal
                self._requeue[number] = handler
                signal.signal(number, self._note)

    def requeue(self, number: int) -> bool:
        """Save and requeue as Lightning does if the signal asks for it; return whether it does."""
        if number not in self._requeue:
            return False
        self.pending = 0
        self._requeue[number](number, None)
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.pending = self.pending == number == signal.SIGINT, number
        if again:
            get_console().show_cursor()  # the progress bar hides it
            os._exit(exit_code(number))
        if vars(rank_zero_only)["rank"] == 0 and number in NOTES:
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: {NOTES[signal.Signals(number)]}\n".encode())


def exit_code(number: int) -> int:
    """Return the exit code that a shell reports for a signal: 130 for Ctrl-C."""
    return 128 + number
